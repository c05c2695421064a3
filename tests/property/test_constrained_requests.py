"""Constrained requests among others, whatever the depth, the pool, the page size and the client do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from services.scheduler.config import SchedulerConfig
from shared.messages.generation import ABORTED, LENGTH, RUNNING, STOPPED
from tests.fakes.engine import engine_info, expected_tokens
from tests.fakes.grammar import Automaton, random_automaton
from tests.fakes.scheduler_driver import EOS, Driver

VOCAB = 1000
STOPS = frozenset({EOS})


def driver_of(*, depth: int, page_size: int = 1, num_pages: int = 2000, max_rows: int = 16, **flags: bool) -> Driver:
    info = engine_info(
        page_size=page_size, num_pages=num_pages, max_rows=max_rows, vocab_size=VOCAB, mask_slots=max_rows + 3
    )
    return Driver(info, SchedulerConfig(pipeline_depth=depth, chunked_prefill_size=64, **flags))


def outputs_alone(prompts: list[list[int]], grammars: list[Automaton], most: int) -> list[list[int]]:
    """Each request by itself, synchronously, every token sampled."""
    out = []
    for prompt, grammar in zip(prompts, grammars, strict=True):
        driver = driver_of(depth=1, disable_jump_forward=True)
        handle = driver.submit(prompt, most, grammar=grammar)
        driver.run()
        out.append(driver.outputs[handle].tokens)
    return out


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_outputs_are_the_same_alone_and_together_with_and_without_jumps(depth: int, seed: int) -> None:
    rng = np.random.default_rng(100 * depth + seed)
    page_size, most = int(rng.choice([1, 4])), int(rng.choice([9, 60, 200]))
    grammars = [sometimes_slow(rng, random_automaton(rng, int(rng.integers(2, 40)), VOCAB)) for _ in range(10)]
    prompts = [rng.integers(3, VOCAB, int(rng.integers(1, 100))).tolist() for _ in grammars]
    want = outputs_alone(prompts, grammars, most)
    tight = int(rng.choice([160, 500])) // page_size + 40
    for flags in ({}, {"disable_jump_forward": True}):
        driver = driver_of(
            depth=depth, page_size=page_size, num_pages=max(tight, 320 // page_size), max_rows=6, **flags
        )
        constrained = [driver.submit(p, most, grammar=g) for p, g in zip(prompts, grammars, strict=True)]
        plain = driver.submit([7, 8, 9], 30, ignore_eos=True)
        driver.run()
        driver.check()
        for handle, tokens, grammar in zip(constrained, want, grammars, strict=True):
            out = driver.outputs[handle]
            assert out.tokens == tokens
            assert out.error is None
            assert out.finish == (STOPPED if tokens[-1] == EOS else LENGTH)
            assert len(tokens) == most or grammar.accepts(tokens, STOPS)
        assert driver.outputs[plain].tokens == expected_tokens([7, 8, 9], 30, VOCAB)


@pytest.mark.parametrize("seed", range(8))
def test_engines_that_fail_and_clients_that_leave_change_no_other_output(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grammars = [sometimes_slow(rng, random_automaton(rng, 30, VOCAB)) for _ in range(8)]
    prompts = [rng.integers(3, VOCAB, int(rng.integers(1, 60))).tolist() for _ in grammars]
    want = outputs_alone(prompts, grammars, 80)
    driver = driver_of(depth=int(rng.choice([1, 2, 3])))
    handles = [driver.submit(p, 80, grammar=g) for p, g in zip(prompts, grammars, strict=True)]
    left: set[int] = set()
    for step in range(400):
        driver.pump()
        if step in (5, 11):
            engine = driver.session
            driver.scheduler.close(engine, "test")
            driver.plans.clear()
            driver.masks.clear()
            driver.open()
            driver.pump()
        elif step == 7:
            victim = handles[int(rng.integers(len(handles)))]
            if driver.outputs[victim].finish == RUNNING:
                driver.abort(victim)
                left.add(victim)
        if not driver.answer() and not driver.aside.tasks:
            break
    driver.check()
    for handle, tokens in zip(handles, want, strict=True):
        out = driver.outputs[handle]
        if handle in left:
            assert out.finish == ABORTED
            assert out.tokens == tokens[: len(out.tokens)]
        else:
            assert out.tokens == tokens


def sometimes_slow(rng: np.random.Generator, grammar: Automaton) -> Automaton:
    return dataclasses.replace(grammar, slow=bool(rng.random() < 0.4))


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_state_that_takes_too_long_ends_its_request_only(depth: int, slow: bool) -> None:
    rng = np.random.default_rng(4)
    grammar = Automaton([{5: 1, 6: 1}, {5: 2, 6: 2}, {5: 3, 6: 3}, {}], frozenset({3}), slow=slow)
    driver = driver_of(depth=depth)
    good = driver.submit([3, 4], 20, grammar=grammar)
    bad = driver.submit([3, 5], 20, grammar=dataclasses.replace(grammar, overrun_at=2))
    others = [driver.submit(rng.integers(3, VOCAB, 9).tolist(), 15, ignore_eos=True) for _ in range(3)]
    driver.run()
    driver.check()
    assert driver.outputs[good].finish == STOPPED
    assert driver.outputs[bad].error is not None
    assert "too long" in driver.outputs[bad].error.message
    assert len(driver.outputs[bad].tokens) == 2
    assert all(len(driver.outputs[handle].tokens) == 15 for handle in others)
