"""Every subject name is built here and nowhere else.

`rz.v1.<deployment>.<destination>[.<id>].<verb>`. `CATALOG` describes each pattern; docs/subjects.md is generated
from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared import messages as m
from shared.errors import ConfigError, InvalidRequest

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REPLY = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


class Subjects:
    """Names of one deployment. Immutable."""

    def __init__(self, deployment: str = "default") -> None:
        if not _TOKEN.fullmatch(deployment):
            raise ConfigError(f"--deployment {deployment!r}: use letters, digits, '-' and '_' only")
        self.root = f"rz.v1.{deployment}"

    # requests and token streams
    @property
    def generate(self) -> str:
        return f"{self.root}.tokenizer.generate"

    @property
    def tokenize(self) -> str:
        return f"{self.root}.tokenizer.tokenize"

    @property
    def detokenize(self) -> str:
        return f"{self.root}.tokenizer.detokenize"

    def tokenizer_abort(self, tokenizer_id: str) -> str:
        return f"{self.root}.tokenizer.{tokenizer_id}.abort"

    def tokenizer_tokens(self, tokenizer_id: str) -> str:
        return f"{self.root}.tokenizer.{tokenizer_id}.tokens"

    def gateway_deltas(self, gateway_id: str) -> str:
        return f"{self.root}.gateway.{gateway_id}.deltas"

    @property
    def schedule(self) -> str:
        return f"{self.root}.scheduler.schedule"

    def scheduler_abort(self, scheduler_id: str) -> str:
        return f"{self.root}.scheduler.{scheduler_id}.abort"

    # step plane
    def engine_plan(self, engine_id: str) -> str:
        return f"{self.root}.engine.{engine_id}.plan"

    def engine_masks(self, engine_id: str) -> str:
        return f"{self.root}.engine.{engine_id}.masks"

    def scheduler_result(self, session: str) -> str:
        return f"{self.root}.scheduler.{session}.result"

    def scheduler_fault(self, session: str) -> str:
        return f"{self.root}.scheduler.{session}.fault"

    # images and videos
    @property
    def encode_media(self) -> str:
        return f"{self.root}.vision.encode"

    def vision_cancel(self, vision_id: str) -> str:
        return f"{self.root}.vision.{vision_id}.cancel"

    def vision_share(self, vision_id: str) -> str:
        return f"{self.root}.vision.{vision_id}.share"

    def tokenizer_media(self, tokenizer_id: str) -> str:
        return f"{self.root}.tokenizer.{tokenizer_id}.media"

    def engine_media(self, engine_id: str) -> str:
        return f"{self.root}.engine.{engine_id}.media"

    def scheduler_media(self, session: str) -> str:
        return f"{self.root}.scheduler.{session}.media"

    # control
    def scheduler_engines(self, scheduler_name: str) -> str:
        return f"{self.root}.scheduler.{scheduler_name}.engines"

    def scheduler_info(self, scheduler_id: str) -> str:
        return f"{self.root}.scheduler.{scheduler_id}.info"

    def scheduler_flush(self, scheduler_id: str) -> str:
        return f"{self.root}.scheduler.{scheduler_id}.flush"

    @property
    def metrics(self) -> str:
        return f"{self.root}.all.metrics"

    @property
    def heartbeat(self) -> str:
        return f"{self.root}.event.heartbeat"

    @property
    def goodbye(self) -> str:
        return f"{self.root}.event.goodbye"

    def kv_events(self, engine_id: str) -> str:
        return f"{self.root}.event.kv.{engine_id}"

    def check_reply(self, reply: str) -> None:
        """Refuse a reply subject that would let a client write into the system.

        Raises:
            InvalidRequest: empty, longer than 255 characters, with wildcards or spaces, or reserved.
        """
        if len(reply) > 255 or not _REPLY.fullmatch(reply):
            raise InvalidRequest("reply must be a plain NATS subject without wildcards", param="reply")
        if not self.is_gateways(reply) and reply.split(".", 1)[0] in ("rz", "$SRV", "$SYS", "$JS", "$KV", "$O"):
            raise InvalidRequest(f"reply {reply!r} is reserved: choose a subject of your own", param="reply")

    def is_gateways(self, reply: str) -> bool:
        """Whether a reply subject is that of a gateway of this deployment."""
        return reply.startswith(f"{self.root}.gateway.") and reply.endswith(".deltas")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of docs/subjects.md."""

    pattern: str
    publisher: str
    subscriber: str
    queue_group: str
    message: type
    answer: type | None
    public: bool
    loss: str


