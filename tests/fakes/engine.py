"""An engine without a model that checks every plan as it executes it.

It keeps, per slot of the KV pool, a fingerprint of the token prefix whose keys and values would be there. A row may
only attend to slots that hold exactly its own prefix, so pages that were freed too early, shared wrongly or forgotten
are found at once, whatever the interleaving. Its tokens are a function of the whole prefix, so a request's output is
the same alone, batched, retracted or cached: `expected_tokens` says what it must be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared import messages as m

I32 = npt.NDArray[np.int32]
_MASK = (1 << 61) - 1


def fingerprint(before: int, token: int) -> int:
    """Fingerprint of a prefix from that of the prefix before and its last token."""
    return ((before * 1_000_003) ^ (token + 0x9E3779B9)) * 2_654_435_761 & _MASK


def next_token(prefix: int, vocab_size: int, eos_id: int = -1, eos_every: int = 0) -> int:
    """The scripted model: what follows a prefix."""
    if eos_every and prefix % eos_every == 0:
        return eos_id
    return 3 + prefix % (vocab_size - 3)


def constrained_token(prefix: int, allowed: Sequence[int]) -> int:
    """The scripted model under a mask: one of the allowed tokens."""
    return allowed[prefix // 7 % len(allowed)]


def media_token(key: str, row: int) -> int:
    """What the scripted model sees in place of a token's id: row `row` of an image's embeddings."""
    return 10_000_000 + int(key, 16) * 1000 + row


def _listed(values: I32 | None) -> list[int]:
    return [] if values is None else values.tolist()


def expected_tokens(prompt: list[int], count: int, vocab_size: int, eos_id: int = -1, eos_every: int = 0) -> list[int]:
    """Output of the scripted model for a prompt, up to and including the first EOS."""
    at = 0
    for token in prompt:
        at = fingerprint(at, token)
    out: list[int] = []
    while len(out) < count and (not out or out[-1] != eos_id):
        out.append(next_token(at, vocab_size, eos_id, eos_every))
        at = fingerprint(at, out[-1])
    return out


def engine_info(
    *, engine_id: str = "engine-0-test", num_pages: int = 1000, page_size: int = 1, max_rows: int = 16,
    context_length: int = 512, vocab_size: int = 1000, mask_slots: int = 0, media_bytes: int = 0,
) -> m.EngineInfo:  # fmt: skip
    """What a worker would announce."""
    return m.EngineInfo(
        engine_id=engine_id, name=engine_id.rsplit("-", 1)[0], state="ready", model="scripted", tp_size=1,
        device="none", dtype="none", attention_backend="none", page_size=page_size, num_pages=num_pages,
        max_rows=max_rows, context_length=context_length, vocab_size=vocab_size, mask_slots=mask_slots,
        media_bytes=media_bytes,
    )  # fmt: skip


class ScriptedEngine:
    """Executes plans in order. `check=False` leaves the slots out and answers as fast as it can."""

    def __init__(self, info: m.EngineInfo, *, eos_id: int = -1, eos_every: int = 0, check: bool = True) -> None:
        self.info, self._eos_id, self._eos_every, self._check = info, eos_id, eos_every, check
        self.steps = 0
        self._session = ""
        self._media: dict[tuple[str, int], m.EmbeddingRef] = {}
        self._reset("")

    def _reset(self, session: str) -> None:
        info = self.info
        pages_per_row = -(-(info.context_length + 1) // info.page_size)
        self._session, self._seq = session, 0
        self._bank: dict[int, list[int]] = {}
        self._allowed: dict[int, list[int]] = {}
        self._slots = np.zeros((info.num_pages + 1) * info.page_size, np.int64)
        self._table = np.zeros((info.max_rows, pages_per_row), np.int32)
        self._pages = np.zeros(info.max_rows, np.int32)
        self._len = np.zeros(info.max_rows, np.int32)
        self._prefix = [0] * info.max_rows
        self._last = np.zeros(info.max_rows, np.int32)
        self._decode: I32 = np.empty(0, np.int32)
        self._init: dict[int, m.RowInit] = {}

    def stage(self, ask: m.StageMedia, *, lost: bool = False) -> m.MediaStaged:
        """Have embeddings at hand, or not."""
        for slot, ref in zip(ask.slots, ask.refs, strict=True):
            if not lost:
                self._media[ask.session, slot] = ref
        slots: list[int] = []
        return m.MediaStaged(ask.engine_id, ask.session, 0, *((slots, ask.slots) if lost else (ask.slots, slots)))

    def staged(self, session: str) -> set[int]:
        """Slots at hand."""
        return {slot for of, slot in self._media if of == session}

    def execute(self, plan: m.StepPlan, masks: Sequence[m.StepMasks] = ()) -> m.StepResult:
        """Run one plan with its masks; AssertionError says what the scheduler did wrong."""
        if plan.seq == 0 and plan.session != self._session:
            self._reset(plan.session)
        assert plan.session == self._session, "plan of a session that was never started"
        assert plan.seq == self._seq, f"plan {plan.seq}, expected {self._seq}"
        self._seq += 1
        self.steps += 1
        self._set_up(plan)
        if plan.decode_rows is not None:
            self._decode = plan.decode_rows
        self._allowed = self._masks(plan, masks)
        tokens, counts, logprobs = self._extend(plan)
        for slot in _listed(plan.drop_media):
            self._media.pop((plan.session, slot), None)  # it may have been missing
        if self._check:
            tokens += [self._feed(int(row), int(self._last[row])) for row in self._decode]
        else:
            tokens += (3 + (self._len[self._decode] * 31 + self._decode) % (self.info.vocab_size - 3)).tolist()
            self._len[self._decode] += 1
        out = np.array(tokens, np.int32)
        wants = any(i.return_logprob for i in self._init.values())
        return m.StepResult(
            engine_id=self.info.engine_id, session=plan.session, seq=plan.seq, tokens=out,
            logprobs=-out.astype(np.float32) if wants else None,
            prompt_counts=np.array(counts, np.int32) if plan.ext_lp_starts is not None else None,
            prompt_logprobs=np.array(logprobs, np.float32) if plan.ext_lp_starts is not None else None,
        )  # fmt: skip

    def _masks(self, plan: m.StepPlan, messages: Sequence[m.StepMasks]) -> dict[int, list[int]]:
        """What each masked row of the plan may sample; every masked row must be told exactly once."""
        allowed: dict[int, list[int]] = {}
        for masks in messages:
            assert (masks.session, masks.seq) == (plan.session, plan.seq)
            whole = [] if masks.new_masks is None else list(masks.new_masks)
            for slot, mask in zip(_listed(masks.new_slots), whole, strict=True):
                bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
                self._bank[slot] = np.flatnonzero(bits[: self.info.vocab_size]).tolist()
            if masks.list_counts is not None and masks.list_tokens is not None:
                ends = np.cumsum(masks.list_counts).tolist()
                for slot, end, count in zip(_listed(masks.list_slots), ends, masks.list_counts.tolist(), strict=True):
                    self._bank[slot] = masks.list_tokens[end - count : end].tolist()
            assert all(slot < self.info.mask_slots for slot in self._bank)
            for row, slot in zip(masks.rows.tolist(), masks.slots.tolist(), strict=True):
                assert row not in allowed, f"row {row} is masked twice"
                allowed[row] = self._bank[slot] if slot >= 0 else list(range(self.info.vocab_size))
        assert sorted(allowed) == sorted(_listed(plan.masked_rows))
        return allowed

    def _set_up(self, plan: m.StepPlan) -> None:
        for init in plan.new_rows:
            self._pages[init.row] = 0
            self._len[init.row] = 0
            self._init[init.row] = init
        if plan.page_rows is None:
            return
        assert plan.page_starts is not None
        assert plan.page_lens is not None
        for row, start, count in zip(plan.page_rows, plan.page_starts, plan.page_lens, strict=True):
            assert start >= 1, "page 0 is the worker's own"
            assert start + count <= self.info.num_pages + 1, "page outside the pool"
            at = self._pages[row]
            self._table[row, at : at + count] = np.arange(start, start + count)
            self._pages[row] += count

    def _extend(self, plan: m.StepPlan) -> tuple[list[int], list[int], list[float]]:
        tokens: list[int] = []
        counts: list[int] = []
        logprobs: list[float] = []
        if plan.ext_rows is None:
            return tokens, counts, logprobs
        assert plan.ext_starts is not None
        assert plan.ext_lens is not None
        assert plan.ext_tokens is not None
        assert plan.ext_sample is not None
        fed = self._with_media(plan, plan.ext_tokens.tolist())
        at = 0
        for i, row in enumerate(plan.ext_rows.tolist()):
            start, count = int(plan.ext_starts[i]), int(plan.ext_lens[i])
            chunk = plan.ext_tokens[at : at + count].tolist()
            inputs = fed[at : at + count]
            at += count
            assert count >= 1
            self._len[row] = start
            self._prefix[row] = self._stored(row, start - 1) if start and self._check else 0
            following = 0
            for token in inputs:
                following = self._feed(row, token) if self._check else token
            if not self._check:
                self._len[row] += count
            if plan.ext_sample[i]:
                self._last[row] = following
                tokens.append(following)
            counts.append(self._prompt_logprobs(plan, i, chunk, logprobs))
        return tokens, counts, logprobs

    def _with_media(self, plan: m.StepPlan, tokens: list[int]) -> list[int]:
        """The tokens with what stands for embeddings in the places of images."""
        assert min(tokens) >= 0, "the cache's name of an image left the scheduler"
        for at, count, slot, first in _listed(plan.ext_media):
            ref = self._media[plan.session, slot]
            assert first + count <= ref.tokens
            tokens[at : at + count] = [media_token(ref.key, first + i) for i in range(count)]
        return tokens

    def _prompt_logprobs(self, plan: m.StepPlan, i: int, chunk: list[int], out: list[float]) -> int:
        """The logprob of a prompt token is scripted as minus its id."""
        if plan.ext_lp_starts is None or plan.ext_lp_starts[i] < 0:
            return 0
        assert plan.ext_next is not None
        assert plan.ext_starts is not None
        targets = [*chunk[1:], *([int(plan.ext_next[i])] if plan.ext_next[i] >= 0 else [])]
        first = int(plan.ext_starts[i]) + 1
        wanted = [-float(t) for p, t in enumerate(targets, first) if p >= plan.ext_lp_starts[i]]
        out += wanted
        return len(wanted)

    def _feed(self, row: int, token: int) -> int:
        """Compute one position: check the prefix, store the fingerprint, return the next token."""
        at = int(self._len[row])
        assert at < self.info.context_length, f"row {row} runs over the context"
        if at:
            assert self._stored(row, at - 1) == self._prefix[row], f"row {row}: slot {at - 1} holds another prefix"
        now = fingerprint(self._prefix[row] if at else 0, token)
        self._slots[self._slot(row, at)] = now
        self._prefix[row] = now
        self._len[row] += 1
        out = next_token(now, self.info.vocab_size, self._eos_id, self._eos_every)
        if row in self._allowed:
            out = constrained_token(now, self._allowed[row])
        self._last[row] = out
        return out

    def _stored(self, row: int, at: int) -> int:
        return int(self._slots[self._slot(row, at)])

    def _slot(self, row: int, at: int) -> int:
        page, offset = divmod(at, self.info.page_size)
        assert page < self._pages[row], f"row {row} has {self._pages[row]} pages, position {at} needs more"
        return int(self._table[row, page]) * self.info.page_size + offset

    def check_whole_prefix(self, row: int, tokens: list[int]) -> None:
        """Every slot of the row holds the prefix of `tokens` that ends there."""
        at = 0
        for i, token in enumerate(tokens):
            at = fingerprint(at, token)
            assert self._stored(row, i) == at, f"row {row}: position {i} was overwritten"
