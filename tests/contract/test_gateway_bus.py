"""The gateway over a real NATS server: streams, aborts, metrics of several instances, a gateway without a tokenizer."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import aiohttp

from services.gateway.config import GatewayConfig
from services.gateway.service import GatewayService
from shared import log
from shared.actor import Actor
from shared.bus import NatsBus
from shared.config import CommonConfig
from tests.unit.gateway.deployment import MODEL, Script, deployed

CHAT = "/v1/chat/completions"
HI = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


async def test_streams_aborts_and_scrapes_work_over_nats(nats_url: str) -> None:
    deployment = f"test-{secrets.token_hex(4)}"
    config = GatewayConfig(common=CommonConfig(nats_url=nats_url, deployment=deployment))
    mine, theirs = await NatsBus.connect(nats_url, "gateway"), await NatsBus.connect(nats_url, "tokenizer")
    async with deployed(config, mine, theirs) as gw:
        events = await gw.events(CHAT, {**HI, "stream": True})
        assert events[-1] == "[DONE]"
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == 'Hello "world" é'
        gw.tokenizer.script = lambda _: Script(gate=asyncio.Event())
        async with gw.session.post(gw.url + CHAT, json={**HI, "stream": True}) as response:
            await response.content.readany()
            response.close()
        await gw.tokenizer.abort_seen.wait()
        async with gw.session.get(gw.url + "/metrics") as response:
            assert f'instance="{gw.service.actor.id}"' in await response.text()
        await gw.tokenizer.actor.bus.close()
        status, body = await gw.post(CHAT, HI)
        assert (status, body["error"]["code"]) == (503, "unavailable")


async def test_a_gateway_alone_is_alive_but_not_ready(nats_url: str) -> None:
    common = CommonConfig(nats_url=nats_url, deployment=f"test-{secrets.token_hex(4)}")
    config = replace(GatewayConfig(common=common), port=0)
    service = GatewayService(
        Actor("gateway", config.common, await NatsBus.connect(nats_url, "gateway"), log.setup("test", "error")), config
    )
    await service.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{service.port}") as session:
        assert (await session.get("/health")).status == 200
        response = await session.get("/ready")
        assert (response.status, (await response.json())["missing"]) == (
            503, ["no tokenizer is ready", "no scheduler is ready"],
        )  # fmt: skip
        assert (await session.post(CHAT, json=HI)).status == 503
    await service.stop()
