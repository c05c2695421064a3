"""A Rhizome deployment over NATS, without a gateway: requests on the tokenizers' subject, tokens on one of our own.

Subjects and messages are the public ones of docs/subjects.md and docs/messages.md. A stream whose message was lost,
whose tokenizer is gone or whose connection closes ends in an error, never in silence.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import nats
import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from rhizome.lang.backends.base import Completion
from rhizome.lang.backends.native import Body, NativeBackend
from rhizome.lang.conversation import Prompt
from rhizome.lang.errors import BackendError, Unsupported
from rhizome.lang.loops import PerLoop
from rhizome.lang.sampling import GRAMMARS, SamplingParams

ACCEPT_TIMEOUT_S = 30.0
MEDIA_TIMEOUT_S = 120.0
"""More, for a request with pictures, which are encoded first."""
SILENT_AFTER_S = 10.0
"""A tokenizer sends a heartbeat every second; after this long without one its streams are lost."""
_WATCH_S = 1.0
_END = {"closed": True}
MAX_PICTURE_CHARS = 3 * 1024 * 1024
"""Of all pictures of a request, as base64: a message holds four."""


class NatsEndpoint(NativeBackend):
    """Args:
    url: NATS server(s), comma-separated.
    deployment: as given to the services' --deployment.
    """

    def __init__(
        self,
        url: str = "nats://127.0.0.1:4222",
        deployment: str = "default",
        chat_template_name: str | None = None,
        *,
        prefix_hints: bool = True,
    ) -> None:
        super().__init__(chat_template_name, prefix_hints)
        self._root = f"rz.v1.{deployment}"
        self._links = PerLoop(partial(_linked, url.split(","), self._root))

    async def generate(self, prompt: Prompt, params: SamplingParams, *, with_tokens: bool = False) -> list[Completion]:
        if params.tools:
            raise Unsupported("tools go through a gateway: use RuntimeEndpoint")
        return await super().generate(prompt, params, with_tokens=with_tokens)

    async def call(self, body: Body) -> Any:
        link = await self._links.get()
        requests, many = requests_of(body)
        work = [asyncio.ensure_future(_last(link.stream(request))) for request in requests]
        try:
            answers = await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
        return answers if many else answers[0]

    async def events(self, body: Body) -> AsyncIterator[Any]:
        requests, many = requests_of(body)
        if many:
            raise Unsupported("a batch is not streamed")
        link = await self._links.get()
        stream = link.stream({**requests[0], "stream": True})
        try:
            async for answer in stream:
                yield answer
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def model_name(self) -> str:
        """Of any tokenizer, from its heartbeat."""
        link = await self._links.get()
        return await link.model()

    async def encode(self, source: str | list[dict[str, Any]], *, special: bool = True) -> list[int]:
        if isinstance(source, str):
            body: Body = {"text": source, "add_special_tokens": special}
        else:
            body = {"chat": {"messages": source, "add_generation_prompt": False}}
        link = await self._links.get()
        return list((await link.ask(f"{self._root}.tokenizer.tokenize", body))["token_ids"])

    async def decode(self, ids: list[int]) -> str:
        link = await self._links.get()
        return str((await link.ask(f"{self._root}.tokenizer.detokenize", {"token_ids": ids}))["text"])

    async def flush_cache(self) -> Any:
        link = await self._links.get()
        ids = await link.schedulers()
        answers = [await link.ask(f"{self._root}.scheduler.{id_}.flush", {}) for id_ in ids]
        return dict(zip(ids, answers, strict=True))

    async def get_server_info(self) -> Any:
        link = await self._links.get()
        ids = await link.schedulers()
        return {"schedulers": [await link.ask(f"{self._root}.scheduler.{id_}.info", {}) for id_ in ids]}

    async def aclose(self) -> None:
        await self._links.close()


class _Link:
    """One connection of one loop: routes deltas to streams, watches the tokenizers."""

    def __init__(self, client: Client, root: str) -> None:
        self._client, self._root = client, root
        self._reply = f"rhizome-lang.{uuid.uuid4().hex}"
        self._streams: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._owners: dict[str, str] = {}
        self.seen: dict[str, tuple[str, float]] = {}
        """Service and monotonic time of each instance's last heartbeat."""
        self._models: list[str] = []
        self._heard = asyncio.Event()
        self._scheduler_heard = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._client.subscribe(self._reply, cb=self._on_deltas)
        await self._client.subscribe(f"{self._root}.event.heartbeat", cb=self._on_heartbeat)
        await self._client.subscribe(f"{self._root}.event.goodbye", cb=self._on_goodbye)
        await self._client.flush()
        self._watch = asyncio.get_running_loop().create_task(self._watch_owners())

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for queue in self._streams.values():
            queue.put_nowait(_END)
        with suppress(nats.errors.Error, OSError):
            await self._client.close()

    async def model(self) -> str:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), ACCEPT_TIMEOUT_S)
        if not self._models:
            raise BackendError(f"no tokenizer of {self._root} is ready: start the deployment or check deployment=")
        return self._models[0]

    async def schedulers(self) -> list[str]:
        """Ids of the schedulers, once there is one.

        Raises:
            BackendError: none has sent a heartbeat.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._scheduler_heard.wait(), SILENT_AFTER_S)
        ids = [id_ for id_, (service, _) in self.seen.items() if service == "scheduler"]
        if not ids:
            raise BackendError(f"no scheduler of {self._root} is ready: start the deployment or check deployment=")
        return ids

    async def ask(self, subject: str, body: dict[str, Any]) -> Any:
        """Request and reply.

        Raises:
            BackendError: nobody answers, or the answer is an error.
        """
        timeout_s = ACCEPT_TIMEOUT_S + (MEDIA_TIMEOUT_S if body.get("media") else 0.0)
        try:
            message = await self._client.request(subject, orjson.dumps(body), timeout=timeout_s)
        except nats.errors.NoRespondersError as fault:
            raise BackendError(f"nobody listens on {subject}: is the deployment up?", 503) from fault
        except (nats.errors.Error, TimeoutError) as fault:
            raise BackendError(f"{subject}: {fault or 'no answer in time'}") from fault
        answer = orjson.loads(message.data)
        if "error" in answer:
            raise BackendError(f"{answer['error']['code']}: {answer['error']['message']}", 400)
        return answer

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Answers in the form of /generate, each with the whole text so far; leaving early aborts the request."""
        rid = request["rid"]
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._streams[rid] = queue
        finished = False
        try:
            accepted = await self.ask(f"{self._root}.tokenizer.generate", {**request, "reply": self._reply})
            owner = self._owners[rid] = accepted["tokenizer_id"]
            self.seen[owner] = "tokenizer", time.monotonic()  # its answer is a sign of life
            total = _Total(request, accepted["prompt_tokens"])
            while not finished:
                delta = await queue.get()
                finished = delta is _END or "error" in delta or "finish_reason" in delta
                yield total.add(delta)
        finally:
            del self._streams[rid]
            known = self._owners.pop(rid, None)
            if not finished:
                await self._abort(rid, known)

    async def _abort(self, rid: str, owner: str | None) -> None:
        owners = [owner] if owner else [id_ for id_, (service, _) in self.seen.items() if service == "tokenizer"]
        with suppress(nats.errors.Error):
            for id_ in owners:
                await self._client.publish(f"{self._root}.tokenizer.{id_}.abort", orjson.dumps({"rids": [rid]}))

    async def _on_deltas(self, message: Msg) -> None:
        for delta in orjson.loads(message.data)["deltas"]:
            queue = self._streams.get(delta["rid"])
            if queue is not None:
                queue.put_nowait(delta)

    async def _on_heartbeat(self, message: Msg) -> None:
        beat = orjson.loads(message.data)
        self.seen[beat["id"]] = beat["service"], time.monotonic()
        if beat["service"] == "scheduler":
            self._scheduler_heard.set()
        model = beat.get("facts", {}).get("model")
        if beat["service"] == "tokenizer" and model and model not in self._models:
            self._models.append(model)
            self._heard.set()

    async def _on_goodbye(self, message: Msg) -> None:
        bye = orjson.loads(message.data)
        for id_ in [i for i in self.seen if i == bye["id"] or (not bye["id"] and i.startswith(bye["name"] + "-"))]:
            del self.seen[id_]
            self._lost(id_)

    async def _watch_owners(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            limit = time.monotonic() - SILENT_AFTER_S
            for id_ in {owner for owner in self._owners.values() if self.seen.get(owner, ("", limit + 1))[1] < limit}:
                self._lost(id_)

    def _lost(self, tokenizer_id: str) -> None:
        for rid, owner in self._owners.items():
            if owner == tokenizer_id and rid in self._streams:
                self._streams[rid].put_nowait(_END)


async def _linked(servers: list[str], root: str) -> AsyncGenerator[_Link, None]:
    """An open connection.

    Raises:
        BackendError: there is no server.
    """
    client = Client()
    try:
        await client.connect(
            servers=servers, name="rhizome-lang", connect_timeout=5, max_reconnect_attempts=-1, error_cb=_ignore
        )
    except (OSError, nats.errors.Error, TimeoutError) as fault:
        raise BackendError(f"NATS at {','.join(servers)}: {fault or 'no answer'}") from fault
    link = _Link(client, root)
    try:
        await link.open()
        yield link
    finally:
        await link.close()


class _Total:
    """Deltas of one request added up to an answer of /generate."""

    def __init__(self, request: dict[str, Any], prompt_tokens: int) -> None:
        self._rid, self._wants_logprobs = request["rid"], request.get("return_logprob", False)
        self._text, self._ids, self._seq = "", [], 0  # type: ignore[var-annotated]
        self._meta: dict[str, Any] = {"id": self._rid, "prompt_tokens": prompt_tokens, "cached_tokens": 0}
        self._before: list[Any] = []
        self._after: list[Any] = []

    def add(self, delta: dict[str, Any]) -> dict[str, Any]:
        """The answer with this delta.

        Raises:
            BackendError: the stream broke.
        """
        if delta is _END:
            raise BackendError("the tokenizer of this request is gone, or the NATS connection was closed", 503)
        if delta.get("error"):
            raise BackendError(f"{delta['error']['code']}: {delta['error']['message']}", 400)
        if delta["seq"] != self._seq:
            raise BackendError("a message of this stream was lost", 503)
        self._seq += 1
        self._text += delta.get("text", "")
        self._ids += delta.get("token_ids", [])
        self._after += [_entry(t) for t in delta.get("logprobs", [])]
        prompt = delta.get("prompt")
        if prompt:
            self._meta["cached_tokens"] = prompt.get("cached_tokens", 0)
            self._before += [_entry(t) for t in prompt.get("logprobs", [])]
        self._meta["completion_tokens"] = delta.get("completion_tokens", 0)
        meta = {**self._meta, "finish_reason": _finish(delta)}
        if self._wants_logprobs:
            meta |= {"input_token_logprobs": list(self._before), "output_token_logprobs": list(self._after)}
        return {"text": self._text, "output_ids": list(self._ids), "meta_info": meta}


def requests_of(body: Body) -> tuple[list[dict[str, Any]], bool]:
    """A body of /generate as messages to a tokenizer, and whether its answer is a list.

    Raises:
        Unsupported: pictures that are too large for a message.
    """
    sampling = {name: v for name, v in body["sampling_params"].items() if name not in ("n", "sampling_seed", *GRAMMARS)}
    n, seed = body["sampling_params"].get("n") or 1, body["sampling_params"].get("sampling_seed")
    base: dict[str, Any] = {"stream": False}
    for kind in GRAMMARS:
        if (source := body["sampling_params"].get(kind)) is not None:
            base["grammar"] = {"kind": kind, "source": source}
    for name in ("return_logprob", "logprob_start_len", "top_logprobs_num"):
        if name in body:
            base[name] = body[name]
    field = "text" if "text" in body else "input_ids"
    given = body[field]
    many = isinstance(given, list) and (field == "text" or bool(given and isinstance(given[0], list)))
    prompts = given if many else [given]
    pictures = _pictures(body.get("image_data"), len(prompts), many=many)
    out = []
    for prompt, media in zip(prompts, pictures, strict=True):
        own_base = {**base, "media": [{"url": url} for url in media]} if media else base
        for choice in range(n):
            own = {**sampling, **({"seed": seed + choice} if seed is not None else {})}
            out.append({**own_base, "rid": uuid.uuid4().hex, field: prompt, "sampling": own})
    return out, many or n > 1


def _pictures(image_data: str | list[Any] | None, count: int, *, many: bool) -> list[list[str]]:
    """The pictures of each prompt."""
    if image_data is None:
        return [[] for _ in range(count)]
    of_prompts = image_data if many and isinstance(image_data, list) else [image_data] * count
    out = [[one] if isinstance(one, str) else list(one) for one in of_prompts]
    if (size := max(sum(map(len, urls)) for urls in out)) > MAX_PICTURE_CHARS:
        raise Unsupported(
            f"pictures of {size:,} characters are too large for a message on the bus: use RuntimeEndpoint, or URLs"
        )
    return out


async def _last(stream: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    try:
        async for piece in stream:
            answer = piece
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
    return answer


async def _ignore(_: Exception) -> None:
    """nats-py reconnects by itself; what is lost meanwhile shows in the streams."""


def _entry(token: dict[str, Any]) -> list[Any]:
    return [token.get("logprob"), token["token_id"], token["token"]]


def _finish(delta: dict[str, Any]) -> dict[str, Any] | None:
    reason = delta.get("finish_reason")
    if reason is None:
        return None
    if reason == "abort":
        return {"type": "abort", "message": "the generation was aborted"}
    more = {"matched": delta["matched_stop"]} if delta.get("matched_stop") is not None else {}
    return {"type": reason, **more}
