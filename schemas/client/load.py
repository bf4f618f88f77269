"""From checked bytes to a network that answers: built from plain data, warmed up on one example."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..aside import answering, aside, breathe, spare_imports
from ..model import Manifest
from .errors import ModelUnusable, UnfitColumns

# Architectures are this library's own; a model event can only name one. Imported when first needed, so that
# a client without torch can still read events.
_PACKAGE = __name__.rpartition(".client")[0]
_ARCHITECTURES = {"tabular": (f"{_PACKAGE}.tabular", "TabularNetwork")}
# Numbers that are looked at in one step; by numpy, since torch would begin threads of its own for them.
_PART = 65_536


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version that is ready to answer, from any thread."""

    manifest: Manifest
    network: Any

    @property
    def version(self) -> int:
        """Version of the model, as its event gave it."""
        return self.manifest.version

    @property
    def sha256(self) -> str:
        """Digest of its weights."""
        return self.manifest.artifact.sha256

    def predict(self, columns: Mapping[str, Any]) -> Any:
        """Probabilities (N,) for N rows given by column: lists, arrays or series; None where unknown.

        Columns that the model does not take are left alone.

        Raises:
            UnfitColumns: a column that the model takes is missing, has another length than the others, or
                holds what it cannot take.
        """
        taken = [each.name for each in self.manifest.inputs]
        if missing := [name for name in taken if name not in columns]:
            raise UnfitColumns(
                f"{self.manifest.name} version {self.version} takes columns that are not given: "
                f"{', '.join(missing)}; give a column of None if nothing is known"
            )
        if len({len(columns[name]) for name in taken}) > 1:
            lengths = ", ".join(f"{name} {len(columns[name])}" for name in taken)
            raise UnfitColumns(f"columns of one question have different lengths: {lengths}")
        try:
            with answering():
                return self.network.predict(columns)
        except (TypeError, ValueError) as error:
            raise UnfitColumns(f"{self.manifest.name} cannot take these columns: {error}") from error


def import_libraries() -> None:
    """Import what networks are made with, which takes seconds: best before the first model is there.

    What is not installed is said when a model needs it. The garbage collector looks at none of it again.
    """
    for module, _ in _ARCHITECTURES.values():
        with contextlib.suppress(ImportError):
            importlib.import_module("safetensors.torch")
            importlib.import_module(module)
    spare_imports()


def check_kind(manifest: Manifest) -> None:
    """See before any download whether this client could load the model at all.

    Raises:
        ModelUnusable: architecture or format are unknown here.
    """
    if manifest.architecture not in _ARCHITECTURES:
        raise ModelUnusable(
            f"architecture {manifest.architecture!r} is unknown to this client "
            f"({', '.join(_ARCHITECTURES)}); update it"
        )
    if manifest.artifact.format != "safetensors":
        raise ModelUnusable(
            f"format {manifest.artifact.format!r} is unknown to this client (safetensors); update it"
        )


def load(manifest: Manifest, content: bytes) -> LoadedModel:
    """Build the network that the manifest describes, give it the weights, and try it on the example.

    Raises:
        ModelUnusable: anything of that failed, or the answer is no probability.
    """
    check_kind(manifest)
    try:
        with aside():
            model = LoadedModel(manifest, _network(manifest, content))
            breathe()
            answer = [float(each) for each in model.predict({k: [v] for k, v in manifest.example.items()})]
    except ImportError as error:
        raise ModelUnusable(
            f"{manifest.name} needs {error.name}, which is not installed: pip install 'tidemill[torch]'"
        ) from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):  # not the model's doing
        raise
    except BaseException as error:  # a panic in safetensors' Rust is no Exception, and the old model stays
        raise ModelUnusable(
            f"{manifest.name} version {manifest.version} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if len(answer) != 1 or not math.isfinite(answer[0]) or not 0 <= answer[0] <= 1:
        raise ModelUnusable(
            f"{manifest.name} version {manifest.version} answers its own example with {answer}, which is no "
            "probability"
        )
    return model


def _network(manifest: Manifest, content: bytes) -> Any:
    from safetensors.torch import load as read_weights

    # As they will be computed with: a number that is finite only where it came from is none here.
    weights = {name: tensor.float() for name, tensor in read_weights(content).items()}
    if broken := [name for name, tensor in weights.items() if not _is_finite(tensor)]:
        raise ValueError(f"weights are not finite: {', '.join(broken)}")
    module, name = _ARCHITECTURES[manifest.architecture]
    architecture = getattr(importlib.import_module(module), name)
    with _hollow(sum(tensor.numel() for tensor in weights.values())):
        network = architecture.from_config(manifest.config)
    breathe()
    network.load_state_dict(weights, assign=True)
    network.requires_grad_(False)
    return network.eval()


def _is_finite(tensor: Any) -> bool:
    import numpy as np

    numbers = tensor.numpy().reshape(-1)
    for start in range(0, len(numbers), _PART):
        breathe()
        if not np.isfinite(numbers[start : start + _PART]).all():
            return False
    return True


def _hollow(at_most: int) -> contextlib.AbstractContextManager[Any]:
    """Networks made inside have shapes and no numbers: those come from the weights as they are, uncopied.

    Nor do they claim more numbers than that, however small their layers are.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Hollow(TorchFunctionMode):
        claimed = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            breathe()
            kwargs = kwargs or {}
            if getattr(func, "__module__", None) == torch.nn.init.__name__:
                return kwargs.get("tensor", args[0] if args else None)
            if func is torch.empty:
                self.claimed += math.prod(args if isinstance(args[0], int) else args[0])
                if self.claimed > at_most:
                    raise ValueError(f"the config asks for more than the {at_most} weights that came")
                kwargs = {**kwargs, "device": "meta"}
            return func(*args, **kwargs)

    return Hollow()
