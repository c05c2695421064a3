"""Recorded runs: the file's events, and the tree that `rhizome trace show` prints."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import rhizome as rz
from rhizome.cli import main
from rhizome.lang.source import here


@rz.function
def tips(s):
    s += rz.user("Two tips, please, and nothing that was said before a hundred times to everyone.")
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += rz.assistant(f"Tip {i}:" + rz.gen("tip"))
    s += "best: " + rz.select("best", choices=["1", "0.0"])


def record(path: Path, **more) -> None:
    answers = more.pop("answers", ["eat", "run"])
    tips.run(backend=rz.FakeBackend(answers), record=path, **more)


def test_every_state_fork_text_and_generation_is_there(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    record(path)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = [e["event"] for e in events]
    assert kinds[0] == "program"
    assert kinds[-1] == "end"
    assert kinds.count("state") == 3
    assert kinds.count("hint") == 1
    gens = [e for e in events if e["event"] == "gen"]
    assert [(e["name"], e["text"], e["completion_tokens"]) for e in gens] == [("tip", "eat", 1), ("tip", "run", 1)]
    assert all(e["seconds"] >= 0 and "test_recording.py:" in e["line"] for e in gens)
    assert next(e for e in events if e["event"] == "select")["scores"] == [-1.0, -3.0]
    assert events[-1]["report"]["calls"] == 3
    assert len({e["run"] for e in events}) == 1


def test_the_tree_shows_branches_and_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    record(path)
    record(path, answers=["eat", rz.BackendError("broken")])
    assert main(["trace", "show", str(path), "--run", "tips"]) == 0
    out = capsys.readouterr().out
    assert out.count("tips  ") == 2
    assert "└─ branch 1" in out
    assert "gen    tip = 'eat'" in out
    assert "hint   " in out
    assert "failed: broken" in out


def test_files_that_are_no_traces_are_told_with_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"event": "program", "run": "1", "name": "p", "at_s": 0}\nnonsense\n')
    assert main(["trace", "show", str(path)]) == 2
    assert f"{path}:2: not an event" in capsys.readouterr().err
    assert main(["trace", "show", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_default_recording_takes_every_run(tmp_path: Path) -> None:
    with rz.Recorder(tmp_path / "all.jsonl") as recorder:
        rz.set_default_record(recorder)
        try:
            tips.run_batch([{}, {}], backend=rz.FakeBackend(lambda *_: "x"))
        finally:
            rz.set_default_record(None)
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert len({e["run"] for e in lines}) == 2


def test_a_text_may_have_any_line_separator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    record(path, answers=["a\u2028b\u0085c", "run"])
    assert main(["trace", "show", str(path)]) == 0
    assert capsys.readouterr().err == ""


def test_runs_of_processes_with_one_id_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    record(path)
    code = f"import rhizome.lang.recording as r; r.RunRecord(r.Recorder({str(path)!r})).event('program', name='p')"
    for _ in range(2):  # in containers a process id comes again
        subprocess.run([sys.executable, "-c", "import os; os.getpid = lambda: 1; " + code], check=True, timeout=60)
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert len({e["run"] for e in events}) == 3


def test_a_closed_recorder_records_no_new_run(tmp_path: Path) -> None:
    recorder = rz.Recorder(tmp_path / "trace.jsonl")
    recorder.close()
    recorder.write("text", text="late")  # of a run that is still going
    with pytest.raises(rz.LanguageError, match="is closed"):
        tips.run(backend=rz.FakeBackend(["eat", "run"]), record=recorder)


def test_the_edge_of_a_turn_has_the_programs_line() -> None:
    lines: list = []
    language = {"__name__": "rhizome.lang.pretended", "here": here, "lines": lines, "contextmanager": contextmanager}
    exec("@contextmanager\ndef block():\n    lines.append(here())\n    yield\n    lines.append(here())\n", language)
    with language["block"]():
        pass
    assert [line.function for line in lines] == ["test_the_edge_of_a_turn_has_the_programs_line"] * 2
    assert all(line.file == __file__ for line in lines)
