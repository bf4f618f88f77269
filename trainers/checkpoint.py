"""A training's state on disk, so that it can make room, or be killed, and go on from there.

Kept as safetensors, the tree around the tensors as JSON beside them: reading one runs no code. The state of
every random generator goes with it, so a training that is resumed ends with the weights of one that never was
interrupted.
"""

from __future__ import annotations

import math
import mmap
import random
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
import safetensors.torch
import torch

from infra import atomic_file

FILE = "checkpoint.safetensors"
_EVERY_S = 1.0
_COST_SHARE = 20
"""Keeping state takes at most one part in so many of a training's time."""

_PLAIN = (str, int, float, bool, type(None))


class MadeRoom(BaseException):
    """The state is kept and the process is to end: passes through user code, which should not hold it up."""


class Checkpoints:
    """The one checkpoint of a job: the newest."""

    def __init__(self, file: Path | None, run_key: str) -> None:
        """None for `file`: nothing is kept."""
        self._file = file
        self._run_key = run_key
        # Seen by every process that is forked from here: the signal comes to the first, the ranks train.
        self._asked = mmap.mmap(-1, 1)
        self._next_s = time.monotonic() + _EVERY_S

    def ask(self) -> None:
        """Somebody needs the room: the next state that user code offers is kept, and then it ends."""
        self._asked[0] = 1

    def keep(self, state: dict[str, Any]) -> bool:
        """Keep a state, unless another was kept a moment ago. True if it is on disk.

        Raises:
            MadeRoom: the process is to end now.
            TypeError: the state holds something that is neither tensor nor plain data.
        """
        if self._file is None or (not self._asked[0] and time.monotonic() < self._next_s):
            return False
        began = time.monotonic()
        atomic_file.write_bytes(self._file, packed(state, self._run_key))
        took_s = time.monotonic() - began
        self._next_s = time.monotonic() + max(_EVERY_S, took_s * _COST_SHARE)
        if self._asked[0]:
            raise MadeRoom
        return True

    def read(self) -> dict[str, Any] | None:
        """The state that an earlier attempt at this training kept, the generators set as they were."""
        if self._file is None or not self._file.exists():
            return None
        return unpacked(self._file, self._run_key)


def packed(state: dict[str, Any], run_key: str) -> bytes:
    """A state as bytes.

    Raises:
        TypeError: it holds something that is neither tensor nor plain data.
    """
    tensors: dict[str, torch.Tensor] = {}
    numpy_state = np.random.get_state(legacy=False)
    version, words, gauss = random.getstate()
    generators: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            numpy_state["state"]["key"].tolist(),
            numpy_state["state"]["pos"],
            numpy_state["has_gauss"],
            numpy_state["gauss"],
        ],
        "python": [version, list(words), gauss],
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }
    tree = _taken_apart([state, generators], tensors, "state")
    metadata = {"run_key": run_key, "tree": msgspec.json.encode(tree).decode()}
    return safetensors.torch.save(tensors, metadata)


def unpacked(file: Path, run_key: str) -> dict[str, Any] | None:
    """The state in a file, the generators set as they were; None if it is of another training, or broken."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:  # pyright: ignore[reportAttributeAccessIssue]
            metadata = opened.metadata() or {}
            if metadata.get("run_key") != run_key:
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
        state, generators = _put_together(msgspec.json.decode(metadata["tree"]), tensors)
    except (OSError, safetensors.SafetensorError, msgspec.DecodeError, KeyError, ValueError) as error:
        print(f"the checkpoint cannot be read and is passed over: {error}")
        return None
    torch.set_rng_state(generators["torch"])
    key, pos, has_gauss, gauss = generators["numpy"]
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), pos, has_gauss, gauss))
    version, words, next_gauss = generators["python"]
    random.setstate((version, tuple(words), next_gauss))
    if generators["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(generators["cuda"][: torch.cuda.device_count()])
    return state


def _taken_apart(value: Any, tensors: dict[str, torch.Tensor], where: str) -> Any:
    """The tree in JSON, each tensor a name: `{"t": name}`; dicts as pairs, for their keys may be numbers."""
    match value:
        case torch.Tensor():
            name = f"{len(tensors)}"
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"t": name}
        case dict():
            pairs = [[key, _taken_apart(each, tensors, f"{where}[{key!r}]")] for key, each in value.items()]
            if bad := [key for key in value if not isinstance(key, str | int)]:
                raise TypeError(f"checkpoint: {where} has the key {bad[0]!r}; use text or whole numbers")
            return {"d": pairs}
        case list() | tuple():
            parts = [_taken_apart(each, tensors, f"{where}[{i}]") for i, each in enumerate(value)]
            return {"l" if isinstance(value, list) else "u": parts}
        case float() if not math.isfinite(value):
            return {"f": str(value)}
        case _ if isinstance(value, _PLAIN):
            return {"v": value}
        case _:
            raise TypeError(f"checkpoint: {where} is a {type(value).__name__}; keep tensors, numbers, text")


def _put_together(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, value),) = tree.items()
    match kind:
        case "t":
            return tensors[value]
        case "d":
            return {key: _put_together(each, tensors) for key, each in value}
        case "l" | "u":
            parts = [_put_together(each, tensors) for each in value]
            return parts if kind == "l" else tuple(parts)
        case "f":
            return float(value)
        case _:
            return value
