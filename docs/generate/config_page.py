"""docs/config.md: every flag of the launcher and of each service, from the configuration dataclasses."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_origin

from docs.generate.markdown import NOTICE, code, table
from rhizome.launch_config import SERVICE_CONFIGS, LaunchConfig
from shared.config import CommonConfig, flag_name, flat_fields

_INTRO = """\
# Configuration

Every option is a flag; `RHIZOME_` and its name in capitals is an environment variable that sets its default
(`--chunked-prefill-size 256` or `RHIZOME_CHUNKED_PREFILL_SIZE=256`). A wrong value or an unknown flag ends the
process at once with the reason.

`python -m rhizome.launch_server` takes its own flags and those of every service, and hands each service what
concerns it. A service that is started alone takes the common flags and its own.
"""


def render() -> str:
    """The page."""
    lines = [NOTICE, "", _INTRO]
    own = {f.name for f, _ in flat_fields(CommonConfig)}
    sections: list[tuple[str, str, type, set[str]]] = [
        ("Launcher", "`python -m rhizome.launch_server`", LaunchConfig, set()),
        ("Common to all services", "every `python -m services.NAME`", CommonConfig, set()),
    ]
    sections += [(name.capitalize(), f"`python -m services.{name}`", cls, own) for name, cls in SERVICE_CONFIGS.items()]
    for title, command, cls, skip in sections:
        fields = [(f, tp) for f, tp in flat_fields(cls) if f.name not in skip]
        lines += [f"## {title}", "", f"For {command}.", ""]
        lines += [*table(("flag", "value", "default", ""), [_row(f, tp) for f, tp in fields]), ""]
    return "\n".join(lines)


def _row(f: dataclasses.Field[Any], tp: Any) -> tuple[str, ...]:
    return (code(flag_name(f.name)), _value(f, tp), _default(f.default), f.metadata["help"].replace("<", "&lt;"))


def _value(f: dataclasses.Field[Any], tp: Any) -> str:
    if tp is bool:
        return ""
    if get_origin(tp) is Literal:
        return ", ".join(code(str(choice)) for choice in get_args(tp))
    if f.metadata["metavar"]:
        return str(f.metadata["metavar"])
    args = [a for a in get_args(tp) if isinstance(a, type) and a is not type(None)] or [tp]
    return {int: "N", float: "X", str: "TEXT"}.get(args[0], args[0].__name__)


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    return "" if value is None or value is False or value in ("", ()) else code(str(value))
