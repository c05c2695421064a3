"""A framework of agents on the real stack: pydantic-ai asks for typed answers, by a forced call and by a schema."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.e2e.stack import Stack


class Town(BaseModel):
    name: str = Field(max_length=12)
    size: Literal["small", "large"]


@pytest.mark.parametrize("output", [Town, NativeOutput(Town)], ids=["by a call", "by a schema"])
async def test_an_agent_gets_an_instance(stack: Stack, output: Any) -> None:
    provider = OpenAIProvider(base_url=f"{stack.url}/v1", api_key="none")
    model = OpenAIChatModel("SmolLM2-135M-Instruct", provider=provider)
    agent = Agent(model, output_type=output, model_settings={"temperature": 0, "max_tokens": 100})
    done = await agent.run("Name a town in France.")
    assert isinstance(done.output, Town)
    assert done.usage.requests == 1
    async with agent.run_stream("Name a town in France.") as stream:
        assert await stream.get_output() == done.output
