"""From checked bytes to a network that answers: built from plain data, warmed up on one example."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..model import Manifest
from .errors import ModelUnusable, UnfitColumns

# Architectures are this library's own; a model event can only name one. Imported when first needed, so that
# a client without torch can still read events.
_PACKAGE = __name__.rpartition(".client")[0]
_ARCHITECTURES = {"tabular": (f"{_PACKAGE}.tabular", "TabularNetwork")}


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
            UnfitColumns: a column that the model takes is missing, or they have different lengths.
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
        return self.network.predict(columns)


def import_libraries() -> None:
    """Import what networks are made with, which takes seconds: best before the first model is there.

    What is not installed is said when a model needs it.
    """
    for module, _ in _ARCHITECTURES.values():
        with contextlib.suppress(ImportError):
            importlib.import_module("safetensors.torch")
            importlib.import_module(module)


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
        model = LoadedModel(manifest, _network(manifest, content))
        answer = [float(each) for each in model.predict({k: [v] for k, v in manifest.example.items()})]
    except ImportError as error:
        raise ModelUnusable(
            f"{manifest.name} needs {error.name}, which is not installed: pip install 'tidemill[torch]'"
        ) from error
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
    import torch
    from safetensors.torch import load as read_weights

    module, name = _ARCHITECTURES[manifest.architecture]
    architecture = getattr(importlib.import_module(module), name)
    # Built without memory and given the weights as they are: sizes that only a config claims cost nothing.
    with torch.device("meta"):
        network = architecture.from_config(manifest.config)
    network.load_state_dict(read_weights(content), assign=True)
    network.requires_grad_(False)
    return network.eval()
