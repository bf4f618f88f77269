"""What a service uses: follow a model by name, and always hold the newest one that is good."""

from __future__ import annotations

from .errors import (
    ArtifactMismatch,
    CacheUnavailable,
    ModelUnfit,
    ModelUnusable,
    StoreNotAllowed,
    StoreUnavailable,
    UnfitColumns,
)
from .follow import ModelFollower
from .load import LoadedModel

__all__ = [
    "ModelFollower",
    "LoadedModel",
    "UnfitColumns",
    "ArtifactMismatch",
    "StoreNotAllowed",
    "ModelUnfit",
    "ModelUnusable",
    "StoreUnavailable",
    "CacheUnavailable",
]
