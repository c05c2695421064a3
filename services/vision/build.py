"""Puts the service together from its flags. Called once, by `__main__`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from services.vision.addresses import AllowedHosts
from services.vision.batcher import Batcher
from services.vision.cache import EmbeddingCache, budget
from services.vision.config import VisionConfig
from services.vision.fingerprint import model_fingerprint
from services.vision.http_fetch import HttpFetch
from services.vision.metrics import VisionMetrics
from services.vision.models.encoder import Encoder
from services.vision.models.registry import load_encoder
from services.vision.pipeline import Decoders, Pipeline, limits_of
from services.vision.processing.prepared import Processor
from services.vision.processing.registry import make_processor
from services.vision.rows import dtype_name
from services.vision.service import VisionService
from services.vision.sources import Sources
from shared.actor import Actor
from shared.blobs import Blobs
from shared.errors import ConfigError
from shared.held_folder import HeldFolder, deployment_folder, memory_root, remove_all_abandoned
from shared.log import Log
from shared.media_config import load_media_config
from shared.model_config import load_model_config

HELD_FILES = 16
"""Files of the largest size that may be in memory at the same time; ordinary ones may be many more."""
VIDEO_THREADS = 2
"""Videos decoded at the same time, each with all its frames in memory."""
WARM_UP_SIDES = (448, 2048)
"""Of images: an ordinary one, and one that is large enough for cuDNN's attention."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Model:
    """What `load` makes of a model directory."""

    processor: Processor
    encoder: Encoder


Load = Callable[[VisionConfig, Log], Model]


async def build_service(actor: Actor, config: VisionConfig, load: Load) -> VisionService:
    """Everything but its subscriptions. The model is loaded, and later used, on one thread.

    Raises:
        ConfigError: the model has no images, or a flag does not fit this machine.
    """
    root = memory_root(config.shared_memory_dir)
    deployment = config.common.deployment
    allowed = AllowedHosts(config.allowed_media_hosts)
    device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
    model = await asyncio.get_running_loop().run_in_executor(device, load, config, actor.log)
    await asyncio.to_thread(remove_all_abandoned, root, deployment)
    memory = HeldFolder(deployment_folder(root, deployment, config.common.nats_url), alone=False)
    own = HeldFolder(memory.path / actor.name, alone=True)
    metrics = VisionMetrics(actor.registry)
    blobs = Blobs(memory, actor.bus, deployment)
    cache = EmbeddingCache(own.path, actor.id, budget(config.embedding_cache_bytes, own.path))
    actor.log.info("cache", embeddings=len(cache), bytes=cache.used_bytes, most_bytes=cache.budget_bytes)
    http = HttpFetch(allowed, config.max_media_bytes, config.media_fetch_timeout_s)
    sources = Sources(http, blobs, [Path(folder) for folder in config.allowed_media_folder], config.max_media_bytes)
    batcher = Batcher(model.encoder, config.max_batch_patches, device, metrics.batch)
    limits = limits_of(config)
    decoders = Decoders(
        ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode"),
        ThreadPoolExecutor(VIDEO_THREADS, thread_name_prefix="video"),
    )
    fingerprint = model_fingerprint(Path(config.model_path), dtype_name(model.encoder.dtype), config.load_format)
    pipeline = Pipeline(
        sources, model.processor, model.encoder, batcher, cache, limits, decoders, actor.id, fingerprint, metrics,
        HELD_FILES * config.max_media_bytes,
    )  # fmt: skip
    service = VisionService(
        actor, pipeline, batcher, cache, blobs, memory, own, partial(remove_all_abandoned, root, deployment),
        config.max_media_per_request, config.max_queued_media, deployment,
    )  # fmt: skip
    metrics.watch("rhizome_vision_queued_media", "Images and videos in work or waiting", lambda: service.queued_media)
    metrics.watch("rhizome_vision_encoder_queue", "Prepared and waiting for the encoder", lambda: batcher.waiting)
    metrics.watch("rhizome_vision_cache_bytes", "Embeddings in shared memory", lambda: cache.used_bytes)
    metrics.watch("rhizome_vision_cached_media", "Images and videos in the cache", lambda: len(cache))
    return service


def load_model(config: VisionConfig, log: Log) -> Model:
    """The processor and the encoder of a model directory.

    Raises:
        ConfigError: it is a text-only model, or the device is not there.
    """
    media = load_media_config(config.model_path)
    if media is None:
        raise ConfigError(f"--model-path {config.model_path}: a text-only model, it needs no vision service")
    if config.vision_threads:
        torch.set_num_threads(config.vision_threads)
    device = device_of(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread: kernels are launched on the current one
    dtype = dtype_of(config, device)
    encoder = load_encoder(
        config.model_path, media, dtype, device, config.load_format, log, max_patches=config.max_batch_patches
    )
    model = Model(make_processor(media), encoder)
    if device.type == "cuda":
        _warm_up(model, log)
    return model


def _warm_up(model: Model, log: Log) -> None:
    """Kernels are compiled and libraries set up before the first image comes."""
    started_s = time.perf_counter()
    for side in WARM_UP_SIDES:
        model.encoder.encode([model.processor.prepare(Image.new("RGB", (side, side)))])
    torch.cuda.synchronize()
    log.info("warmed up", seconds=time.perf_counter() - started_s)


def device_of(config: VisionConfig) -> torch.device:
    """Where the encoder runs.

    Raises:
        ConfigError: that GPU is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.vision_device == "cpu" or (config.vision_device == "auto" and not count):
        return torch.device("cpu")
    if config.vision_gpu_id >= count:
        raise ConfigError(f"--vision-gpu-id {config.vision_gpu_id}: this machine shows {count} CUDA devices")
    return torch.device("cuda", config.vision_gpu_id)


def dtype_of(config: VisionConfig, device: torch.device) -> torch.dtype:
    """Of the encoder and of embeddings: as a worker on the same device would compute, unless a flag says otherwise.

    Raises:
        ConfigError: the checkpoint's is none that is known.
    """
    name: str = config.vision_dtype
    if name == "auto":
        name = "float32" if device.type == "cpu" else load_model_config(config.model_path).dtype
    if name not in _DTYPES:
        raise ConfigError(f"the checkpoint's dtype {name!r} is not one of {', '.join(_DTYPES)}: give --vision-dtype")
    return _DTYPES[name]
