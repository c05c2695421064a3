"""Who may import whom: the architecture as the import statements show it."""

from __future__ import annotations

import pytest

from tests.unit.packaging.project import SERVICES, imports_of

OURS = ("shared", "services", "rhizome", "tests", "benchmarks", "docs")


def ours(*folders: str) -> list[tuple[str, str]]:
    return [(file, module) for file, module in imports_of(*folders) if module.split(".")[0] in OURS]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_only_itself_and_shared(service: str) -> None:
    allowed = ("shared", f"services.{service}")
    strangers = [
        (file, module)
        for file, module in ours(f"services/{service}")
        if not any(module == a or module.startswith(a + ".") for a in allowed)
    ]
    assert not strangers


def test_shared_imports_nothing_of_ours_but_itself() -> None:
    assert not [(file, module) for file, module in ours("shared") if module.split(".")[0] != "shared"]


def test_rhizome_knows_services_only_by_their_configuration_and_only_in_the_launcher() -> None:
    seen = {(file, module) for file, module in ours("rhizome") if module.split(".")[0] not in ("rhizome", "shared")}
    assert seen == {("rhizome/launch_config.py", f"services.{service}.config") for service in SERVICES}


@pytest.mark.parametrize(
    "folder", ["shared", "services/gateway", "services/tokenizer", "services/scheduler", "rhizome"]
)
def test_only_services_with_a_model_import_torch_and_nothing_imports_transformers(folder: str) -> None:
    heavy = [
        (file, module)
        for file, module in imports_of(folder)
        if module.split(".")[0] in ("torch", "transformers") or module.startswith("shared.checkpoint")
        if not file.startswith("shared/checkpoint/")
    ]
    assert not heavy


def test_the_worker_does_without_transformers() -> None:
    assert not [f for f, module in imports_of("services/worker") if module.split(".")[0] == "transformers"]


@pytest.mark.parametrize("service", SERVICES)
def test_in_a_service_only_service_py_and_main_know_the_bus(service: str) -> None:
    allowed = {f"services/{service}/service.py", f"services/{service}/__main__.py"}
    users = {file for file, module in imports_of(f"services/{service}") if module in ("shared.bus", "nats")}
    assert users <= allowed
