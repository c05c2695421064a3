"""Each extra is enough for its service, and no more than it uses.

What a fresh virtual environment would hold is computed exactly from the installed distributions' metadata (the
extra's requirements, theirs, and so on). Python then runs in a process of its own with an import system in which
every other installed distribution is absent, and imports every module of the service. That tells the same as
creating an environment, in a second and without a network.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest
from packaging.utils import canonicalize_name

from tests.unit.packaging.project import (
    ROOT,
    SERVICES,
    base_requirements,
    foreign_modules,
    imports_of,
    metadata,
    requirements,
)

PROGRAM = """
import importlib, importlib.machinery, importlib.util, pkgutil, sys

FOREIGN = set(sys.argv[2].split(","))

class Filtered(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in FOREIGN else super().find_spec(name, path, target)

sys.meta_path[:] = [Filtered if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
package = importlib.import_module(sys.argv[1])
if importlib.util.find_spec(sys.argv[1] + ".__main__"):
    importlib.import_module(sys.argv[1] + ".__main__")
for info in pkgutil.walk_packages(package.__path__, sys.argv[1] + "."):
    importlib.import_module(info.name)
print("imported")
"""
SUBJECTS = [(f"services.{service}", service) for service in SERVICES] + [
    ("rhizome.models", "models"),
    ("rhizome.lang", "lang"),
]


@pytest.mark.parametrize(("package", "extra"), SUBJECTS)
def test_the_extra_suffices_to_import_every_module(package: str, extra: str) -> None:
    foreign = ",".join(foreign_modules(extra))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, package, foreign], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "imported\n", done.stderr


def test_the_import_system_hides_what_the_extra_does_not_bring() -> None:
    assert "torch" in foreign_modules("gateway")
    assert {"torch", "xgrammar"} <= {*foreign_modules("scheduler")}
    assert "torch" not in foreign_modules("worker")
    assert "av" in foreign_modules("vision")
    assert "aiohttp" not in foreign_modules("gateway")
    assert "pytest" in foreign_modules("launcher")


@pytest.mark.parametrize(
    ("extra", "folders"),
    [
        ("gateway", ("services/gateway",)),
        ("tokenizer", ("services/tokenizer", "shared")),
        ("scheduler", ("services/scheduler",)),
        ("xgrammar", ("services/scheduler",)),
        ("vision", ("services/vision", "shared/checkpoint")),
        ("video", ("services/vision", "rhizome/lang")),
        ("worker", ("services/worker", "shared/checkpoint")),
        ("models", ("rhizome/models",)),
        ("lang", ("rhizome/lang",)),
        ("bench", ("benchmarks",)),
    ],
)
def test_every_requirement_of_an_extra_is_imported(extra: str, folders: tuple[str, ...]) -> None:
    base = {r.name for r in base_requirements()}
    owners = importlib.metadata.packages_distributions()
    used = {
        canonicalize_name(owner) for _, module in imports_of(*folders) for owner in owners.get(module.split(".")[0], [])
    }
    declared = {canonicalize_name(r.name) for r in requirements(extra) if r.name not in base}
    assert declared <= used


def test_every_base_requirement_is_imported_by_shared() -> None:
    owners = importlib.metadata.packages_distributions()
    used = {canonicalize_name(o) for _, module in imports_of("shared") for o in owners.get(module.split(".")[0], [])}
    assert {canonicalize_name(r.name) for r in base_requirements()} <= used


def test_every_requirement_is_pinned_by_the_constraints() -> None:
    pinned = {
        canonicalize_name(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    asked = {canonicalize_name(r.name) for extra in metadata()["optional-dependencies"] for r in requirements(extra)}
    assert asked - {"triton"} <= pinned  # a GPU build of torch asks for one version of triton: no pin may contradict it
