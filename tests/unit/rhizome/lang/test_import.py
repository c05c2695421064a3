"""`import rhizome` is cheap, and the language stands alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rhizome as rz
from tests.unit.packaging.project import ROOT, imports_of

HEAVY = ("asyncio", "aiohttp", "openai", "nats", "numpy", "torch", "shared", "services")


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = f"import sys, rhizome; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_program_on_the_fake_backend_needs_no_client_library() -> None:
    program = (
        "import sys, rhizome as rz\n"
        "f = rz.function(lambda s: s.__iadd__('a' + rz.gen('b')))\n"
        "assert f.run(backend=rz.FakeBackend(['c'])).text() == 'ac'\n"
        f"print([m for m in {HEAVY[1:]!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_exists() -> None:
    for name in rz.__all__:
        assert getattr(rz, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rz.nonsense  # noqa: B018


def test_the_language_imports_neither_services_nor_shared() -> None:
    seen = {module.split(".")[0] for _, module in imports_of("rhizome/lang")}
    assert not seen & {"services", "shared", "tests"}
    assert not [
        m for _, m in imports_of("rhizome/lang") if m.startswith("rhizome.") and not m.startswith("rhizome.lang")
    ]
