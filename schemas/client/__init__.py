"""What a service uses: follow a model by name, and always hold the newest one that is good."""

from __future__ import annotations

from .errors import (
    ArtifactMismatch,
    CacheUnavailable,
    ModelUnfit,
    ModelUnusable,
    StaleModel,
    StoreNotAllowed,
    StoreUnavailable,
    UnfitColumns,
)
from .follow import Answering, ModelFollower
from .load import LoadedModel
from .several import ModelFollowers
from .staleness import StalenessBound

__all__ = [
    "ModelFollower",
    "ModelFollowers",
    "Answering",
    "StalenessBound",
    "LoadedModel",
    "UnfitColumns",
    "ArtifactMismatch",
    "StoreNotAllowed",
    "ModelUnfit",
    "ModelUnusable",
    "StaleModel",
    "StoreUnavailable",
    "CacheUnavailable",
]
