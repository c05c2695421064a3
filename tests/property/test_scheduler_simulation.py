"""Random traffic through the real scheduler and an engine that checks every slot it reads.

Whatever is shared, evicted, retracted, aborted or pipelined, each request gets exactly the tokens it would get alone,
pages are conserved after every action, and nothing is left at the end.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.config import SchedulePolicy, SchedulerConfig
from shared.ledgers import LEDGER_S
from shared.messages.generation import ABORTED, LENGTH, RUNNING, STOPPED
from tests.fakes.engine import engine_info, expected_tokens
from tests.fakes.scheduler_driver import EOS, Driver

VOCAB = 50
settings.register_profile("simulation", max_examples=60, deadline=None)


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Prompts that share prefixes often."""
    shared = draw(st.sampled_from(([], [5] * 40, [5] * 20 + [6] * 20, list(range(3, 40)))))
    cut = draw(st.integers(0, len(shared)))
    own = draw(st.lists(st.integers(3, 6), min_size=1, max_size=25))
    return shared[:cut] + own


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"), prompts(), st.integers(0, 60), st.booleans(), st.sampled_from(("", "s")),
            st.sampled_from((None, None, 0, 7)),
        ),
        st.tuples(st.just("abort"), st.integers(0, 40)),
        st.tuples(st.just("pump")),
        st.tuples(st.just("answer")),
        st.tuples(st.just("step")),
        st.tuples(st.just("flush")),
        st.tuples(st.just("lose engine")),
        st.tuples(st.just("lose plans")),
        st.tuples(st.just("lose answers")),
        st.tuples(st.just("tick")),
    ),
    max_size=60,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    script=actions,
    page_size=st.sampled_from((1, 4, 16)),
    pool_tokens=st.integers(80, 400),
    depth=st.integers(1, 3),
    chunk=st.sampled_from((-1, 7, 64)),
    policy=st.sampled_from(("lpm", "fcfs", "priority")),
    radix=st.booleans(),
    conservativeness=st.sampled_from((0.02, 1.0)),
)
def test_every_request_gets_its_own_tokens_whatever_happens_around_it(
    script: list[tuple[Any, ...]], page_size: int, pool_tokens: int, depth: int, chunk: int, policy: SchedulePolicy,
    radix: bool, conservativeness: float,
) -> None:  # fmt: skip
    info = engine_info(
        num_pages=-(-pool_tokens // page_size) + 1,
        page_size=page_size,
        max_rows=6,
        context_length=128,
        vocab_size=VOCAB,
    )
    config = SchedulerConfig(
        pipeline_depth=depth, chunked_prefill_size=chunk, schedule_policy=policy, disable_radix_cache=not radix,
        schedule_conservativeness=conservativeness, queue_timeout_s=1e6, step_timeout_s=1e6,
    )  # fmt: skip
    driver = Driver(info, config, eos_every=17)
    wanted: dict[int, tuple[list[int], int, bool, int | None]] = {}
    aborted: set[int] = set()
    for action, *args in script:
        match action:
            case "submit":
                prompt, max_new, ignore_eos, salt, start = args
                max_new = min(max_new, info.num_pages * page_size - len(prompt), info.context_length - len(prompt))
                handle = driver.submit(prompt, max_new, ignore_eos=ignore_eos, salt=salt, logprob_start=start)
                wanted[handle] = (prompt, max_new, ignore_eos, start)
            case "abort" if wanted:
                handle = list(wanted)[args[0] % len(wanted)]
                aborted.add(handle)
                driver.abort(handle)
            case "pump":
                driver.pump()
            case "answer":
                driver.answer()
            case "step":
                driver.pump()
                driver.answer()
            case "flush":
                driver.scheduler.flush()
            case "lose engine":
                driver.plans.clear()
                driver.open()
            case "lose plans" if driver.plans:
                for _ in range(2):
                    driver.report(received=driver.plans[0].seq - 1, after_s=2.0)
                assert not driver.scheduler.engines
                driver.plans.clear()
                driver.open()
            case "lose answers" if driver.plans:
                for _ in range(2):
                    driver.report(done=driver.plans[0].seq, after_s=2.0)
                assert not driver.scheduler.engines
                driver.plans.clear()
                driver.open()
            case "tick":
                driver.report(after_s=LEDGER_S)
                driver.ledgers.clear()
                driver.tick()
                running = {h for h, out in driver.outputs.items() if out.finish == RUNNING}
                assert {h for _, ledger in driver.ledgers for h in ledger.handles.tolist()} == running
        driver.check()
    driver.run()
    driver.check()
    for handle, (prompt, max_new, ignore_eos, start) in wanted.items():
        out = driver.outputs[handle]
        full = expected_tokens(prompt, max_new, VOCAB, -5 if ignore_eos else EOS, 17)
        if ignore_eos:
            full = _with_eos_as_token(prompt, max_new)
        assert out.finish != RUNNING, "never ended"
        if out.error is not None:
            assert out.error.code == "internal_error", out.error  # lost too many engines
            continue
        if handle in aborted and out.finish == ABORTED:
            assert out.tokens == full[: len(out.tokens)]
            continue
        assert out.tokens == full
        if start is not None:
            assert out.prompt_logprobs[start == 0 :] == [-float(t) for t in prompt[max(start, 1) :]]
        assert out.finish == (STOPPED if full and full[-1] == EOS and not ignore_eos else LENGTH)
    engine = next(iter(driver.scheduler.engines.values()))
    assert engine.pool.rows.used_rows == 0
    assert not driver.scheduler._reqs
    driver.scheduler.flush()
    assert engine.pool.allocator.free_pages == info.num_pages


def _with_eos_as_token(prompt: list[int], count: int) -> list[int]:
    """Expected output when EOS is an ordinary token."""
    out: list[int] = []
    while len(out) < count:
        out.append(expected_tokens(prompt + out, 1, VOCAB, EOS, 17)[0])
    return out
