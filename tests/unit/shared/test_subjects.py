"""Subject names, the catalog of them, and which reply subjects a client may choose."""

from __future__ import annotations

import inspect
import re

import pytest

from shared import messages as m
from shared import wire
from shared.errors import ConfigError, InvalidRequest
from shared.subjects import CATALOG, Subjects

SUBJECTS = Subjects("d")
ANSWERS_OF_ANY_SUBJECT = {m.ErrorReply}
QUESTIONS = {"check_reply", "is_gateways"}
"""Methods that build no subject."""


def built_patterns() -> set[str]:
    """Every subject that `Subjects` builds, its arguments written as <argument>."""
    out = set()
    for name, member in inspect.getmembers(Subjects):
        if isinstance(member, property):
            out.add(getattr(SUBJECTS, name))
        elif inspect.isfunction(member) and not name.startswith("_") and name not in QUESTIONS:
            out.add(getattr(SUBJECTS, name)(*(f"<{p}>" for p in list(inspect.signature(member).parameters)[1:])))
    return {re.sub(r"<\w+>", "<>", s.removeprefix("rz.v1.d.")) for s in out}


def test_the_catalog_has_every_subject_and_no_other() -> None:
    listed = {re.sub(r"<[^>]+>", "<>", e.pattern) for e in CATALOG} - {"<>"}
    assert listed | {"gateway.<>.deltas"} == built_patterns()


def test_the_catalog_has_every_message_class() -> None:
    listed = {e.message for e in CATALOG} | {e.answer for e in CATALOG if e.answer} | ANSWERS_OF_ANY_SUBJECT
    assert listed == {c for c in wire.message_classes() if c.__name__ in m.__all__}


def test_every_line_of_the_catalog_says_what_a_loss_does() -> None:
    assert all(e.publisher and e.subscriber and e.loss for e in CATALOG)


def test_subjects_carry_the_deployment() -> None:
    assert Subjects("a").generate == "rz.v1.a.tokenizer.generate"
    assert Subjects("b").engine_plan("e1") == "rz.v1.b.engine.e1.plan"


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "é", "x" * 65, "a\n"])
def test_a_deployment_name_is_one_plain_token(name: str) -> None:
    with pytest.raises(ConfigError, match="--deployment"):
        Subjects(name)


@pytest.mark.parametrize(
    "reply", ["me", "me.stream", "_INBOX.x.y", "a-b_c.1", "rz.v1.d.gateway.g1.deltas", "rzone.x", "é.x", "x" * 255]
)
def test_a_reply_subject_of_the_clients_own_is_accepted(reply: str) -> None:
    SUBJECTS.check_reply(reply)


@pytest.mark.parametrize(
    "reply",
    ["", ".", "a..b", ".a", "a.", "a b", "a\nb", "a\r\nPUB x 0", "*", ">", "a.*", "a.>", "a*", "x" * 256, "rz",
     "rz.v1.d.scheduler.schedule", "rz.v1.d.gateway.g1.other", "rz.v1.other.gateway.g.deltas",
     "rz.v1.d.tokenizer.x.deltas", "$SYS.x", "$SRV.PING", "$JS.API", "$KV.b", "$O.b"],
)  # fmt: skip
def test_a_reply_subject_that_reaches_into_the_system_is_refused(reply: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SUBJECTS.check_reply(reply)
    assert caught.value.param == "reply"
