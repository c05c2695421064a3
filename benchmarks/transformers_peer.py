"""`transformers` as a server would have to use it: `generate` on static batches, in a process of its own.

Reads one JSON request a line on standard input and answers with one JSON line; the model stays loaded in between.
Started by `benchmarks.serving` through `TransformersPeer`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from benchmarks.load import Load, Prompt
from benchmarks.stack import StackFailed
from benchmarks.streams import Stream


class TransformersPeer:
    """The process, seen from the benchmark. A context manager."""

    def __init__(self, model: Path, threads: int) -> None:
        argv = [sys.executable, "-m", "benchmarks.transformers_peer", f"--model={model}", f"--threads={threads}"]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.pid = self._process.pid

    def __enter__(self) -> TransformersPeer:
        return self

    def run(self, prompts: list[Prompt], *, concurrency: int, max_tokens: int) -> Load:
        """All prompts in batches of `concurrency`, as clients that wait for each other would see them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"prompts": prompts, "batch": concurrency, "max_tokens": max_tokens}
        self._process.stdin.write(orjson.dumps(request) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise StackFailed("the transformers process ended: run `python -m benchmarks.transformers_peer` to see why")
        answer = orjson.loads(line)
        streams = [
            Stream(sent_s=b["begin_s"], arrivals_s=b["steps_s"], events=len(b["steps_s"]), tokens=max_tokens)
            for b in answer["batches"]
            for _ in range(b["size"])
        ]
        return Load(concurrency, answer["wall_s"], streams)

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()


def serve(model_path: str, threads: int) -> None:
    """Answer requests until standard input ends."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    for line in sys.stdin.buffer:
        request = orjson.loads(line)
        prompts, size = request["prompts"], request["batch"]
        begin_s = time.perf_counter()
        batches = [generate(model, prompts[i : i + size], request["max_tokens"]) for i in range(0, len(prompts), size)]
        answer = {"wall_s": time.perf_counter() - begin_s, "batches": batches}
        sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
        sys.stdout.buffer.flush()


def generate(model: Any, prompts: list[Prompt], max_tokens: int) -> dict[str, Any]:
    """One static batch, padded on the left; greedy, exactly `max_tokens` tokens for each prompt."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    steps_s: list[float] = []

    class Clock(StoppingCriteria):  # called once after every token of the batch
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            steps_s.append(time.perf_counter())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    begin_s = time.perf_counter()
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens, min_new_tokens=max_tokens,
            pad_token_id=0, stopping_criteria=StoppingCriteriaList([Clock()]),
        )  # fmt: skip
    assert out.shape[1] == longest + max_tokens
    return {"size": len(prompts), "begin_s": begin_s, "steps_s": steps_s}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    serve(arguments.model, arguments.threads)
