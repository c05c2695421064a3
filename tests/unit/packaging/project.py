"""The project's own metadata as tests need it: extras, what they pull in, who imports whom."""

from __future__ import annotations

import ast
import importlib.metadata
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
SERVICES = ("gateway", "tokenizer", "vision", "scheduler", "worker")


@cache
def metadata() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def base_requirements() -> list[Requirement]:
    """What `pip install rhizome` asks for directly."""
    return [Requirement(text) for text in metadata()["dependencies"]]


def requirements(extra: str) -> list[Requirement]:
    """What `pip install 'rhizome[extra]'` asks for directly: the base dependencies and the extra's own."""
    out = base_requirements()
    for requirement in (Requirement(text) for text in metadata()["optional-dependencies"][extra]):
        if requirement.name == "rhizome":
            out += [r for inner in requirement.extras for r in requirements(inner)]
        else:
            out.append(requirement)
    return out


def closure(extra: str) -> set[str]:
    """Canonical names of every distribution that a fresh environment with this extra would have."""
    found: set[str] = set()
    pending = [(r.name, frozenset(r.extras)) for r in requirements(extra) if _applies(r, "")]
    seen = set()
    while pending:
        name, extras = pending.pop()
        key = (canonicalize_name(name), extras)
        if key in seen:
            continue
        seen.add(key)
        found.add(key[0])
        for text in importlib.metadata.distribution(name).requires or []:
            requirement = Requirement(text)
            if any(_applies(requirement, e) for e in ("", *extras)):
                pending.append((requirement.name, frozenset(requirement.extras)))
    return found


def foreign_modules(extra: str) -> list[str]:
    """Top-level modules installed here that a fresh environment with this extra would not have."""
    allowed = {*closure(extra), "rhizome"}  # the project itself, installed or not
    return sorted(
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {str(canonicalize_name(owner)) for owner in owners} & allowed
    )


def imports_of(*folders: str) -> Iterator[tuple[str, str]]:
    """(file, imported module) for every import statement below these folders, lazy ones too."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from ((path.relative_to(ROOT).as_posix(), alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    yield path.relative_to(ROOT).as_posix(), node.module or ""


def _applies(requirement: Requirement, extra: str) -> bool:
    environment = {**default_environment(), "extra": extra}
    return requirement.marker is None or requirement.marker.evaluate(environment)  # type: ignore[arg-type]
