"""Flags and environment variables to configuration and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import CommonConfig, option, parse_config, to_argv
from shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pool:
    page_size: int = option(16, help="tokens per page", group="memory")
    share: float = option(0.9, help="share of memory", group="memory")


@dataclass(frozen=True, slots=True)
class Config:
    model_path: str = option(help="folder of the model", group="model")
    common: CommonConfig = CommonConfig()
    pool: Pool = Pool()
    policy: Literal["fcfs", "lpm"] = option("fcfs", help="order of the queue")
    limit: int | None = option(None, help="most tokens")
    cache: bool = option(True, help="keep prefixes")
    verbose: bool = option(False, help="say more")
    api_key: tuple[str, ...] = option((), help="accepted key; may be repeated")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit} must be positive")


def parse(*argv: str) -> Config:
    return parse_config(Config, "prog", "A program.", argv)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_defaults_fill_what_is_not_given() -> None:
    assert parse("--model-path", "m") == Config(model_path="m")


def test_flags_reach_nested_configurations() -> None:
    config = parse(
        "--model-path=m", "--page-size", "1", "--share=0.5", "--policy=lpm", "--limit=7", "--no-cache", "--verbose",
        "--api-key", "a", "--api-key=b", "--nats-url", "nats://x:1", "--log-level=debug",
    )  # fmt: skip
    assert config == Config(
        model_path="m", common=CommonConfig(nats_url="nats://x:1", log_level="debug"), pool=Pool(1, 0.5),
        policy="lpm", limit=7, cache=False, verbose=True, api_key=("a", "b"),
    )  # fmt: skip


def test_the_environment_gives_defaults_that_flags_override(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODEL_PATH": "env", "PAGE_SIZE": "4", "VERBOSE": "yes", "CACHE": "0", "API_KEY": "k", "POLICY": "lpm",
        "LIMIT": "9",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"RHIZOME_{name}", value)
    config = parse()
    assert (config.model_path, config.pool.page_size, config.verbose, config.cache) == ("env", 4, True, False)
    assert (config.api_key, config.policy, config.limit) == (("k",), "lpm", 9)
    over = parse("--model-path=flag", "--page-size=8", "--cache", "--api-key=a", "--policy=fcfs")
    assert (over.model_path, over.pool.page_size, over.cache, over.api_key, over.policy) == (
        "flag", 8, True, ("a",), "fcfs",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model-path"], "--model-path"),
        ([], "--model-path"),
        (["--model-path=m", "--pages=1"], "--pages"),
        (["--model-path=m", "--page-s=1"], "--page-s"),
        (["--model-path=m", "--page-size=big"], "--page-size"),
        (["--model-path=m", "--policy=magic"], "--policy"),
        (["--model-path=m", "--limit=0"], "--limit 0 must be positive"),
        (["--model-path=m", "--log-level=loud"], "--log-level"),
    ],
)
def test_a_wrong_flag_ends_the_program_with_its_name(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    said = refusal(capsys, *argv)
    assert words in said
    assert "--help" in said


@pytest.mark.parametrize(
    ("name", "value"), [("PAGE_SIZE", "big"), ("CACHE", "maybe"), ("POLICY", "magic"), ("LIMIT", "")]
)
def test_a_wrong_environment_variable_ends_the_program_with_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"RHIZOME_{name}", value)
    assert f"RHIZOME_{name}" in refusal(capsys, "--model-path=m")


def test_help_lists_every_flag_in_its_group_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    for words in ("memory options", "--page-size N", "tokens per page (default: 16)", "--no-cache", "{fcfs,lpm}"):
        assert words in text


def test_an_argv_leaves_out_defaults() -> None:
    assert to_argv(Config(model_path="m")) == ["--model-path=m"]


def test_an_argv_repeats_a_default_that_the_environment_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(model_path="m")
    monkeypatch.setenv("RHIZOME_PAGE_SIZE", "4")
    monkeypatch.setenv("RHIZOME_CACHE", "0")
    monkeypatch.setenv("RHIZOME_VERBOSE", "1")
    assert parse(*to_argv(config)) == config


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x7FF), max_size=10)
CONFIGS: st.SearchStrategy[Any] = st.builds(
    Config,
    model_path=TEXT,
    common=st.builds(CommonConfig, nats_url=TEXT, log_level=st.sampled_from(["debug", "error"])),
    pool=st.builds(Pool, page_size=st.integers(-5, 500), share=st.floats(allow_nan=False)),
    policy=st.sampled_from(["fcfs", "lpm"]),
    limit=st.none() | st.integers(1, 10**9),
    cache=st.booleans(),
    verbose=st.booleans(),
    api_key=st.lists(TEXT, max_size=3).map(tuple),
)


@given(CONFIGS)
def test_a_configuration_survives_the_way_through_flags(config: Config) -> None:
    assert parse(*to_argv(config)) == config
