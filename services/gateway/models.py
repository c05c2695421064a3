"""Names of the served models, from the tokenizers' heartbeats."""

from __future__ import annotations

from collections.abc import Iterable

from services.gateway.http_errors import ModelNotFound
from services.gateway.responses import Model
from shared.errors import Unavailable
from shared.messages import Heartbeat


def served_models(services: Iterable[Heartbeat]) -> dict[str, Model]:
    """Every model that a tokenizer serves, oldest first."""
    facts = [beat.facts for beat in services if beat.service == "tokenizer" and beat.facts.model]
    facts.sort(key=lambda f: f.created_s, reverse=True)
    models = {f.model: Model(f.model, f.created_s, f.context_length) for f in facts}
    return dict(reversed(models.items()))


def resolve_model(asked: str | None, services: Iterable[Heartbeat]) -> Model:
    """The model that a request means; the oldest one when it names none.

    Raises:
        ModelNotFound: no tokenizer serves it.
        Unavailable: no tokenizer is there at all.
    """
    models = served_models(services)
    if not models:
        raise Unavailable("no tokenizer is ready: start one or wait until /ready answers 200")
    if asked is None:
        return next(iter(models.values()))
    if asked not in models:
        known = ", ".join(repr(name) for name in models)
        raise ModelNotFound(f"the model {asked[:100]!r} does not exist: served here: {known}", param="model")
    return models[asked]
