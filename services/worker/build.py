"""From flags to a ready engine: join the group, load the model, size the pool, warm up.

Runs on the device thread, which is the one whose torch settings count.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import torch

from services.worker import memory
from services.worker.activations import activation_bytes
from services.worker.attention.backend import AttentionBackend, choose_backend, make_backend
from services.worker.attention.flashinfer_modules import built_modules, find_nvcc, load_modules, modules_needed
from services.worker.config import START_TIMEOUT_S, WorkerConfig
from services.worker.engine import Engine
from services.worker.engine_spec import EngineSpec
from services.worker.kv_pool import KvPool
from services.worker.media_store import MediaStore
from services.worker.models.dense_product import can_pack, min_rows
from services.worker.models.ops import layer_ops
from services.worker.models.place import Place
from services.worker.models.registry import Model, attention_windows, build_model
from services.worker.quantization.scheme import choose_scheme, quantization_config
from services.worker.quantization.unread import Unread
from services.worker.rows import Rows
from services.worker.sampling.sampler import make_sampler
from services.worker.tensor_parallel import Alone, Communicator, Shard, shard_model
from shared.checkpoint.contents import shapes_of
from shared.checkpoint.loader import load_checkpoint, load_dummy
from shared.errors import ConfigError
from shared.log import Log
from shared.media_config import load_media_config
from shared.model_config import ModelConfig, load_model_config

if TYPE_CHECKING:
    from services.worker.decode_program import DecodeProgram
    from services.worker.mixed_program import MixedProgram
    from services.worker.recorded_decode import RecordedDecode

GPU_PREFILL_TOKENS, CPU_PREFILL_TOKENS = 8192, 512
GPU_ROWS, CPU_ROWS = 1024, 256
GPU_STAGING_BYTES, CPU_STAGING_BYTES = 512 << 20, 256 << 20
LEAST_MASK_SLOTS = 512
CAPTURES_PER_LINE = 4
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_engine(config: WorkerConfig, instance_id: str, log: Log) -> Engine:
    """An engine that has run once. With several ranks it returns when all of them are ready.

    Args:
        instance_id: of this rank; rank 0's becomes the engine's id.
        log: gets a line per part of the work that takes seconds.

    Raises:
        ConfigError: flags, files or devices do not fit together.
    """
    device = _device(config)
    torch.set_num_threads(config.num_threads or _auto_threads(config.tp_size))
    model_config = load_model_config(config.model_path, config.context_length)
    media_config = load_media_config(config.model_path)
    shard = shard_model(model_config, config.tp_size, config.tp_rank)
    dtype = _dtype(config.dtype, model_config, device)
    backend = choose_backend(
        config.attention_backend, device, dtype, head_dim=model_config.head_dim, page_size=config.page_size
    )
    windows = attention_windows(model_config)
    flashinfer = (device, dtype, model_config.head_dim, shard.num_q_heads, shard.num_kv_heads, windows)
    if backend == "flashinfer":
        load_modules(modules_needed(*flashinfer), find_nvcc(), log)
    elif config.attention_backend == config.kv_cache_dtype == "auto" and (built := built_modules(*flashinfer)):
        load_modules(built, None, log)
        backend = "flashinfer"
    if device.type == "cpu" and not can_pack(dtype):
        log.warning("this torch cannot reorder weights for oneDNN: matrix products will be slower", dtype=config.dtype)
    comm = _join(config, device, log)
    scheme = choose_scheme(quantization_config(config.model_path), config.quantization)
    if config.quantization == "fp8" and device.type == "cpu":
        raise ConfigError("--quantization fp8 is of no use on a CPU, which has no 8-bit floats: leave it out")
    shapes = None if scheme is None or config.load_format == "dummy" else shapes_of(config.model_path)
    place = Place(shard, comm, layer_ops(backend), dtype, device, scheme, shapes)
    if device.type == "cuda" and scheme is not None and comm.size == 1:
        from services.worker.kernels.overlap import launch_early

        launch_early()
    model = _load(config, model_config, place, log)
    comm.wait_for_all(START_TIMEOUT_S)
    max_rows = config.max_running_requests or (GPU_ROWS if device.type == "cuda" else CPU_ROWS)
    prefill_tokens = config.max_prefill_tokens or (GPU_PREFILL_TOKENS if device.type == "cuda" else CPU_PREFILL_TOKENS)
    activations = activation_bytes(
        model, tokens=prefill_tokens, rows=max_rows, attention_width=shard.num_q_heads * model_config.head_dim,
        device=device,
    )  # fmt: skip
    media_bytes = 0
    if media_config is not None:
        media_bytes = config.media_staging_bytes or (GPU_STAGING_BYTES if device.type == "cuda" else CPU_STAGING_BYTES)
    kv_dtype = _kv_dtype(config.kv_cache_dtype, backend, dtype)
    pool = _pool(config, model_config, shard, comm, kv_dtype, device, max_rows, activations + media_bytes)
    rows = Rows(max_rows, -(-model_config.context_length // config.page_size), config.page_size, device)
    attention = make_backend(
        backend, pool, rows, windows, shard.num_q_heads, dtype,
        flashinfer_decodes=config.decode_attention_backend == "flashinfer",
    )  # fmt: skip
    mask_slots = max(LEAST_MASK_SLOTS, 2 * max_rows)
    sampler = None
    if config.tp_rank == 0:
        sampler = make_sampler(backend, max_rows, mask_slots, model_config.vocab_size, device, config.random_seed)
    group = comm.all_texts(instance_id)
    spec = EngineSpec(
        engine_id=group[0], group=group, model=config.model_name, tp_size=config.tp_size, device=device.type,
        dtype=str(dtype).removeprefix("torch."), attention_backend=attention.name, page_size=config.page_size,
        num_pages=pool.num_pages, max_rows=max_rows, context_length=model_config.context_length,
        vocab_size=model_config.vocab_size, prefill_tokens=prefill_tokens, mask_slots=mask_slots,
        media_bytes=media_bytes,
    )  # fmt: skip
    # Padding would go to experts too, and read more weights than fuller products save; our kernels gain nothing.
    min_tokens = min_rows(device, dtype) if model_config.moe is None and scheme is None else 1
    if backend == "numba":
        _say_if_compiling(log)
    started_s = time.perf_counter()
    programs = _programs(model, attention, rows, prefill_tokens, comm)
    recorded = None
    if backend == "numba" and comm.size == 1 and model_config.moe is None:  # experts: Python reads who goes where
        recorded = _recorded(model, attention, rows, min_tokens, log)
    engine = Engine(
        spec, model=model, rows=rows, attention=attention, sampler=sampler, comm=comm,
        media=MediaStore(0 if media_config is None else media_config.width, dtype, device),
        min_tokens=min_tokens, decode_program=programs[0] if programs else recorded,
        mixed_program=programs[1] if programs else None,
    )  # fmt: skip
    engine.warm_up(thorough=device.type == "cuda")
    log.info("warmed up", seconds=time.perf_counter() - started_s)
    if programs is not None and device.type == "cuda" and not config.disable_cuda_graph:
        for program in programs:  # every rank the same sizes in the same order: the sums are among what is captured
            _capture(program, device, log)
    return engine


def _join(config: WorkerConfig, device: torch.device, log: Log) -> Communicator:
    """The communicator of this rank."""
    address, rank, size = config.dist_init_addr, config.tp_rank, config.tp_size
    if size == 1:
        return Alone()
    if device.type == "cpu":
        from services.worker.gloo_group import GlooGroup

        return GlooGroup(address, rank, size)
    from services.worker.nccl_group import NcclGroup

    return NcclGroup(address, rank, size, device, log)


def _programs(
    model: Model, attention: AttentionBackend, rows: Rows, prefill_tokens: int, comm: Communicator
) -> tuple[DecodeProgram, MixedProgram] | None:
    if attention.name not in ("triton", "flashinfer"):
        return None
    from services.worker.attention.flashinfer_backend import FlashInferAttention
    from services.worker.attention.triton_backend import TritonAttention
    from services.worker.decode_program import DecodeProgram
    from services.worker.mixed_program import MixedProgram

    assert isinstance(attention, TritonAttention | FlashInferAttention)
    planner = attention if isinstance(attention, FlashInferAttention) and attention.decodes else None
    most_tokens = prefill_tokens + rows.max_rows
    # Ranks with unequal numbers of heads would share prefixes differently, and add up batches of unequal sizes.
    attention.share_among(min(values[0] for values in comm.all_integers([attention.most_members])))
    return DecodeProgram(model, attention, rows, planner), MixedProgram(model, attention, rows, most_tokens)


def _recorded(
    model: Model, attention: AttentionBackend, rows: Rows, least_rows: int, log: Log
) -> RecordedDecode | None:
    from services.worker.attention.numba_backend import NumbaAttention
    from services.worker.recorded_decode import RecordedDecode
    from services.worker.recording import NotRecordable

    assert isinstance(attention, NumbaAttention)
    try:
        recorded = RecordedDecode(model, attention, rows, least_rows)
    except NotRecordable as fault:
        log.info("decode steps are not recorded", reason=str(fault))
        return None
    log.info("decode steps recorded", bytes=recorded.nbytes)
    return recorded


def _capture(program: DecodeProgram | MixedProgram, device: torch.device, log: Log) -> None:
    free, started_s = memory.available_bytes(device), time.perf_counter()
    for done, of in program.capture():
        if done % CAPTURES_PER_LINE == 0 or done == of:
            log.info("capturing CUDA graphs", program=type(program).__name__, done=done, of=of)
    log.info("CUDA graphs", bytes=free - memory.available_bytes(device), seconds=time.perf_counter() - started_s)


def _say_if_compiling(log: Log) -> None:
    from services.worker.cpu_kernels.jit import is_compiled

    if not is_compiled():
        log.info("compiling the CPU kernels, which takes 10 to 30 seconds the first time")


def _device(config: WorkerConfig) -> torch.device:
    """This rank's own device, made the current one of this thread."""
    there = torch.cuda.device_count() if config.device != "cpu" and torch.cuda.is_available() else 0
    if config.device == "cuda" and not there:
        raise ConfigError("--device cuda: torch sees no CUDA device here")
    if not there:
        return torch.device("cpu")
    device = torch.device("cuda", gpu_of(config, there))
    torch.cuda.set_device(device)
    return device


