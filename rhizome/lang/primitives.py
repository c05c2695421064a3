"""What programs append: `gen`, `select`, roles, images. Names and arguments are SGLang's, with some of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rhizome.lang import ir
from rhizome.lang.choices import ChoicesSamplingMethod, token_length_normalized
from rhizome.lang.errors import LanguageError
from rhizome.lang.reasoning import reasoning_format
from rhizome.lang.sampling import SamplingParams, check_regex


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesSamplingMethod | None = None,
    regex: str | None = None,
    json_schema: str | dict[str, Any] | None = None,
    *,
    ebnf: str | None = None,
    structural_tag: str | dict[str, Any] | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
    tool_choice: str | dict[str, Any] | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> ir.Gen | ir.Select:
    """Let the model generate, into variable `name`.

    Args:
        max_tokens: most tokens (128 by default). n: samples; the variable is then a list.
        stop, stop_token_ids, stop_regex: what ends the text; it is not part of it.
        dtype: int, float, str or bool: a regular expression for a literal of that type.
        choices: the same as `select`.
        regex, json_schema, ebnf, structural_tag: the text has this form; at most one of them.
        tools: OpenAI tool definitions; calls are in `get_meta_info(name)["tool_calls"]`.

    Raises:
        LanguageError: arguments that contradict each other or cannot be read.
    """
    if choices is not None:
        return select(name, choices, temperature or 0.0, choices_method or token_length_normalized)
    check_regex(regex)
    for pattern in [stop_regex] if isinstance(stop_regex, str) else stop_regex or ():
        check_regex(pattern)
    params = SamplingParams(
        max_new_tokens=max_tokens, min_new_tokens=min_tokens, n=n, stop=stop, stop_token_ids=stop_token_ids,
        stop_regex=stop_regex, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, repetition_penalty=repetition_penalty,
        ignore_eos=ignore_eos, seed=seed, return_logprob=return_logprob, logprob_start_len=logprob_start_len,
        top_logprobs_num=top_logprobs_num, return_text_in_logprobs=return_text_in_logprobs, dtype=dtype, regex=regex,
        json_schema=_json_text(json_schema), ebnf=ebnf, structural_tag=_json_text(structural_tag), tools=tools,
        tool_choice=tool_choice,
    )  # fmt: skip
    params.resolved()  # faults are told where they are written
    return ir.Gen(name, params)


def gen_int(name: str | None = None, max_tokens: int | None = None, **arguments: Any) -> ir.Gen | ir.Select:
    """`gen` of an integer."""
    return gen(name, max_tokens, dtype=int, **arguments)


def gen_string(name: str | None = None, max_tokens: int | None = None, **arguments: Any) -> ir.Gen | ir.Select:
    """`gen` of a quoted string."""
    return gen(name, max_tokens, dtype=str, **arguments)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesSamplingMethod = token_length_normalized,
) -> ir.Select:
    """The most likely of `choices`, into variable `name`.

    Raises:
        LanguageError: there are none.
    """
    if not choices:
        raise LanguageError("select needs choices")
    return ir.Select(name, list(choices), temperature, choices_method)


def image(source: Any) -> ir.ImageExpr:
    """A picture: a path, an http(s) or data URL, bytes, or a PIL image. A program may have several."""
    return ir.ImageExpr(source)


def video(path: str, num_frames: int) -> ir.VideoExpr:
    """`num_frames` pictures of a video file, evenly spread."""
    return ir.VideoExpr(path, num_frames)


def separate_reasoning(expr: ir.Appendable, model_type: str = "deepseek-r1") -> ir.ExprList:
    """The same, with each generation's thoughts in `<name>_reasoning_content` instead of in the text."""
    reasoning_format(model_type)
    return ir.reasoning_split([expr], model_type)


def system(expr: ir.Appendable | None = None) -> ir.ExprList:
    return _turn("system", expr)


def user(expr: ir.Appendable | None = None) -> ir.ExprList:
    return _turn("user", expr)


def assistant(expr: ir.Appendable | None = None) -> ir.ExprList:
    return _turn("assistant", expr)


def system_begin() -> ir.RoleBegin:
    return ir.RoleBegin("system")


def system_end() -> ir.RoleEnd:
    return ir.RoleEnd("system")


def user_begin() -> ir.RoleBegin:
    return ir.RoleBegin("user")


def user_end() -> ir.RoleEnd:
    return ir.RoleEnd("user")


def assistant_begin() -> ir.RoleBegin:
    return ir.RoleBegin("assistant")


def assistant_end() -> ir.RoleEnd:
    return ir.RoleEnd("assistant")


def _turn(role: str, expr: ir.Appendable | None) -> ir.ExprList:
    inner = [] if expr is None else list(ir.flatten(expr))
    return ir.ExprList([ir.RoleBegin(role), *inner, ir.RoleEnd(role)])


def _json_text(value: str | dict[str, Any] | None) -> str | None:
    if value is None or isinstance(value, str):
        return value
    import json

    return json.dumps(value)
