"""From checked bytes to a network that answers: built from plain data, warmed up on one example."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..model import Manifest
from .errors import ModelUnusable

# Architectures are this library's own; a model event can only name one. Imported when first needed, so that
# a client without torch can still read events.
_ARCHITECTURES = {"tabular": ("tabular", "TabularNetwork")}
_PACKAGE = __name__.rpartition(".client")[0]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version that is ready to answer."""

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
        """Probabilities (N,) for N rows given by column; a column that is missing counts as unknown."""
        return self.network.predict(columns)


def prepare() -> None:
    """Import what loading needs, before a model is there: the first swap is then as fast as any other."""
    with contextlib.suppress(ImportError):
        importlib.import_module("safetensors.torch")
        for module, _ in _ARCHITECTURES.values():
            importlib.import_module(f"{_PACKAGE}.{module}")


def load(manifest: Manifest, content: bytes) -> LoadedModel:
    """Build the network that the manifest describes, give it the weights, and try it on the example.

    Raises:
        ModelUnusable: anything of that failed, or the answer is no probability.
    """
    try:
        module, name = _ARCHITECTURES[manifest.architecture]
    except KeyError:
        raise ModelUnusable(
            f"architecture {manifest.architecture!r} is unknown to this client; update it"
        ) from None
    try:
        from safetensors.torch import load as read_weights

        network = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name).from_config(manifest.config)
        network.load_state_dict(read_weights(content))
        network.eval()
        answer = network.predict({column: [value] for column, value in manifest.example.items()})
    except Exception as error:  # whatever a foreign artifact provokes, the old model stays
        raise ModelUnusable(
            f"{manifest.name} version {manifest.version} cannot be loaded: {error}"
        ) from error
    if len(answer) != 1 or not math.isfinite(answer[0]) or not 0 <= answer[0] <= 1:
        raise ModelUnusable(
            f"{manifest.name} version {manifest.version} answers its own example with {list(answer)}"
        )
    return LoadedModel(manifest, network)