CATALOG: tuple[Entry, ...] = (
    Entry("tokenizer.generate", "gateway, any client", "tokenizer", "tokenizer", m.GenerateRequest, m.Accepted, True,
          "the sender's request times out; nothing was queued or its deltas arrive all the same"),
    Entry("tokenizer.tokenize", "gateway, any client", "tokenizer", "tokenizer", m.Tokenize, m.Tokens, True,
          "the sender's request times out"),
    Entry("tokenizer.detokenize", "gateway, any client", "tokenizer", "tokenizer", m.Detokenize, m.Text, True,
          "the sender's request times out"),
    Entry("tokenizer.<id>.abort", "gateway, any client", "tokenizer", "", m.Abort, None, True,
          "a gateway's is repeated when the tokenizer's ledger still names the request; else it runs to its own end"),
    Entry("<reply of the request>", "tokenizer", "gateway, any client", "", m.TextDeltas, None, True,
          "a gap in `seq`, or the tokenizer's next ledger, tells: the gateway ends the request with an error"),
    Entry("scheduler.schedule", "tokenizer", "scheduler", "scheduler", m.TokenizedRequest, m.Queued, False,
          "the tokenizer's request times out and the client gets 503"),
    Entry("scheduler.<id>.abort", "tokenizer", "scheduler", "", m.AbortHandles, None, False,
          "its tokens are ignored; repeated when the scheduler's next ledger still names the request"),
    Entry("tokenizer.<id>.tokens", "scheduler", "tokenizer", "", m.TokenBatch, None, False,
          "a gap in the token count, or the scheduler's next ledger, tells: the tokenizer ends the request with an "
          "error"),
    Entry("engine.<id>.plan", "scheduler", "every rank of the engine", "", m.StepPlan, None, False,
          "a gap in `seq`: the rank reports a fault, the scheduler starts a new session; no next plan: `EngineInfo` "
          "tells that rank 0 lacks it, the step timeout that another rank does"),
    Entry("engine.<id>.masks", "scheduler", "worker rank 0", "", m.StepMasks, None, False,
          "the step waits for them, then rank 0 reports a fault and the scheduler starts a new session"),
    Entry("scheduler.<session>.result", "worker rank 0", "scheduler", "", m.StepResult, None, False,
          "a gap in `seq`, or `EngineInfo` says it was sent: the scheduler starts a new session and re-queues the "
          "engine's requests"),
    Entry("scheduler.<session>.fault", "any worker rank", "scheduler", "", m.EngineFault, None, False,
          "rank 0's `EngineInfo` tells that the step is done and was not answered; of another rank: the step timeout"),
    Entry("vision.encode", "tokenizer", "vision", "vision", m.EncodeMedia, m.EncodeAccepted, False,
          "the tokenizer's request times out and it asks again"),
    Entry("vision.<id>.cancel", "tokenizer", "vision", "", m.CancelEncode, None, False,
          "the work is done for nobody"),
    Entry("tokenizer.<id>.media", "vision", "tokenizer", "", m.MediaEncoded, None, False,
          "the tokenizer asks again after a while, or when the vision instance is lost"),
    Entry("vision.<id>.share", "worker rank on another host", "vision", "", m.ShareEmbedding, m.EmbeddingShared, False,
          "the rank's request times out and it reports the embeddings missing"),
    Entry("engine.<id>.media", "scheduler", "every rank of the engine", "", m.StageMedia, None, False,
          "repeated until every rank has answered"),
    Entry("scheduler.<session>.media", "every worker rank", "scheduler", "", m.MediaStaged, None, False,
          "the scheduler asks again"),
    Entry("scheduler.<name>.engines", "worker rank 0", "scheduler", "", m.EngineInfo, None, False,
          "repeated every second"),
    Entry("scheduler.<id>.info", "gateway, any client", "scheduler", "", m.Empty, m.SchedulerInfo, True,
          "the sender's request times out"),
    Entry("scheduler.<id>.flush", "gateway, any client", "scheduler", "", m.Empty, m.Flushed, True,
          "the sender's request times out"),
    Entry("all.metrics", "gateway", "every service", "", m.Empty, m.MetricsText, True,
          "the instance is missing from one scrape"),
    Entry("event.heartbeat", "every service", "gateway, tokenizer, scheduler, launcher", "", m.Heartbeat, None, True,
          "repeated every second; an instance silent for the liveness timeout counts as lost"),
    Entry("event.goodbye", "every service, launcher", "gateway, tokenizer, scheduler", "", m.Goodbye, None, True,
          "the liveness timeout decides instead"),
    Entry("event.kv.<engine id>", "scheduler", "any router", "", m.KvEvents, None, True,
          "a gap in `seq`: ask for nothing, wait for `cleared` or accept staleness"),
)  # fmt: skip
