"""What the scheduler gets of a prompt with images, and what is refused before."""

from __future__ import annotations

import numpy as np
import pytest

from services.tokenizer import admission
from services.tokenizer.config import TokenizerConfig
from services.tokenizer.encoder import Encoder
from services.tokenizer.media.expansion import MediaPrompt
from services.tokenizer.model import Model, load_model
from services.tokenizer.prompt import Prompt, PromptBuilder
from shared import messages as m
from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.sampling import SamplingParams
from shared.subjects import Subjects
from tests.fakes.vlm_checkpoints import CONTEXT_LENGTH, TOKEN_IDS
from tests.unit.vision.checkpoints import checkpoint

VIDEO = TOKEN_IDS["<|video_pad|>"]
REF = m.EmbeddingRef(f"{1:032x}", "vision-0", "/shm/1", 4, 64, "float32")


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(TokenizerConfig(model_path=str(checkpoint("qwen2_5_vl")[0])))


def prompt(tokens: int, delta: int) -> Prompt:
    ids = [65] * tokens
    positions = np.zeros((3, tokens), np.int32)
    return Prompt(ids, None, MediaPrompt(ids, [m.MediaSpan(0, 4, REF)], positions, delta))


def request(**fields: object) -> m.GenerateRequest:
    return m.GenerateRequest("r", "client.deltas", **{"text": "x", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(("delta", "room"), [(0, 48), (20, 28), (-20, 48)])
def test_positions_ahead_of_indices_take_room_from_the_answer(model: Model, delta: int, room: int) -> None:
    for asked in (None, 1000):
        queued = admission.tokenized(
            request(sampling=SamplingParams(max_new_tokens=asked)), model, prompt(CONTEXT_LENGTH - 48, delta), None,
            "tok", 1,
        )  # fmt: skip
        assert queued.sampling.max_new_tokens == room
    assert queued.position_delta == delta
    assert [span.ref for span in queued.media] == [REF]
    assert queued.positions is not None


def test_a_prompt_of_words_has_no_media(model: Model) -> None:
    queued = admission.tokenized(request(), model, Prompt([65] * 8, "x"), None, "tok", 1)
    assert (queued.media, queued.positions, queued.position_delta) == (None, None, 0)
    assert queued.sampling.max_new_tokens == CONTEXT_LENGTH - 8


def test_a_video_whose_time_runs_over_the_context_is_refused(model: Model) -> None:
    builder = PromptBuilder(model, Encoder(threads=1, max_pending=1))
    video = m.EncodedMedia("video", REF, [4, 1, 1], [0.0] * 4, seconds_per_frame=CONTEXT_LENGTH / 4)
    with pytest.raises(ContextLengthExceeded) as refused:
        builder.with_media(Prompt([VIDEO], None), [video], "messages")
    assert refused.value.param == "messages"


def test_media_beside_a_chat_are_refused() -> None:
    chat = m.ChatInput([{"role": "user", "content": "x"}])
    with pytest.raises(InvalidRequest, match="belong into its messages") as refused:
        admission.check_request(request(text=None, chat=chat, media=[m.MediaSource("data:,")]), Subjects(), 100)
    assert refused.value.param == "media"
    admission.check_request(request(media=[m.MediaSource("data:,")]), Subjects(), 100)
