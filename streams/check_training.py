"""Mistakes in a pipeline's trigger and training."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from streams.declared import Place, Problem, nearest
from streams.pipeline import Pipeline


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
    if pipeline.train.data.windows < 1:
        yield Problem(pipeline.train.data.place, "last(windows=…) must be at least 1")
    if pipeline.publish_when.windows < 1:
        yield Problem(pipeline.place, "publish_when judges over windows=0; at least the newest is needed")
    module, _, function = pipeline.train.code.partition(":")
    yield from _code(pipeline.train.place, module, function)


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
