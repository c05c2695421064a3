"""Bytes handed from one service to another by reference, because messages are small.

    blob:<32 hex digits>?host=<folder id>     a file in the deployment's folder in shared memory
    blob:<32 hex digits>?object               an object in the store of the bus, for other hosts

Blobs live for two minutes, or for a few seconds after their use: the choices of one request use the same blob, and so
does another vision instance when the first one dies. Names are random, so nobody reads a blob he was not told of. The
gateway writes them, vision reads them; both remove those that have expired.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import time
from pathlib import Path

from shared.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from shared.held_folder import HeldFolder
from shared.objects import ObjectStore

BLOB_TTL_S = 120.0
GRACE_S = 20.0
"""What remains of a blob's life after its use."""
_URL = re.compile(r"blob:([0-9a-f]{32})\?(?:host=([0-9a-f]{16})|object)")
_KEEP_FREE = 16  # the 16th part of the memory is left to embeddings and others


class Blobs:
    """One process's access. Lives as long as the service; files are touched in threads only."""

    def __init__(self, folder: HeldFolder, objects: ObjectStore, deployment: str) -> None:
        self.host = folder.id
        """Who shows the same can read this process's blobs in shared memory."""
        self._folder, self._objects = folder.path / "blobs", objects
        self._bucket = f"rz-{deployment}-blobs"

    async def put(self, data: bytes, *, nearby: bool) -> str:
        """Keep bytes; returns their URL.

        Args:
            nearby: the reader shows the same `host`.

        Raises:
            Overloaded: there is no room at the moment.
            Unavailable: they cannot be kept.
        """
        name = secrets.token_hex(16)
        if nearby:
            await asyncio.to_thread(self._write, name, data)
            return f"blob:{name}?host={self.host}"
        await self._objects.put_object(self._bucket, name, data, BLOB_TTL_S)
        return f"blob:{name}?object"

    async def read(self, url: str, max_bytes: int) -> bytes:
        """The bytes of a blob.

        Raises:
            InvalidRequest: not a blob's URL, or more than `max_bytes`.
            Unavailable: it has expired, or is on another host.
        """
        name, host = self._parse(url)
        if host is None:
            try:
                data = await self._objects.get_object(self._bucket, name)
            except NotFound as fault:
                raise Unavailable("the media has expired: send the request again") from fault
            _check_size(len(data), max_bytes)
            return data
        if host != self.host:
            raise Unavailable("the media is in the memory of another host: send the request again")
        return await asyncio.to_thread(self._read, name, max_bytes)

    async def used(self, url: str) -> None:
        """Nobody but siblings of this use will need it: cut its life short. Objects just expire."""
        name, host = self._parse(url)
        if host == self.host:
            await asyncio.to_thread(self._age, name)

    async def sweep(self) -> int:
        """Remove expired files, everybody's; returns how many. Call now and then."""
        return await asyncio.to_thread(sweep, self._folder)

    def _parse(self, url: str) -> tuple[str, str | None]:
        found = _URL.fullmatch(url)
        if found is None:
            raise InvalidRequest("not a blob: URL of this deployment")
        return found[1], found[2]

    def _write(self, name: str, data: bytes) -> None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            memory = shutil.disk_usage(self._folder)
            if memory.free - len(data) < memory.total // _KEEP_FREE:
                raise Overloaded(f"no shared memory for media of {len(data):,} bytes at the moment: try again")
            temp = self._folder / f".{name}"
            temp.write_bytes(data)
            temp.rename(self._folder / name)
        except OSError as fault:
            raise Unavailable(f"media cannot be kept in {self._folder}: {fault.strerror}") from fault

    def _read(self, name: str, max_bytes: int) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                _check_size(os.fstat(file.fileno()).st_size, max_bytes)
                return file.read()
        except OSError as fault:
            raise Unavailable("the media has expired: send the request again") from fault

    def _age(self, name: str) -> None:
        path = self._folder / name
        born_s = time.time() - (BLOB_TTL_S - GRACE_S)
        try:
            if path.stat().st_mtime > born_s:
                os.utime(path, (born_s, born_s))
        except FileNotFoundError:
            pass


def sweep(folder: Path) -> int:
    """Remove the expired blobs of a folder, half-written ones too; returns how many."""
    removed, oldest_s = 0, time.time() - BLOB_TTL_S
    for path in folder.glob("*"):
        try:
            if path.stat().st_mtime < oldest_s:
                path.unlink()
                removed += 1
        except OSError:
            continue  # somebody else was first
    return removed


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidRequest(f"media of {size:,} bytes is over the limit of {limit:,}")
