"""Why a model was not taken up. The service goes on with the one it has."""

from __future__ import annotations

from ..errors import Rejected, Retryable


class ArtifactMismatch(Rejected):
    """The bytes are not those that the model event names: wrong size, or wrong digest. Never opened."""


class StoreNotAllowed(Rejected):
    """The event names an address outside the client's own stores."""


class ModelUnusable(Rejected):
    """The bytes are right, but no network comes of them, or it fails on the manifest's example."""


class StoreUnavailable(Retryable):
    """No store gave the artifact, after several tries."""
