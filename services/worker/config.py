"""Flags of the worker. Imports nothing heavy, so that `--help` is quick and the launcher may read it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import CommonConfig, option
from shared.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
AUTO_PAGE_SIZE = 16
"""Gathering 16 slots at a time is 2 to 5 times faster than single slots; larger pages waste cache at prefix ends."""
GROUP_TIMEOUT_S = 60.0
"""How long a rank waits for another one, or for its device, before it gives the group up."""
START_TIMEOUT_S = 1800.0
"""The same while weights are read and kernels compiled, which may take one rank much longer than another."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One rank of one engine. Resolved once at start."""

    model_path: str = option(help="model directory in Hugging Face format", group="model", metavar="DIR")
    load_format: Literal["auto", "dummy"] = option(
        "auto", help="auto: safetensors; dummy: random weights, only config.json is read", group="model"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", help="weights, activations and KV cache; auto: float32 on CPU, else the checkpoint's", group="model"
    )
    quantization: Literal["auto", "fp8"] = option(
        "auto",
        help="auto: weights as the checkpoint has them, quantized or not (AWQ, GPTQ, compressed-tensors, FP8, GGUF "
        "blocks); fp8: round the plain weights of a checkpoint to 8-bit floats while loading, on GPUs that have them",
        group="model",
    )
    context_length: int | None = option(None, help="tokens of prompt and output; default: the model's", group="model")
    served_model_name: str = option("", help="name told to clients; default: the directory's name", group="model")

    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where the model runs", group="device")
    base_gpu_id: int = option(0, help="the first GPU of this engine; rank r takes the r-th after it", group="device")
    num_threads: int = option(0, help="CPU threads of this rank; 0 = its share of the cores", group="device")
    attention_backend: Literal["auto", "torch", "numba", "triton", "flashinfer"] = option(
        "auto",
        help="attention and fused layer kernels; auto: numba on CPU in float32, on CUDA flashinfer where its kernels "
        "are built and the card is a Hopper, else triton, else torch; flashinfer: triton's with FlashInfer's attention "
        "of prompts (FA3 on Hopper), which it compiles at the first start",
        group="device",
    )
    decode_attention_backend: Literal["auto", "triton", "flashinfer"] = option(
        "auto",
        help="attention of decode steps where the other is flashinfer; auto: triton, as fast and planned on the device",
        group="device",
    )
    kv_cache_dtype: Literal["auto", "fp8_e4m3"] = option(
        "auto",
        help="keys and values in the pool; auto: --dtype; fp8_e4m3: half the memory of bfloat16, with triton only",
        group="memory",
    )
    disable_cuda_graph: bool = option(
        False, help="launch the kernels of decode steps one by one, to debug or to spare memory", group="device"
    )
    random_seed: int | None = option(None, help="makes requests without a seed repeatable too", group="device")

    tp_size: int = option(1, help="processes that share each layer (tensor parallelism)", group="parallel")
    tp_rank: int = option(0, help="this process's place, 0 answers the scheduler", group="parallel")
    dist_init_addr: str = option(
        "", help="where rank 0 meets the others, when --tp-size is over 1", group="parallel", metavar="HOST:PORT"
    )

    page_size: int = option(AUTO_PAGE_SIZE, help="tokens per KV page, the unit of prefix reuse", group="memory")
    mem_fraction_static: float | None = option(
        None,
        help="on a GPU: share of its memory for weights and KV pool, default 0.9; on CPU: share of the memory left "
        "after loading for the KV pool, default 0.1 and at most 768 MiB",
        group="memory",
    )
    max_total_tokens: int | None = option(None, help="KV pool in tokens, instead of a share of memory", group="memory")
    max_prefill_tokens: int = option(
        0, help="prompt tokens of one step that memory is kept for; 0 = 8192 on a GPU, 512 on CPU", group="memory"
    )
    media_staging_bytes: int = option(
        0,
        help="embeddings of images and videos held on the device until their prompts are computed; 0 = 512 MiB on a "
        "GPU, 256 MiB on CPU",
        group="memory",
    )
    max_running_requests: int = option(
        0, help="requests computed at the same time; 0 = 1024 on a GPU, 256 on CPU", group="memory"
    )

    scheduler_name: str = option("scheduler-0", help="name of the scheduler to serve", group="bus")
    common: CommonConfig = field(default_factory=CommonConfig)

    def __post_init__(self) -> None:
        _at_least("--tp-size", self.tp_size, 1)
        _at_least("--base-gpu-id", self.base_gpu_id, 0)
        _at_least("--page-size", self.page_size, 1)
        _at_least("--num-threads", self.num_threads, 0)
        _at_least("--max-prefill-tokens", self.max_prefill_tokens, 0)
        _at_least("--media-staging-bytes", self.media_staging_bytes, 0)
        _at_least("--max-running-requests", self.max_running_requests, 0)
        if self.context_length is not None:
            _at_least("--context-length", self.context_length, 1)
        if self.max_total_tokens is not None:
            _at_least("--max-total-tokens", self.max_total_tokens, self.page_size)
        self._check_parallel()
        if self.mem_fraction_static is not None:
            if not 0.0 < self.mem_fraction_static < 1.0:
                raise ConfigError(f"--mem-fraction-static {self.mem_fraction_static} must be between 0 and 1")
            if self.max_total_tokens is not None:
                raise ConfigError("--mem-fraction-static and --max-total-tokens both size the KV pool: give one")
        if not _NAME.fullmatch(self.scheduler_name):
            raise ConfigError(f"--scheduler-name {self.scheduler_name!r}: use letters, digits, '-' and '_' only")

    def _check_parallel(self) -> None:
        if not 0 <= self.tp_rank < self.tp_size:
            raise ConfigError(f"--tp-rank {self.tp_rank} must be in 0..{self.tp_size - 1} (--tp-size {self.tp_size})")
        if self.tp_size > 1:
            host, _, port = self.dist_init_addr.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ConfigError(f"--dist-init-addr {self.dist_init_addr!r}: --tp-size over 1 needs HOST:PORT")
        elif self.dist_init_addr:
            raise ConfigError("--dist-init-addr is of no use with --tp-size 1")

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or Path(self.model_path).resolve().name


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{flag} {value} must be at least {least}")
