"""llama.cpp's own HTTP server as a peer. It is not part of this project: give a binary and a GGUF file, or an URL."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.stack import Server


class LlamaServer(Server):
    """`llama-server` with continuous batching and one slot per client. A context manager."""

    def __init__(self, binary: str, gguf: str, *, threads: int, slots: int, context_length: int) -> None:
        super().__init__()
        self._argv: Sequence[str] = (
            binary, "--model", gguf, "--port", str(self.port), "--host", "127.0.0.1", "--threads", str(threads),
            "--threads-batch", str(threads), "--parallel", str(slots), "--ctx-size", str(slots * context_length),
            "--n-gpu-layers", "0", "--log-disable",
        )  # fmt: skip

    def __enter__(self) -> LlamaServer:
        try:
            self.spawn("llama-server", self._argv)
            self.wait_ready("/health")
        except BaseException:
            self.closing.close()
            raise
        return self
