from __future__ import annotations

import pytest

from services.scheduler.__main__ import main
from services.scheduler.config import SchedulerConfig
from shared.config import parse_config
from shared.errors import ConfigError


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--pipeline-depth", "-1"), ("--pipeline-depth", "9"), ("--chunked-prefill-size", "-2"),
        ("--schedule-conservativeness", "0"), ("--max-queued-requests", "0"),
        ("--starvation-limit-s", "0"), ("--queue-timeout-s", "-1"), ("--step-timeout-s", "0"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_names_its_flag(flag: str, value: str) -> None:
    name = flag[2:].replace("-", "_")
    with pytest.raises(ConfigError, match=f"{flag} {value}"):
        SchedulerConfig(**{name: float(value) if "." in value or name.endswith("_s") else int(value)})


def test_flags_are_spelled_as_users_know_them() -> None:
    argv = ["--schedule-policy=fcfs", "--chunked-prefill-size=-1", "--disable-radix-cache", "--enable-kv-events"]
    config = parse_config(SchedulerConfig, "scheduler", "", argv)
    assert (config.schedule_policy, config.chunked_prefill_size) == ("fcfs", -1)
    assert config.disable_radix_cache
    assert config.enable_kv_events


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--schedule-policy", "--pipeline-depth", "--queue-timeout-s", "--nats-url"):
        assert flag in out
