"""Things too large for a message, for a short while: the object store of the bus.

`NatsObjects` keeps them in the memory of the NATS server (JetStream), `LocalObjects` in this process. Both are reached
through `shared.bus`. Objects expire by themselves; a store that is full refuses, it never drops what others still need.
Used where shared memory does not reach: between hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.js import errors as js_errors
from nats.js.api import ObjectMeta, ObjectMetaOptions, ObjectStoreConfig, StorageType

from shared.errors import NotFound, Overloaded, Unavailable

T = TypeVar("T")
BUCKET_BYTES = 256 * 1024 * 1024
"""Most bytes in one bucket. The server reserves them, so a server of 1 GiB has room for four."""
OBJECT_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1024 * 1024
_WITHOUT_JETSTREAM = (
    "the NATS server has no object store: enable JetStream (`jetstream {}` in its configuration, or -js)"
)
_FULL = (10023, 10028, 10047, 10077)
"""Of JetStream: insufficient resources, insufficient memory, storage resources exceeded, maximum bytes exceeded."""
_OTHER_CONFIG = 10058
"""Of JetStream: the bucket is there with other limits, of another version perhaps. They will do."""
_NOT_ENABLED = (10039, 10076)
"""Of JetStream: not enabled for the account, not enabled."""


class ObjectStore(Protocol):
    """Named bytes in buckets. Buckets come into being by themselves."""

    async def put_object(self, bucket: str, name: str, data: bytes, ttl_s: float) -> None:
        """Keep `data` for `ttl_s` seconds; all objects of a bucket live as long as the first one was to.

        Raises:
            Overloaded: the bucket is full.
            Unavailable: there is no store, or it does not answer.
        """

    async def get_object(self, bucket: str, name: str) -> bytes:
        """Read an object.

        Raises:
            NotFound: it expired, was deleted or never existed.
            Unavailable: there is no store, or it does not answer.
        """

    async def delete_object(self, bucket: str, name: str) -> None:
        """Delete an object; nothing happens when there is none.

        Raises:
            Unavailable: there is no store, or it does not answer.
        """


class NatsObjects:
    """On the NATS server. A server that was restarted has lost its buckets: the next `put_object` makes them again."""

    def __init__(self, client: Client) -> None:
        self._js = client.jetstream(timeout=5.0)

    async def put_object(self, bucket: str, name: str, data: bytes, ttl_s: float) -> None:
        async def put() -> None:
            config = ObjectStoreConfig(ttl=ttl_s, storage=StorageType.MEMORY, max_bytes=BUCKET_BYTES)
            try:
                store = await self._js.create_object_store(bucket, config)
            except js_errors.BadRequestError as fault:
                if fault.err_code != _OTHER_CONFIG:
                    raise
                store = await self._js.object_store(bucket)
            meta = ObjectMeta(name=name, options=ObjectMetaOptions(max_chunk_size=_CHUNK_BYTES))
            await store.put(name, data, meta)

        await self._bounded(put, bucket)

    async def get_object(self, bucket: str, name: str) -> bytes:
        async def get() -> bytes:
            # Chunk by chunk: the library's own way waits for ever for one that expired meanwhile.
            info = await (await self._js.object_store(bucket)).get_info(name)
            chunks, out, seq = f"$O.{bucket}.C.{info.nuid}", bytearray(), 0
            for _ in range(info.chunks or 0):
                found = await self._js.get_msg(f"OBJ_{bucket}", seq + 1, chunks, direct=True, next=True)
                out += found.data or b""
                seq = found.seq or 0
            if len(out) != info.size:
                raise js_errors.NotFoundError
            return bytes(out)

        try:
            return await self._bounded(get, bucket)
        except js_errors.NotFoundError as fault:
            raise NotFound(f"no object {name} in {bucket}: it expired, or never existed") from fault

    async def delete_object(self, bucket: str, name: str) -> None:
        async def delete() -> None:
            await (await self._js.object_store(bucket)).delete(name)

        with contextlib.suppress(js_errors.NotFoundError):
            await self._bounded(delete, bucket)

    async def _bounded(self, call: Callable[[], Awaitable[T]], bucket: str) -> T:
        try:
            async with asyncio.timeout(OBJECT_TIMEOUT_S):
                return await call()
        except js_errors.NotFoundError:
            raise
        except js_errors.APIError as fault:
            if fault.err_code in _FULL:
                raise Overloaded(f"object store {bucket} is full: try again in a minute") from fault
            if fault.code is None or fault.err_code in _NOT_ENABLED:  # no answer at all has no code
                raise Unavailable(_WITHOUT_JETSTREAM) from fault
            raise Unavailable(f"object store {bucket}: {fault.description}") from fault
        except nats.errors.NoRespondersError as fault:
            raise Unavailable(_WITHOUT_JETSTREAM) from fault
        except (js_errors.Error, nats.errors.Error, TimeoutError) as fault:
            raise Unavailable(f"object store {bucket}: {fault!r}") from fault


class LocalObjects:
    """In this process, for tests and in-process stacks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, dict[str, tuple[bytes, float]]] = {}

    async def put_object(self, bucket: str, name: str, data: bytes, ttl_s: float) -> None:
        alive = self._alive(bucket)
        if sum(len(kept) for kept, _ in alive.values()) + len(data) > BUCKET_BYTES:
            raise Overloaded(f"object store {bucket} is full: try again in a minute")
        alive[name] = (data, self._clock() + ttl_s)
        self._buckets[bucket] = alive

    async def get_object(self, bucket: str, name: str) -> bytes:
        found = self._alive(bucket).get(name)
        if found is None:
            raise NotFound(f"no object {name} in {bucket}: it expired, or never existed")
        return found[0]

    async def delete_object(self, bucket: str, name: str) -> None:
        self._buckets.get(bucket, {}).pop(name, None)

    def _alive(self, bucket: str) -> dict[str, tuple[bytes, float]]:
        now_s = self._clock()
        return {name: kept for name, kept in self._buckets.get(bucket, {}).items() if kept[1] > now_s}
