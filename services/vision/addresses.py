"""Which hosts media may be fetched from. Pure: names and addresses in, yes or no out. Called by `http_fetch`."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from yarl import URL

from shared.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "64:ff9b:1::/48",  # local NAT64
        "::/96",  # IPv4-compatible, obsolete
        "2001::/23",  # IETF protocols, Teredo among them
        "fec0::/10",  # site-local, obsolete
        "192.88.99.0/24",  # 6to4 relays, obsolete
        "100.64.0.0/10",  # carrier-grade NAT
        "0.0.0.0/8",
    )
)


def is_public(text: str) -> bool:
    """Whether an address belongs to the public internet, also when it is an IPv4 address in IPv6 clothes."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    inner = _inner(address)
    if inner is not None:
        return is_public(str(inner))
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address.version == network.version and address in network for network in _REFUSED)
    )


class AllowedHosts:
    """`--allowed-media-hosts`: hosts that the operator trusts wherever they are. Immutable."""

    def __init__(self, entries: Sequence[str]) -> None:
        """
        Raises:
            ConfigError: an entry is no host and no host:port.
        """
        self._entries = frozenset(_parse(entry) for entry in entries)

    def has(self, host: str, port: int) -> bool:
        return (host.lower(), None) in self._entries or (host.lower(), port) in self._entries


def _inner(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to an IPv6 address end up at."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _parse(entry: str) -> tuple[str, int | None]:
    try:
        url = URL(f"http://{entry}/")
        if url.host and (url.raw_path, url.query_string, url.user, url.fragment) == ("/", "", None, ""):
            return url.host.lower(), url.explicit_port
    except ValueError:
        pass
    raise ConfigError(f"--allowed-media-hosts {entry!r}: use a host or host:port, for example images.local:8080")
