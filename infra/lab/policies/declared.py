"""A policy: a trigger and a selection of rows, as an engineer writes them in a pipeline."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from schemas.errors import InvalidConfiguration
from streams.check.trigger import trigger as trigger_problems
from streams.ingest import source_schema
from streams.load import Loaded
from streams.pipeline import Pipeline
from streams.training import Data
from streams.trigger import Condition

OWN = "the pipeline's own"
WEEKLY = "weekly"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A trigger with a selection, each beside the code that says it."""

    name: str
    trigger: str
    data: str
    train_when: Condition
    select: Data

    def pipeline(self, base: Pipeline) -> Pipeline:
        """The pipeline as it would be under this policy. Nothing is swept: parameters stay as declared."""
        assert base.train is not None
        train = dataclasses.replace(base.train, data=self.select, sweep=None)
        return dataclasses.replace(base, train_when=self.train_when, train=train)

    def code(self) -> str:
        """What to write into the pipeline's file."""
        names = sorted(_called(self.trigger) & set(_public("streams.trigger")))
        lines = [f"from streams.trigger import {', '.join(names)}"] if names else []
        chosen = sorted(_called(self.data) & set(_public("streams.training")))
        lines += [f"from streams.training import {', '.join(chosen)}"] if chosen else []
        return "\n".join(
            [
                *lines,
                "",
                "# in Pipeline(…):",
                f"train_when={self.trigger},",
                "# in its Training(…):",
                f"data={self.data},",
            ]
        )


class BadPolicy(InvalidConfiguration):
    """A policy that cannot be read, or that this pipeline cannot have."""


def policies(loaded: Loaded, triggers: Sequence[str], data: Sequence[str]) -> list[Policy]:
    """Every trigger with every selection; none named: those of `usual_triggers`, and the pipeline's own data.

    Args:
        triggers: `name=code` or code, such as `weekly=seen(windows=28) & every(windows=7)`.
        data: the same of selections, such as `last(windows=30)`.

    Raises:
        BadPolicy: with what is wrong, and where it stands.
    """
    pipeline = loaded.pipeline
    if pipeline.train is None or pipeline.labels is None:
        raise BadPolicy(
            f"pipeline {pipeline.name} declares no training or no labels: without both, nothing can be judged"
        )
    own_trigger, own_data = _own_code(loaded)
    asked = [_named(each) for each in triggers] or list(usual_triggers(pipeline, own_trigger).items())
    chosen = [_named(each) for each in data] or [("", own_data)]
    named = [
        Policy(
            name=" on ".join(filter(None, (name, of if len(chosen) > 1 else ""))),
            trigger=trigger,
            data=select,
            train_when=_trigger(pipeline, trigger, own_trigger),
            select=_selection(pipeline, select, own_data),
        )
        for name, trigger in asked
        for of, select in chosen
    ]
    twice = {p.name for p in named if sum(p.name == other.name for other in named) > 1}
    if twice:
        raise BadPolicy(f"two policies are called {sorted(twice)[0]!r}; name them apart: name=code")
    for policy in named:
        _check(policy.pipeline(pipeline), policy)
    return named


def usual_triggers(pipeline: Pipeline, own: str) -> dict[str, str]:
    """What is tried where nothing is named: paces from one week to eight, and what watches the stream.

    All train first when 28 windows have closed, so that none has an older model than another has data. A week
    is seven windows here: of windows of another size, the same numbers of windows.
    """
    begin = "first(windows=28)"
    usual = {OWN: own} if own else {}
    usual[WEEKLY] = "seen(windows=28) & every(windows=7)"
    usual |= {f"every {n} windows": f"seen(windows=28) & every(windows={n})" for n in (14, 21, 28)}
    usual["every 56 windows"] = f"{begin} | every(windows=56)"
    usual["once"] = begin
    if pipeline.labels is not None:
        usual["label drift"] = f"{begin} | label_drift(least=0.1) & every(windows=14)"
        usual["drift"] = f"{begin} | drift(least=0.25) & every(windows=14)"
        usual["drift or 56 windows"] = (
            f"{begin} | (label_drift(least=0.15) & every(windows=14)) | every(windows=56)"
        )
    return usual


def _named(said: str) -> tuple[str, str]:
    """`name=code`; code alone is its own name."""
    name, equals, code = said.partition("=")
    if equals and not code.startswith("=") and all(c not in name for c in "()|&"):
        return name.strip(), code.strip()
    return said.strip(), said.strip()


def _trigger(pipeline: Pipeline, code: str, own: str) -> Condition:
    if own and code == own:
        assert pipeline.train_when is not None
        return pipeline.train_when
    found = _read(code, _public("streams.trigger"), "trigger", "seen(windows=28) & every(windows=7)")
    if not isinstance(found, Condition):
        raise BadPolicy(f"trigger {code!r} is no condition but {type(found).__name__}")
    return found


def _selection(pipeline: Pipeline, code: str, own: str) -> Data:
    if code == own:
        assert pipeline.train is not None
        return pipeline.train.data
    found = _read(code, _public("streams.training"), "data", "last(windows=30)")
    if not isinstance(found, Data):
        raise BadPolicy(f"data {code!r} is no selection but {type(found).__name__}; write last(windows=30)")
    return found


def _read(code: str, names: dict[str, Any], what: str, example: str) -> object:
    """The engineer's own expression: as much trusted as the pipeline's file that it is to go into."""
    try:
        return eval(compile(code, f"<{what}>", "eval"), {"__builtins__": {}, **names})
    except SyntaxError as error:
        raise BadPolicy(f"{what} {code!r} is no expression ({error.msg}); write {example}") from error
    except InvalidConfiguration as error:
        raise BadPolicy(f"{what} {code!r}: {error}") from error
    except Exception as error:
        raise BadPolicy(
            f"{what} {code!r}: {error}; there are {', '.join(sorted(n for n in names if n.islower()))}"
        ) from error


def _public(module: str) -> dict[str, Any]:
    """What an engineer may call of a module."""
    found: ModuleType = importlib.import_module(module)
    if module == "streams.training":
        return {n: v for n, v in vars(found).items() if n in _SELECTIONS}
    return {name: getattr(found, name) for name in found.__all__}


_SELECTIONS = ("last", "history", "reservoir", "balanced", "hard")


def _called(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code, mode="eval")) if isinstance(node, ast.Name)}


def _own_code(loaded: Loaded) -> tuple[str, str]:
    """Trigger and selection as they are written in the pipeline's file; empty where not found."""
    text = loaded.file.read_text()
    trigger = data = ""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg in ("train_when", "data"):
            found = " ".join((ast.get_source_segment(text, node.value) or "").split())
            trigger, data = (found, data) if node.arg == "train_when" else (trigger, found)
    return trigger, data or "last(windows=30)"


def _check(pipeline: Pipeline, policy: Policy) -> None:
    problems = list(trigger_problems(pipeline, source_schema(pipeline.source)))
    if problems:
        raise BadPolicy(f"policy {policy.name!r}: {problems[0].text}")
