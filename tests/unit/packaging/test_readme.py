"""README's promises that can be checked without starting anything."""

from __future__ import annotations

import ast
import json
import re

import pytest

from services.gateway.openai_bodies import ChatCompletionBody
from shared import messages as m
from shared import schema, wire
from shared.subjects import Subjects
from tests.unit.packaging.project import ROOT

README = (ROOT / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_compile() -> None:
    for block in code_blocks("python"):
        compile(block, "README.md", "exec")


def test_the_nats_example_sends_a_valid_request_to_the_public_subject() -> None:
    block = next(block for block in code_blocks("python") if "nats.connect" in block)
    literals = [
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "request"
    ]
    request = wire.decode(m.GenerateRequest, json.dumps(literals[0]).encode())
    Subjects().check_reply(request.reply)
    assert f'"{Subjects().generate}"' in block


@pytest.mark.parametrize("page", ["README.md", "docs/structured_output.md", "docs/tools.md"])
def test_the_curl_examples_are_bodies_that_the_gateway_takes(page: str) -> None:
    bodies = re.findall(r"-d '(.*?)'", (ROOT / page).read_text(), re.DOTALL)
    assert bodies
    for body in bodies:
        chat = schema.parse(ChatCompletionBody, json.loads(body))
        assert chat.messages[0].role == "user"


def test_links_lead_to_files() -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_make_knows_every_target_that_people_and_ci_call() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"help", "setup", "serve", "test", "check", "fmt", "docs", "bench", "up", "down"} <= targets
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make check" in ci
    assert "make test" in ci