def gpu_of(config: WorkerConfig, there: int) -> int:
    """The number of this rank's GPU, of the `there` GPUs of this machine.

    Raises:
        ConfigError: the engine needs more than there are.
    """
    if config.base_gpu_id + config.tp_size > there:
        needed = config.base_gpu_id + config.tp_size
        raise ConfigError(
            f"--tp-size {config.tp_size} from --base-gpu-id {config.base_gpu_id} on needs {needed} GPUs, torch sees "
            f"{there}: use fewer ranks or engines, or --device cpu"
        )
    return config.base_gpu_id + config.tp_rank


def _dtype(name: str, model_config: ModelConfig, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "float32" if device.type == "cpu" else model_config.dtype
    if name not in _DTYPES:
        raise ConfigError(f"the checkpoint's dtype {name!r} is not one of {', '.join(_DTYPES)}: give --dtype")
    return _DTYPES[name]


def _kv_dtype(name: str, backend: str, dtype: torch.dtype) -> torch.dtype:
    if name == "auto":
        return dtype
    if backend != "triton":
        raise ConfigError(f"--kv-cache-dtype {name} needs the triton attention backend, this engine has {backend}")
    return torch.float8_e4m3fn


def _auto_threads(tp_size: int) -> int:
    """The rank's share of the cores. All of them are used: see `SPIN_COUNT` in `__main__.py` for what that needs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // tp_size)


def _load(config: WorkerConfig, model_config: ModelConfig, place: Place, log: Log) -> Model:
    model = build_model(model_config, place)
    if config.load_format == "dummy":
        load_dummy(model.targets())
    else:
        unread = Unread()
        load_checkpoint(config.model_path, model.targets(), tied=model_config.tie_embeddings, log=log, skip=unread)
        if unread.cache_scales or (quantization_config(config.model_path) or {}).get("kv_cache_scheme"):
            log.info(
                "how the checkpoint quantizes keys and values is not used: --kv-cache-dtype says how they are kept",
                skipped_tensors=unread.cache_scales, kv_cache_dtype=config.kv_cache_dtype,
            )  # fmt: skip
    model.finish_loading()
    if place.scheme is not None:
        _report_sizes(model_config, place, log)
    return model


def _report_sizes(model_config: ModelConfig, place: Place, log: Log) -> None:
    """What quantization saves, and the tokens whose keys and values fit there instead."""
    sizes = place.sizes
    slot_bytes = KvPool.slot_bytes(
        model_config.num_layers, place.shard.num_kv_heads, model_config.head_dim, place.dtype
    )  # fmt: skip
    log.info(
        "quantized weights", format=place.scheme.name if place.scheme else "", bytes=sizes.packed,
        plain_bytes=sizes.plain, gained_kv_tokens=max(0, sizes.plain - sizes.packed) // slot_bytes,
    )  # fmt: skip
    if sizes.expanded:
        log.warning(
            "some quantized weights were expanded: no kernel here computes with them",
            device=place.device.type, dtype=str(place.dtype).removeprefix("torch."),
        )  # fmt: skip


def _pool(
    config: WorkerConfig,
    model_config: ModelConfig,
    shard: Shard,
    comm: Communicator,
    dtype: torch.dtype,
    device: torch.device,
    max_rows: int,
    activations: int,
) -> KvPool:
    layers, head_dim = model_config.num_layers, model_config.head_dim
    tokens = memory.pool_tokens(
        slot_bytes=KvPool.slot_bytes(layers, shard.num_kv_heads, head_dim, dtype),
        page_size=config.page_size,
        most_tokens=max_rows * (model_config.context_length + config.page_size),
        device=device,
        max_total_tokens=config.max_total_tokens,
        fraction=config.mem_fraction_static,
        available=memory.available_bytes(device),
        total=memory.total_bytes(device),
        activations=activations,
    )
    agreed = min(values[0] for values in comm.all_integers([tokens]))
    return KvPool(
        num_layers=layers, num_pages=agreed // config.page_size, page_size=config.page_size,
        num_kv_heads=shard.num_kv_heads, head_dim=head_dim, dtype=dtype, device=device,
    )  # fmt: skip
