"""Two pictures: a branch describes each, then both are compared. Needs a server whose model takes images."""

from __future__ import annotations

import struct
import zlib

import rhizome as rz
from examples.connect import connect

SIZE = 224
RED, BLUE, WHITE = (220, 40, 40), (40, 70, 210), (255, 255, 255)


def in_disc(x: int, y: int) -> bool:
    return (x - SIZE // 2) ** 2 + (y - SIZE // 2) ** 2 < (SIZE // 3) ** 2


def in_square(x: int, y: int) -> bool:
    return max(abs(x - SIZE // 2), abs(y - SIZE // 2)) < SIZE // 3


def drawn(inside, color) -> bytes:
    """A PNG of a shape on white."""
    rows = (
        b"\0" + b"".join(bytes(color if inside(x, y) else WHITE) for x in range(SIZE)) for y in range(SIZE)
    )  # fmt: skip

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)
    body = zlib.compress(b"".join(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


PICTURES = {"first": drawn(in_disc, RED), "second": drawn(in_square, BLUE)}


@rz.function
def compare(s, first, second):
    """Both pictures are computed once; the branches and the verdict go on behind them."""
    s += rz.user("First picture: " + rz.image(first) + "\nSecond picture: " + rz.image(second))
    s += rz.assistant("I see both.")
    branches = s.fork(2)
    for branch, name in zip(branches, PICTURES, strict=True):
        branch += rz.user(f"What does the {name} picture show? Answer in a few words.")
        branch += rz.assistant(rz.gen("description", max_tokens=24, stop="\n"))
    branches.join()
    s += rz.user("What is the difference between them? Answer in one sentence.")
    s += rz.assistant(rz.gen("difference", max_tokens=48, stop="\n"))
    s += rz.user("Which one has corners?")
    s += rz.assistant("The " + rz.select("corners", list(PICTURES)) + " one.")


def main() -> None:
    state = compare.run(**PICTURES, temperature=0)
    for name, description in zip(PICTURES, state["description"], strict=True):
        print(f"{name:<8} {description}")
    print(state["difference"])
    print("corners:", state["corners"])


if __name__ == "__main__":
    connect(__doc__)
    main()
