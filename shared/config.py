"""Frozen configuration dataclasses <-> command line.

A field made with `option()` is a flag: `max_queued_requests` is `--max-queued-requests`, and
`RHIZOME_MAX_QUEUED_REQUESTS` in the environment is its default. Nested configuration dataclasses are flattened.
Each `__main__` calls `parse_config` once and passes the result down; nothing mutates it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from shared.errors import ConfigError

T = TypeVar("T")


def option(default: Any = MISSING, *, help: str, group: str = "general", metavar: str | None = None) -> Any:
    """A configuration field with its help text (unit included) and the `--help` group it is listed in."""
    return dataclasses.field(default=default, metadata={"help": help, "group": group, "metavar": metavar})


@dataclass(frozen=True, slots=True)
class CommonConfig:
    """What every service takes."""

    nats_url: str = option("nats://127.0.0.1:4222", help="NATS server(s), comma-separated", group="bus")
    deployment: str = option("default", help="name that separates deployments on one NATS server", group="bus")
    name: str = option(
        "", help="name of this instance, e.g. tokenizer-0; a new instance replaces the old one of its name "
        "(default: scheduler-0, elsewhere made of host and process id)", group="bus",
    )  # fmt: skip
    log_level: Literal["debug", "info", "warning", "error"] = option("info", help="least level logged", group="logging")
    log_format: Literal["text", "json"] = option("text", help="log lines for people or for machines", group="logging")
    metrics_port: int = option(0, help="serve Prometheus metrics on this port; 0 = off", group="logging")
    drain_timeout_s: float = option(10.0, help="on SIGTERM, seconds to finish running work", group="bus")

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name):
            raise ConfigError(f"--name {self.name!r}: use 1 to 64 letters, digits, '-' and '_'")


def parse_config(cls: type[T], prog: str, description: str, argv: Sequence[str] | None = None) -> T:
    """Command line and environment to a configuration; prints the reason and exits with 2 if they are wrong."""
    parser = new_parser(prog, description)
    try:
        add_flags(parser, cls)
        return from_namespace(cls, parser.parse_args(argv))
    except ConfigError as fault:
        parser.error(fault.message)


def new_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser that shows defaults and units, takes no abbreviations, and whose errors are one line and status 2."""
    return _Parser(prog=prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)


def add_flags(parser: argparse.ArgumentParser, *classes: type, skip: frozenset[str] = frozenset()) -> None:
    """Add one flag per field of the classes, grouped; a field that several classes share is added once."""
    groups: dict[str | None, Any] = {g.title: g for g in parser._action_groups}
    seen: set[str] = set(skip)
    for f, tp in (pair for cls in classes for pair in flat_fields(cls)):
        if f.name in seen:
            continue
        seen.add(f.name)
        title = f"{f.metadata['group']} options"
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        _add_flag(group, f, tp)


def from_namespace(cls: type[T], args: argparse.Namespace) -> T:
    """Build a configuration (nested ones too) from parsed flags; `__post_init__` may raise ConfigError."""
    types_ = typing.get_type_hints(cls)
    kwargs = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        tp = types_[f.name]
        nested = isinstance(tp, type) and dataclasses.is_dataclass(tp)
        kwargs[f.name] = from_namespace(tp, args) if nested else getattr(args, f.name)
    return cls(**kwargs)


def to_argv(config: Any) -> list[str]:
    """Configuration to flags, leaving out what equals its default: how the launcher starts a service.

    A default is spelled out where the environment, which the service inherits, says otherwise.
    """
    argv: list[str] = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            argv += to_argv(value)
        elif value != f.default or (value is not None and env_name(f.name) in os.environ):
            flag = flag_name(f.name)
            if isinstance(value, bool):
                argv.append(flag if value else "--no-" + flag[2:])
            elif isinstance(value, tuple):
                argv += [f"{flag}={item}" for item in value]
            else:
                argv.append(f"{flag}={value}")
    return argv


def flat_fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Fields of a configuration class and of those nested in it, with their types."""
    types_ = typing.get_type_hints(cls)
    out: list[tuple[dataclasses.Field[Any], Any]] = []
    for f in dataclasses.fields(cls):
        tp = types_[f.name]
        out += flat_fields(tp) if dataclasses.is_dataclass(tp) and isinstance(tp, type) else [(f, tp)]
    return out


def flag_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def env_name(field_name: str) -> str:
    return "RHIZOME_" + field_name.upper()


def _add_flag(group: Any, f: dataclasses.Field[Any], tp: Any) -> None:
    help_, default, required = f.metadata["help"], f.default, f.default is MISSING
    env = os.environ.get(env_name(f.name))
    flags = [flag_name(f.name)]
    if tp is bool:
        if env is not None:
            default = _parse_bool(f.name, env)
        if f.default is True or env is not None:
            group.add_argument(*flags, action=argparse.BooleanOptionalAction, default=default, help=help_)
        else:
            group.add_argument(*flags, action="store_true", default=default, help=help_)
        return
    kwargs: dict[str, Any] = {"help": help_, "metavar": f.metadata["metavar"]}
    tp, many = _scalar(tp)
    if get_origin(tp) is Literal:
        kwargs["choices"] = get_args(tp)
        kwargs["type"] = type(get_args(tp)[0])
    else:
        kwargs["type"] = tp
        kwargs["metavar"] = f.metadata["metavar"] or {int: "N", float: "X", str: "TEXT"}[tp]
    if env is not None:
        try:
            value = kwargs["type"](env)
        except ValueError as fault:
            raise ConfigError(f"{env_name(f.name)}={env!r}: {fault}") from fault
        if value not in kwargs.get("choices", (value,)):
            raise ConfigError(f"{env_name(f.name)}={env!r}: choose from {', '.join(map(str, kwargs['choices']))}")
        default, required = ((value,) if many else value), False
    if many:
        kwargs["action"] = _Extend
    group.add_argument(*flags, default=None if default is MISSING else default, required=required, **kwargs)


def _scalar(tp: Any) -> tuple[Any, bool]:
    if get_origin(tp) in (Union, types.UnionType):
        tp = next(a for a in get_args(tp) if a is not type(None))
    if get_origin(tp) is tuple:
        return get_args(tp)[0], True
    return tp, False


def _parse_bool(name: str, text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ConfigError(f"{env_name(name)}={text!r}: use true or false")


class _Extend(argparse.Action):
    """Collect repeated flags into a tuple, replacing the default at the first one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        current = getattr(namespace, self.dest)
        setattr(namespace, self.dest, (*(() if current is self.default else current), values))


class _HelpFormatter(argparse.HelpFormatter):
    """Adds the default to each flag's help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help and action.default not in (None, "", (), argparse.SUPPRESS, False):
            return f"{action.help} (default: %(default)s)"
        return action.help


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")
