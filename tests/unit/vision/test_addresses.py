from __future__ import annotations

import pytest

from services.vision.addresses import AllowedHosts, is_public
from shared.errors import ConfigError


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
        "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.88.99.1",
        "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "fe80::1",
        "fe80::1%eth0", "fc00::1", "fd00::1", "fec0::1", "ff02::1", "2001:db8::1", "2001::1",
        "2002:7f00:1::", "2002:a9fe:a9fe::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
        "localhost", "", "2130706433",
    ],
)  # fmt: skip
def test_everything_else_is_not(address: str) -> None:
    assert not is_public(address)


def test_allowed_hosts_are_hosts_with_or_without_a_port() -> None:
    allowed = AllowedHosts(["Images.local", "127.0.0.1:8080", "[::1]:9"])
    assert allowed.has("images.local", 80)
    assert allowed.has("IMAGES.local", 8443)
    assert allowed.has("127.0.0.1", 8080)
    assert allowed.has("::1", 9)
    assert not allowed.has("127.0.0.1", 80)
    assert not allowed.has("a.images.local", 80)


@pytest.mark.parametrize("entry", ["", "http://x", "a/b", "u@h", "h:port", "h?x", "h#x"])
def test_an_entry_that_is_no_host_is_a_wrong_flag(entry: str) -> None:
    with pytest.raises(ConfigError, match="--allowed-media-hosts"):
        AllowedHosts([entry])
