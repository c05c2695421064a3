"""Memory of every service over thousands of different images: it may rise to what is bounded, and stays there."""

from __future__ import annotations

from typing import Any

import uvloop

from benchmarks.report import Report
from benchmarks.stack import Deployment
from benchmarks.vision_sections import load
from benchmarks.vision_sections.pictures import chat_body, data_url, picture

ROUNDS = 5


def measure(report: Report, deployment: Deployment, side: int, images: int, clients: int) -> list[dict[str, Any]]:
    """Resident megabytes of each process after each fifth of the images."""
    rows: list[dict[str, Any]] = []
    for number in range(ROUNDS + 1):
        if number:
            each = images // ROUNDS
            urls = [data_url(picture(side, 900_000 + number * each + i)) for i in range(each)]
            bodies = [chat_body([url], max_tokens=2) for url in urls]
            done = uvloop.run(load.run(deployment, bodies, clients))
            assert not done.errors, done.errors[:3]
        rows.append({
            "images": number * images // ROUNDS,
            **{name: round(p.memory_info().rss / 2**20) for name, p in sorted(deployment.processes().items())},
        })  # fmt: skip
        report.note(f"memory {rows[-1]}")
    return rows
