"""Reading a checkpoint into a model: seconds, MB/s and memory beside the weights, by number of threads.

Writes a sharded checkpoint of random bf16 numbers in a Llama shape; the variants load it in turn, each in a process.
*Beside the weights* is the largest resident set during the loading, less what it was before, less weights that are on
the host: mapped parts of the shard being read, and buffers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import save_file

from benchmarks.report import Report
from services.worker.models.ops import layer_ops
from services.worker.models.place import Place
from services.worker.models.registry import build_model
from services.worker.tensor_parallel import Alone, shard_model
from shared import log
from shared.checkpoint.loader import load_checkpoint, weight_files
from shared.checkpoint.weight_copies import CPU_THREADS, GPU_THREADS
from shared.model_config import load_model_config

HIDDEN, MLP, HEADS, KV_HEADS, VOCAB = 4096, 14336, 32, 8, 32000
_ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--gib", type=float, default=3.0, help="size of the checkpoint, about")
    parser.add_argument("--shards", type=int, default=8, help="files it is divided into")
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="default: 1 and what the worker uses")
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tp-size", type=int, default=1, help="read the part of one rank of so many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where the checkpoint is written; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="256 MiB, one round")
    parser.add_argument("--load-once", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load_once is not None:
        print(orjson.dumps(load_once(args.load_once, args)).decode())
        return
    if args.quick:
        args.gib, args.shards, args.rounds = 0.25, 2, 1
    most = GPU_THREADS if args.device == "cuda" else CPU_THREADS
    args.threads = args.threads or [1, min(most, os.cpu_count() or 1)]
    report = Report("loading", args)
    with tempfile.TemporaryDirectory(prefix="rhizome-loading-", dir=args.folder) as name:
        folder = Path(name)
        largest, total = write_checkpoint(folder, args.gib, args.shards)
        report.note(f"checkpoint: {total / 1e9:.2f} GB, its largest file {largest / 1e9:.2f} GB")
        rows = measure(report, folder, args)
    report.finish({"checkpoint_bytes": total, "largest_file_bytes": largest, "runs": rows})


def write_checkpoint(folder: Path, gib: float, shards: int) -> tuple[int, int]:
    """Bytes of its largest file and of all."""
    kv = HIDDEN * KV_HEADS // HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MLP, HIDDEN), "mlp.up_proj": (MLP, HIDDEN),
        "mlp.down_proj": (HIDDEN, MLP), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
    }  # fmt: skip
    numbers = torch.randn(VOCAB * HIDDEN, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    layer_bytes = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    layers = max(1, round((gib * 2**30 - 2 * VOCAB * HIDDEN) / layer_bytes))
    names = [("model.embed_tokens.weight", (VOCAB, HIDDEN)), ("model.norm.weight", (HIDDEN,))]
    names += [(f"model.layers.{i}.{name}.weight", shape) for i in range(layers) for name, shape in shapes.items()]
    per_file, weight_map = -(-len(names) // shards), {}
    for file in range(shards):
        own = names[file * per_file : (file + 1) * per_file]
        if own:
            tensors = {name: numbers[: torch.Size(shape).numel()].view(shape).clone() for name, shape in own}
            save_file(tensors, folder / f"model-{file}.safetensors", metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, f"model-{file}.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": MLP, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_bytes(orjson.dumps(config))
    (folder / "model.safetensors.index.json").write_bytes(orjson.dumps({"weight_map": weight_map}))
    sizes = [path.stat().st_size for path in weight_files(folder)]
    return max(sizes), sum(sizes)


def measure(report: Report, folder: Path, args: argparse.Namespace) -> list[Row]:
    """Rows by dtype of the model, files in the page cache or not, and threads."""
    kinds = [(d, cold, n) for d in args.dtypes for cold in (False, True) for n in args.threads]
    found: dict[tuple[str, bool, int], list[Row]] = {kind: [] for kind in kinds}
    for _ in range(args.rounds):
        for dtype, cold, threads in kinds:
            set_cached(folder, cold=cold)
            found[dtype, cold, threads].append(_in_a_process(folder, args, dtype, threads))
    rows = []
    for (dtype, cold, threads), runs in found.items():
        seconds = [run["seconds"] for run in runs]
        rows.append({
            "dtype": dtype, "cold": cold, "threads": threads, "seconds": round(statistics.median(seconds), 3),
            "least_s": round(min(seconds), 3), "most_s": round(max(seconds), 3),
            "mb_per_s": round(statistics.median(run["read_bytes"] / run["seconds"] / 1e6 for run in runs)),
            "beside_weights_mb": round(max(run["beside_bytes"] for run in runs) / 1e6, 1),
        })  # fmt: skip
    report.table(
        f"loading on {args.device}, rank 0 of {args.tp_size}",
        ["model", "files", "threads", "s", "least", "most", "MB/s", "beside MB"],
        [[r["dtype"], "on disk" if r["cold"] else "cached", r["threads"], r["seconds"], r["least_s"], r["most_s"],
          r["mb_per_s"], r["beside_weights_mb"]] for r in rows],
    )  # fmt: skip
    return rows


def set_cached(folder: Path, *, cold: bool) -> None:
    """Have the files in the page cache, or not."""
    for path in weight_files(folder):
        with path.open("rb") as file:
            if cold:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 24):
                    pass


def _in_a_process(folder: Path, args: argparse.Namespace, dtype: str, threads: int) -> Row:
    argv = [
        sys.executable, "-m", "benchmarks.loading", f"--load-once={folder}", "--dtypes", dtype,
        "--threads", str(threads), f"--device={args.device}", f"--tp-size={args.tp_size}",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=_ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    row: Row = orjson.loads(done.stdout.splitlines()[-1])
    return row


def load_once(folder: Path, args: argparse.Namespace) -> Row:
    """In a process of its own."""
    config, device = load_model_config(folder, None), torch.device(args.device)
    shard = shard_model(config, args.tp_size, 0)
    dtype = getattr(torch, args.dtypes[0])
    targets = build_model(config, Place(shard, Alone(), layer_ops("torch"), dtype, device)).targets()
    weights = sum(target.into.nbytes for target in targets.values())
    before = _peak_bytes()
    started_s = time.perf_counter()
    load_checkpoint(folder, targets, tied=True, log=log.setup("loading", "error"), num_threads=args.threads[0])
    seconds = time.perf_counter() - started_s
    on_host = weights if device.type == "cpu" else 0
    return {
        "seconds": seconds,
        "read_bytes": weights * 2 // dtype.itemsize,
        "beside_bytes": _peak_bytes() - before - on_host,
    }


def _peak_bytes() -> int:
    """Largest resident set of this process; `getrusage` would count the parent's before `exec`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux tells it")


if __name__ == "__main__":
    main()
