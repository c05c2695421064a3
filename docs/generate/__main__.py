"""Write the generated pages, or with `--check` exit with 1 when one is not current."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from docs.generate import config_page, messages_page, structured_output_page, subjects_page, walk_page
from docs.generate.source import ROOT

PAGES: dict[str, Callable[[], str]] = {
    "subjects.md": subjects_page.render,
    "messages.md": messages_page.render,
    "config.md": config_page.render,
    "walk.md": walk_page.render,
    "structured_output.md": structured_output_page.render,
}


def stale() -> list[Path]:
    """Pages whose file differs from what the code says."""
    return [path for path, text in _rendered() if not path.is_file() or path.read_text() != text]


def write() -> list[Path]:
    """Write the pages that changed; returns them."""
    changed = stale()
    for path, text in _rendered():
        if path in changed:
            path.write_text(text)
    return changed


def _rendered() -> list[tuple[Path, str]]:
    return [(ROOT / "docs" / name, render().rstrip() + "\n") for name, render in PAGES.items()]


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        old = stale()
        for path in old:
            print(f"{path.relative_to(ROOT)} is not current: run `make docs`", file=sys.stderr)
        return bool(old)
    for path in write():
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
