"""Chats with tools on their way through the service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from shared import messages as m
from shared.bus import LocalBus
from shared.errors import (
    InvalidRequest,
)
from shared.messages.generation import LENGTH
from tests.unit.tokenizer import tiny
from tests.unit.tokenizer.service_stack import TEMPLATE, Stack, build


@pytest.fixture
async def big(tmp_path: Path) -> AsyncIterator[Stack]:
    """A model with room for tools."""
    folder = tiny.write_model(tmp_path / "big", chat_template=TEMPLATE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    async for built in build(folder, LocalBus()):
        yield built


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


async def test_a_grammar_that_the_tools_made_is_refused_in_their_name(big: Stack) -> None:
    chat = m.ChatInput([{"role": "user", "content": "2+2"}], tools=[TOOL], tool_choice="required")
    big.scheduler.refusal = InvalidRequest("no such keyword", param="structural_tag")
    with pytest.raises(InvalidRequest) as refusal:
        await big.client.generate(chat=chat)
    assert refusal.value.param == "tools"
    big.scheduler.refusal = None
    await big.client.generate(chat=chat)
    await big.scheduler.requests.get()
    request = await big.scheduler.requests.get()
    assert request.grammar is not None
    assert request.grammar.kind == "structural_tag"
    answer = big.ids('<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>')
    await big.scheduler.say(request.handle, answer, len(answer), LENGTH)
    delta = await big.client.ending()
    assert [(c.index, c.name, c.arguments) for c in delta.tool_calls or ()] == [(0, "add", '{"a": 2}')]
    assert (delta.text, delta.finish_reason, delta.token_ids) == ("", "length", answer)


async def test_a_grammar_that_fails_while_it_is_compiled_fails_in_its_name_too(big: Stack) -> None:
    chat = m.ChatInput([{"role": "user", "content": "2+2"}], tools=[TOOL], tool_choice="required")
    await big.client.generate(chat=chat)
    handle = (await big.scheduler.requests.get()).handle
    none, info = np.array([], np.int32), m.ErrorInfo("invalid_request", "too large", "structural_tag")
    batch = m.TokenBatch(
        big.scheduler.id, np.array([], np.uint32), none, none, none, np.array([], np.uint8), none,
        errors=[m.TokenError(handle, info)],
    )  # fmt: skip
    await big.scheduler.actor.send(big.actor.subjects.tokenizer_tokens(big.actor.id), batch)
    assert (await big.client.ending()).error == m.ErrorInfo("invalid_request", "too large", "tools")


async def test_tokenize_shows_the_prompt_that_generate_would_use(big: Stack) -> None:
    chat = m.ChatInput([{"role": "user", "content": "2+2"}], tools=[TOOL])
    tokens = await big.client.actor.ask(big.actor.subjects.tokenize, m.Tokenize(chat=chat), m.Tokens)
    await big.client.generate(chat=chat)
    assert (await big.scheduler.requests.get()).input_ids.tolist() == tokens.token_ids
