"""Time to the first token of one request at a time, by size and number of images: everything cold, the encoder's cache
warm, and the prefix cache warm too. For the largest image also where the time goes, by the services' own metrics.
"""

from __future__ import annotations

import itertools
import statistics
import urllib.request
from typing import Any

import orjson
import uvloop

from benchmarks.report import Report
from benchmarks.stack import Deployment
from benchmarks.streams import Stream, stream
from benchmarks.vision_sections.pictures import chat_body, data_url, picture

PATH = "/v1/chat/completions"
STAGES = {
    "fetch": ("rhizome_vision_fetch_seconds_sum", ""),
    "decode and resize": ("rhizome_vision_prepare_seconds_sum", ""),
    "encode": ("rhizome_vision_encode_seconds_sum", ""),
    "prefill": ("rhizome_worker_step_seconds_sum", 'stage="forward"'),
}
"""Name and label of the histogram that knows each."""
_seeds = itertools.count(1000)


def measure(
    report: Report, deployment: Deployment, sides: list[int], counts: list[int], repeats: int
) -> list[dict[str, Any]]:
    """One row per size and number."""
    return uvloop.run(_measure(report, deployment, sides, counts, repeats))


async def _measure(
    report: Report, deployment: Deployment, sides: list[int], counts: list[int], repeats: int
) -> list[dict[str, Any]]:
    rows = []
    for side, count in itertools.product(sides, counts):
        await _ask(deployment, [data_url(picture(side, next(_seeds))) for _ in range(count)])  # a size's first time
        cold, encoded, cached = [], [], []
        stages: list[dict[str, float]] = []
        for i in range(repeats):
            urls = [data_url(picture(side, next(_seeds))) for _ in range(count)]
            before = _metrics(deployment)
            first = await _ask(deployment, urls)
            after = _metrics(deployment)
            cold.append(first)
            stages.append({name: (after[name] - before[name]) * 1e3 for name in STAGES})
            encoded.append(await _ask(deployment, urls, salt=f"other-{side}-{count}-{i}"))
            cached.append(await _ask(deployment, urls))
        tokens = _prompt_tokens(deployment, urls)
        row = {
            "side": side, "images": count, "prompt_tokens": tokens, "cold_ms": _ms(cold),
            "encoder_hit_ms": _ms(encoded), "radix_hit_ms": _ms(cached),
            "radix_hit_cached_tokens": cached[-1].cached_tokens,
            "stages_ms": {name: round(statistics.median(s[name] for s in stages), 1) for name in STAGES},
        }  # fmt: skip
        report.note(f"latency {row}")
        rows.append(row)
    report.table(
        "time to first token, one request at a time, ms",
        ("side", "images", "tokens", "cold", "encoder hit", "radix hit", *STAGES),
        [(r["side"], r["images"], r["prompt_tokens"], r["cold_ms"], r["encoder_hit_ms"], r["radix_hit_ms"],
          *r["stages_ms"].values()) for r in rows],
    )  # fmt: skip
    return rows


async def _ask(deployment: Deployment, urls: list[str], salt: str = "") -> Stream:
    out = await stream(deployment.port, PATH, chat_body(urls, max_tokens=2, salt=salt))
    assert not out.error, out.error
    return out


def _prompt_tokens(deployment: Deployment, urls: list[str]) -> int:
    body = orjson.loads(chat_body(urls, max_tokens=1))
    body |= {"stream": False}
    del body["stream_options"]
    usage = deployment.post(PATH, body)["usage"]
    return int(usage["prompt_tokens"])


def _ms(streams: list[Stream]) -> float:
    return round(statistics.median(s.ttft_s for s in streams) * 1e3, 1)


def _metrics(deployment: Deployment) -> dict[str, float]:
    with urllib.request.urlopen(deployment.url + "/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(metric) and label in line)
        for name, (metric, label) in STAGES.items()
    }
