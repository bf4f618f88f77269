"""Models of the demo's size, each with weights of its own."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import msgspec
import safetensors.torch
import torch

from loadtest.swap.question import NUMBERS, WORDS, question
from schemas.examples import announced
from schemas.model import Artifact, Field, ModelPublished
from schemas.tabular import TabularNetwork

NAME = "swapped"
_KNOTS = [round(-3 + number / 5, 1) for number in range(32)]


def config(size: int) -> dict[str, Any]:
    """About the flights model's: every aircraft a word, pairs of airports, quantiles; `size` wide."""
    words = {name: [f"{name}-{number}" for number in range(count)] for name, count in WORDS.items()}
    pairs = [[one, other] for one in words["origin"] for other in words["dest"]]
    return {
        "categorical": [
            *({"name": name, "vocabulary": each, "dim": 8} for name, each in words.items()),
            {"name": "route", "of": ["origin", "dest"], "vocabulary": pairs, "dim": 8},
        ],
        "numeric": [{"name": f"number_{number}", "knots": _KNOTS} for number in range(NUMBERS)],
        "calendar": None,
        "hidden": [size, size // 2],
    }


def weights(version: int, size: int) -> bytes:
    """A version's weights, as safetensors."""
    torch.manual_seed(version)
    return safetensors.torch.save(TabularNetwork.from_config(config(size)).state_dict())


def answers(content: bytes, size: int, rows: int) -> list[float]:
    """What a network with these weights answers, loaded by hand."""
    network = TabularNetwork.from_config(config(size))
    network.load_state_dict(safetensors.torch.load(content))
    return network.predict(question(rows)).tolist()


def event(name: str, version: int, content: bytes, *, store: str, size: int) -> ModelPublished:
    """What a trainer would say of these weights, not signed yet."""
    example = next(each for each in announced() if isinstance(each, ModelPublished))
    digest = hashlib.sha256(content).hexdigest()
    asked = question(1)
    manifest = msgspec.structs.replace(
        example.manifest,
        name=name,
        version=version,
        artifact=Artifact(uri=f"{store}{digest}.safetensors", size_bytes=len(content), sha256=digest),
        config=config(size),
        inputs=[Field(name=each, type="string" if each in WORDS else "float") for each in asked],
        example={each: values[0] for each, values in asked.items()},
        published_ms=int(time.time() * 1000),
    )
    return ModelPublished(name=name, manifest=manifest)
