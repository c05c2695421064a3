"""A run as JSON lines: states, forks, texts, generations, timings, cached tokens, log probabilities.

One file may hold many runs, also of several threads. Each line is one event; `docs/language.md` lists them.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rhizome.lang.errors import LanguageError


class Recorder:
    """An open trace file. Thread-safe; a context manager."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = self.path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; what a run that is still going says after `close` is dropped."""
        line = json.dumps({"event": event, "at_s": round(time.time(), 6), **fields}, ensure_ascii=False, default=str)
        with self._lock:
            if self._file is not None:
                self._file.write(line + "\n")
                self._file.flush()

    @property
    def is_closed(self) -> bool:
        return self._file is None

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class RunRecord:
    """The events of one run; does nothing without a recorder."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._run = uuid.uuid4().hex[:12]  # unique in a file that several processes append to
        self._states = itertools.count()

    @property
    def is_on(self) -> bool:
        return self._recorder is not None

    def next_state(self) -> int:
        return next(self._states)

    def event(self, event: str, **fields: Any) -> None:
        if self._recorder is not None:
            self._recorder.write(event, run=self._run, **fields)


def open_recorder(record: Recorder | str | Path | None) -> Recorder | None:
    """What a user gave as `record=`; a path is opened and stays open until the process ends.

    Raises:
        LanguageError: a recorder that is closed.
    """
    if isinstance(record, Recorder) and record.is_closed:
        raise LanguageError(f"the recorder of {record.path} is closed: record a run before that")
    if record is None or isinstance(record, Recorder):
        return record
    key = str(Path(record).resolve())
    with _opened_lock:
        if key not in _opened:
            _opened[key] = Recorder(record)
        return _opened[key]


_opened: dict[str, Recorder] = {}
_opened_lock = threading.Lock()
