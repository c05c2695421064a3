"""Health, readiness, models, information, flush, metrics, keys, limits, CORS, errors of routing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.gateway.auth import ApiKeys
from services.gateway.config import GatewayConfig
from services.gateway.exposition import merge
from shared import messages as m
from shared.config import CommonConfig
from shared.errors import ConfigError, Overloaded, Unauthorized
from tests.unit.gateway.deployment import MODEL, Deployment, Script, beat, deployed, eventually

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


async def test_ready_says_what_is_missing(gw: Deployment) -> None:
    assert await gw.get("/health") == (200, {"status": "ok"})
    assert await gw.get("/ready") == (200, {"status": "ready", "missing": []})
    gw.service.peers.heard(beat("scheduler", gw.tokenizer.scheduler_id, engines=0))
    assert (await gw.get("/ready"))[1]["missing"] == ["no engine is ready"]
    for service, id_ in (("tokenizer", gw.tokenizer.actor.id), ("scheduler", gw.tokenizer.scheduler_id)):
        gw.service.peers.left(m.Goodbye(service, "", id_, 0.0))
    status, body = await gw.get("/ready")
    assert (status, body["missing"]) == (503, ["no tokenizer is ready", "no scheduler is ready"])


async def test_models_come_from_the_tokenizers(gw: Deployment) -> None:
    expected = {
        "id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "rhizome", "max_model_len": 2048,
    }  # fmt: skip
    assert await gw.get("/v1/models") == (200, {"object": "list", "data": [expected]})
    assert await gw.get(f"/v1/models/{MODEL}") == (200, expected)
    assert await gw.get("/v1/models/org%2Ftiny-chat") == (200, expected)
    status, body = await gw.get("/v1/models/nope")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_an_unknown_model_is_404_and_none_at_all_is_503(gw: Deployment) -> None:
    status, body = await gw.post(CHAT, {**HI, "model": "gpt-9"})
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")
    gw.service.peers.left(m.Goodbye("tokenizer", "", gw.tokenizer.actor.id, 0.0))
    async with gw.session.post(gw.url + CHAT, json=HI) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1


async def test_errors_of_the_tokenizer_keep_their_code_and_param(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(refuse=Overloaded("queue is full"))
    async with gw.session.post(gw.url + CHAT, json=HI) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["type"] == "rate_limit_error"
    assert not gw.tokenizer.aborted


async def test_a_deaf_tokenizer_is_503_and_is_told_to_abort() -> None:
    async with deployed(GatewayConfig(accept_timeout_s=0.05)) as gw:

        async def never(_: bytes, __: str) -> None:
            return None

        await gw.tokenizer.actor.bus.close()
        await gw.service.actor.bus.subscribe(gw.service.actor.subjects.generate, never)
        status, body = await gw.post(CHAT, HI)
        assert (status, body["error"]["code"]) == (503, "unavailable")


async def test_a_generation_that_outlives_its_deadline_is_504(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(silent=True)
    status, body = await gw.post(CHAT, {**HI, "timeout_s": 0.05})
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert gw.tokenizer.requests[0].timeout_s == 0.05
    await gw.tokenizer.abort_seen.wait()


async def test_routing_errors_have_openai_s_shape(gw: Deployment) -> None:
    status, body = await gw.get("/v1/nothing")
    assert (status, body["error"]["code"]) == (404, "not_found")
    async with gw.session.get(gw.url + CHAT) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert (await response.json())["error"]["code"] == "method_not_allowed"


async def test_server_info_names_services_schedulers_and_limits(gw: Deployment) -> None:
    info = m.SchedulerInfo(gw.tokenizer.scheduler_id, 1, 2, [], 3, 0, 10, 4, 20)
    actor = gw.tokenizer.actor

    async def answer(_: m.Empty) -> m.SchedulerInfo:
        return info

    await actor.serve(actor.subjects.scheduler_info(info.scheduler_id), m.Empty, answer)
    status, body = await gw.get("/server_info")
    assert status == 200
    assert {s["service"] for s in body["services"]} == {"gateway", "tokenizer", "scheduler"}
    assert body["schedulers"][0]["running_reqs"] == 2
    assert body["schedulers"][0]["retractions_total"] == 0
    assert body["gateway"]["in_flight"] == 0


async def test_flush_asks_every_scheduler(gw: Deployment) -> None:
    actor = gw.tokenizer.actor

    async def answer(_: m.Empty) -> m.Flushed:
        return m.Flushed(5, 2)

    await actor.serve(actor.subjects.scheduler_flush(gw.tokenizer.scheduler_id), m.Empty, answer)
    assert (await gw.get("/flush_cache"))[1]["released_pages"] == 5
    assert (await gw.post("/flush_cache", {}))[1]["held_pages"] == 2
    gw.service.peers.left(m.Goodbye("scheduler", "", gw.tokenizer.scheduler_id, 0.0))
    assert (await gw.get("/flush_cache"))[0] == 503


async def test_metrics_count_requests_and_times(gw: Deployment) -> None:
    await gw.events(CHAT, {**HI, "stream": True})
    await gw.post(CHAT, b"nonsense")
    async with gw.session.get(gw.url + "/metrics") as response:
        text = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain")
    samples = {
        (s.name, s.labels.get("route"), s.labels.get("status")): s
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    assert samples["rhizome_http_requests_total", CHAT, "200"].value == 1
    assert samples["rhizome_http_requests_total", CHAT, "400"].value == 1
    assert samples["rhizome_time_to_first_token_seconds_count", None, None].value == 1
    assert samples["rhizome_inter_token_latency_seconds_count", None, None].value == 2
    assert samples["rhizome_e2e_request_latency_seconds_count", None, None].value == 1
    in_flight = samples["rhizome_requests_in_flight", None, None]
    assert in_flight.value == 0
    assert in_flight.labels == {"service": "gateway", "instance": gw.service.actor.id}


def test_scrapes_of_several_instances_merge_into_one_family() -> None:
    text = '# HELP a_total Help.\n# TYPE a_total counter\na_total{x="1"} 3.0\n'
    buckets = 'h_bucket{le="1.0"} 1.0\nh_bucket{le="+Inf"} 2.0\nh_count 2.0\nh_sum 3.0\n'
    histogram = "# HELP h H.\n# TYPE h histogram\n" + buckets
    merged = merge([m.MetricsText("worker", f"worker-{i}", text + histogram) for i in range(2)]).decode()
    assert merged.count("# TYPE a_total counter") == 1
    assert merged.count("# HELP h ") == 1
    assert 'a_total{instance="worker-1",service="worker",x="1"} 3.0' in merged
    assert merged.count("h_bucket{") == 4


async def test_keys_cover_every_route_but_the_probes() -> None:
    async with deployed(GatewayConfig(api_key=("secret", "other"))) as gw:
        for path in ("/health", "/ready"):
            assert (await gw.get(path))[0] == 200
        for path in ("/v1/models", "/metrics", "/server_info", "/openapi.json", "/docs", "/nothing", "/flush_cache"):
            status, body = await gw.get(path)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert (await gw.post(CHAT, HI))[0] == 401
        assert (await gw.post(CHAT, HI, headers={"Authorization": "Bearer wrong"}))[0] == 401
        assert (await gw.post(CHAT, HI, headers={"Authorization": "Basic secret"}))[0] == 401
        assert (await gw.post(CHAT, HI, headers={"Authorization": "Bearer other"}))[0] == 200


def test_keys_come_from_flags_and_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# keys\nfirst\n\n second \n")
    keys = ApiKeys.load(["third"], str(path))
    for key in ("first", "second", "third"):
        keys.check(f"Bearer {key}")
    with pytest.raises(Unauthorized):
        keys.check("Bearer fourth")
    with pytest.raises(ConfigError):
        ApiKeys.load([], str(tmp_path / "absent"))
    with pytest.raises(ConfigError):
        ApiKeys.load([""], "")


async def test_over_the_in_flight_limit_is_429_and_a_request_that_can_never_fit_is_400() -> None:
    async with deployed(GatewayConfig(max_inflight_requests=2)) as gw:
        gw.tokenizer.script = lambda _: Script(silent=True)
        running = asyncio.create_task(gw.post(CHAT, {**HI, "n": 2}))
        await eventually(lambda: len(gw.service.table) == 2)
        status, body = await gw.post(CHAT, HI)
        assert (status, body["error"]["code"]) == (429, "overloaded")
        assert (await gw.post(CHAT, {**HI, "n": 3}))[0] == 400
        running.cancel()
        await eventually(lambda: len(gw.service.table) == 0)


async def test_a_rid_that_is_running_is_refused(gw: Deployment) -> None:
    gw.tokenizer.script = lambda _: Script(silent=True)
    running = asyncio.create_task(gw.post(CHAT, {**HI, "rid": "same"}))
    await eventually(lambda: len(gw.service.table) == 1)
    status, body = await gw.post(CHAT, {**HI, "rid": "same"})
    assert (status, body["error"]["param"]) == (400, "rid")
    running.cancel()
    await eventually(lambda: len(gw.service.table) == 0)


async def test_cors_is_off_by_default_and_answers_allowed_origins_only(gw: Deployment) -> None:
    origin = {"Origin": "https://app.example"}
    async with gw.session.get(gw.url + "/health", headers=origin) as response:
        assert "Access-Control-Allow-Origin" not in response.headers
    async with deployed(GatewayConfig(allow_origin=("https://app.example",), api_key=("k",))) as open_:
        async with open_.session.options(open_.url + CHAT, headers=origin) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
        async with open_.session.options(open_.url + CHAT, headers={"Origin": "https://evil"}) as response:
            assert response.status == 405
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_the_request_id_is_a_header(gw: Deployment) -> None:
    async with gw.session.post(gw.url + CHAT, json={**HI, "rid": "abc", "stream": True}) as response:
        assert response.headers["X-Request-Id"] == "abc"


async def test_draining_finishes_running_streams_and_takes_nothing_new(gw: Deployment) -> None:
    gate = asyncio.Event()
    gw.tokenizer.script = lambda _: Script(gate=gate)
    await asyncio.gather(gw.get("/health"), gw.get("/health"))  # leaves two open connections behind
    async with gw.session.post(gw.url + CHAT, json={**HI, "stream": True}) as response:
        await response.content.readany()
        draining = asyncio.create_task(gw.service.drain())
        await eventually(lambda: not gw.service.runner.addresses)
        assert (await gw.post(CHAT, HI))[0] == 503
        gate.set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
    await draining


async def test_streams_that_outlive_the_drain_timeout_end_with_an_error_event() -> None:
    async with deployed(GatewayConfig(common=CommonConfig(drain_timeout_s=1.05))) as gw:
        gw.tokenizer.script = lambda _: Script(gate=asyncio.Event())
        async with gw.session.post(gw.url + CHAT, json={**HI, "stream": True}) as response:
            await response.content.readany()
            draining = asyncio.create_task(gw.service.drain())
            assert b"shutting down" in await response.content.read()
        await draining
        assert gw.tokenizer.aborted == [gw.tokenizer.requests[0].rid]
