"""Which configurations a sweep tries: a declared space as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Measure = Literal["auc", "log_loss", "accuracy"]


class Range(Struct, frozen=True, tag_field="kind", tag="range"):
    """Numbers from `low` to `high`, both included; whole ones if both are."""

    low: int | float
    high: int | float
    log: bool = False


class Choice(Struct, frozen=True, tag_field="kind", tag="choice"):
    """One of some values, of any kind that JSON has."""

    values: tuple[Any, ...]


Space = Mapping[str, Range | Choice]


class SweepPlan(Struct, frozen=True, kw_only=True):
    """What is tried before the best of it is trained as the challenger.

    Trials are scored on the newest part of the training's own rows: what the gate judges on stays unseen.
    """

    vary: Annotated[dict[str, Range | Choice], Meta(description="by the name of the parameter")]
    trials: Annotated[int, Meta(ge=1, description="how many in all")] = 20
    parallel: Annotated[int, Meta(ge=1, description="how many are asked for at once")] = 2
    measure: Annotated[Measure, Meta(description="what decides")] = "auc"
    watch: Annotated[
        str, Meta(description="metric of `ctx.progress`, less is better, that stops bad trials; empty: none")
    ] = "loss"


def space_of(said: object) -> Range | Choice:
    """As a person writes it: `1..8`, `log:1e-4..1e-1`, or a list of values, as JSON or as it is.

    Raises:
        ValueError: it cannot be read, or holds nothing to choose from.
    """
    if isinstance(said, list | tuple):
        return _choice(said)
    if not isinstance(said, str):
        raise ValueError(f"{said!r} is neither low..high nor a list")
    if said.startswith("["):
        return _choice(json.loads(said))
    log, low, high = said.startswith("log:"), *said.removeprefix("log:").partition("..")[::2]
    try:
        found = Range(json.loads(low), json.loads(high), log)
    except json.JSONDecodeError as error:
        raise ValueError(f"{said!r} is neither low..high nor a JSON list") from error
    if not all(isinstance(end, int | float) for end in (found.low, found.high)) or not found.low < found.high:
        raise ValueError(f"{said!r}: low and high are numbers, the low one first")
    if log and found.low <= 0:
        raise ValueError(f"{said!r}: on a logarithmic scale both are above 0")
    return found


def _choice(values: list[Any] | tuple[Any, ...]) -> Choice:
    if len(values) < 2:
        raise ValueError("a choice has two values at least")
    try:
        # As it travels, so that what is tried is what was written.
        return msgspec.json.decode(msgspec.json.encode(Choice(tuple(values))), type=Choice)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{values!r} holds what JSON has no word for: {error}") from error


def trial_id(sweep: str, number: int) -> str:
    """The job of a sweep's trial: whoever goes on with the sweep finds it by this."""
    return f"{sweep}-trial-{number}"


def is_trial_of(sweep: str, job_id: str) -> bool:
    """Whether a job is a trial of that sweep."""
    return sweep_of(job_id) == sweep


def sweep_of(job_id: str) -> str | None:
    """The sweep whose trial a job is, by its id; None if it is no trial's."""
    sweep, _, number = job_id.rpartition("-trial-")
    return sweep if sweep and number.isdigit() else None
