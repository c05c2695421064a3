"""docs/subjects.md: who talks to whom, from `shared.subjects.CATALOG`."""

from __future__ import annotations

from docs.generate.markdown import NOTICE, code, size, table
from shared import wire
from shared.subjects import CATALOG, Entry, Subjects

_INTRO = """\
# Subjects

Every name is `{root}.<what stands below>`; `default` is the deployment (`--deployment`), so several can share a
server. **Public** subjects are an interface: plain JSON, kept compatible within `v1`. The others are between the
services and may change with any release; where they carry arrays the layout is that of
[`shared/wire.py`](../shared/wire.py).

An answer may always be an [`ErrorReply`](messages.md#errorreply) instead. Delivery is at most once: the last column
says what a lost message does. The NATS server must allow messages of {most} (`max_payload`).
"""


def render() -> str:
    """The page."""
    lines = [NOTICE, "", _INTRO.format(root=Subjects().root, most=size(wire.MAX_PAYLOAD_BYTES))]
    for title, public in (("Public", True), ("Between services", False)):
        entries = [entry for entry in CATALOG if entry.public is public]
        lines += [f"## {title}", "", *_table(entries), ""]
    return "\n".join(lines)


def _table(entries: list[Entry]) -> list[str]:
    head = ("subject", "from", "to", "queue group", "message", "at most", "answer", "if lost")
    rows = [
        (code(e.pattern), e.publisher, e.subscriber, code(e.queue_group), _link(e.message),
         size(wire.max_bytes(e.message)), _link(e.answer) if e.answer else "", e.loss)
        for e in entries
    ]  # fmt: skip
    return table(head, rows)


def _link(cls: type) -> str:
    return f"[{cls.__name__}](messages.md#{cls.__name__.lower()})"
