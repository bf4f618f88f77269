"""Mistakes in a pipeline's trigger and training."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from schemas.selection import Balanced
from schemas.sweep import Measure, space_of
from streams.declared import Place, Problem, nearest
from streams.duration import to_ms
from streams.pipeline import Pipeline
from streams.training import Canary, Sweeping


def training(pipeline: Pipeline) -> Iterator[Problem]:
    """Mistakes in when to train, what, and by which code."""
    if pipeline.train_when is not None and pipeline.train is None:
        yield Problem(
            pipeline.place,
            "train_when says when to train, but train does not say what; add train=Training(…)",
        )
    if pipeline.train is None:
        return
    if pipeline.train_when is None:
        yield Problem(pipeline.train.place, "train is never asked for; say when by train_when")
    if pipeline.labels is None:
        yield Problem(pipeline.train.place, "there is nothing to learn without labels; add labels=Labels(…)")
    yield from _groups(pipeline)
    if pipeline.train.sweep is not None:
        yield from _sweep(pipeline.train.sweep)
    if pipeline.train.canary is not None:
        yield from _canary(pipeline.train.canary)
    if pipeline.publish_when.windows < 1:
        yield Problem(pipeline.place, "publish_when judges over windows=0; at least the newest is needed")
    module, _, function = pipeline.train.code.partition(":")
    yield from _code(pipeline.train.place, module, function)


def _groups(pipeline: Pipeline) -> Iterator[Problem]:
    """What the selection and the gate group rows by must be something that a row of examples has."""
    assert pipeline.train is not None
    known = [*pipeline.columns, *(name for feature in pipeline.features for name in feature.names())]
    data, gate = pipeline.train.data, pipeline.publish_when.gate
    if isinstance(data.selection, Balanced) and data.selection.by not in {*known, "_tags"}:
        by = data.selection.by
        yield Problem(
            data.place, f"balanced(by={by!r}): no such feature or column{nearest(by, known)}; or _tags"
        )
    for column in gate.slices:
        if column not in known:
            yield Problem(
                pipeline.place,
                f"slices={column!r}: no such feature or column{nearest(column, known)}",
            )
    for name in gate.allowances:
        column = name.partition("=")[0]
        if column not in {*gate.slices, "tag"}:
            yield Problem(
                pipeline.place,
                f"allowances for {name!r}: it is judged by nothing of that name; add it to slices"
                f"{nearest(column, [*gate.slices, 'tag'])}",
            )
    for name in gate.trusted:
        if name not in {*known, "*"}:
            yield Problem(pipeline.place, f"trusted={name!r}: no such feature{nearest(name, known)}")


def _sweep(sweep: Sweeping) -> Iterator[Problem]:
    """What is tried must be something to choose from."""
    for name in ("every", "trials", "parallel"):
        if getattr(sweep, name) < 1:
            yield Problem(sweep.place, f"sweep({name}={getattr(sweep, name)}): it must be 1 or more")
    known = get_args(Measure)
    if sweep.measure is not None and sweep.measure not in known:
        yield Problem(
            sweep.place, f"sweep(measure={sweep.measure!r}): no such measure{nearest(sweep.measure, known)}"
        )
    if not sweep.vary:
        yield Problem(
            sweep.place, 'sweep(vary={}): name what to try, such as {"learning_rate": "log:1e-4..1e-1"}'
        )
    for name, said in sweep.vary.items():
        try:
            space_of(said)
        except ValueError as error:
            yield Problem(sweep.place, f"sweep varies {name}: {error}")


def _canary(canary: Canary) -> Iterator[Problem]:
    """A trial must have requests, labels and an end."""
    if not 0 < canary.share <= 0.5:
        yield Problem(canary.place, f"Canary(share={canary.share}): it must be above 0 and at most 0.5")
    if canary.pairs < 2:
        yield Problem(canary.place, f"Canary(pairs={canary.pairs}): it must be 2 or more")
    try:
        longest_ms = to_ms(canary.longest)
    except ValueError as error:
        yield Problem(canary.place, f"Canary(longest={canary.longest!r}): {error}")
        return
    if longest_ms <= 0:
        yield Problem(canary.place, f"Canary(longest={canary.longest!r}): it must be more than nothing")


def _code(place: Place, module: str, function: str) -> Iterator[Problem]:
    """Look for the function in the module's source: importing it would import torch."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        yield Problem(
            place, f"there is no module {module!r} for the model's code; install it, or correct the name"
        )
        return
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    found |= {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found |= {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if function not in found:
        yield Problem(place, f"module {module} has no {function!r}{nearest(function, found)}")
