"""Why a model was not taken up, or a question not answered. The service goes on with the model it has.

Rejected
├── ArtifactMismatch   wrong size or digest; never opened
├── StoreNotAllowed    an address outside the client's own stores
├── ModelUnfit         takes what the service cannot give, or gives another answer than it expects
├── ModelUnusable      right bytes, but no network that answers comes of them
└── UnfitColumns       the columns of a question are not those that the model takes
Retryable
├── StaleModel         beyond the service's bounds for longer than the question may wait
├── StoreUnavailable   no store gave the artifact, after several tries
└── CacheUnavailable   the cache folder cannot be read or written
"""

from __future__ import annotations

from ..errors import Rejected, Retryable


class ArtifactMismatch(Rejected):
    """The bytes are not those that the model event names: wrong size, or wrong digest. Never opened."""


class StoreNotAllowed(Rejected):
    """The event, or a redirect, names an address outside the client's own stores."""


class ModelUnfit(Rejected):
    """The model takes columns that this service cannot give, or answers with something else than a chance."""


class ModelUnusable(Rejected):
    """The bytes are right, but no network comes of them, or it fails on the manifest's example."""


class UnfitColumns(Rejected):
    """The columns of a question are not those that the model takes: some are missing, or of other lengths."""


class StaleModel(Retryable):
    """The model is beyond the service's bounds, and stayed so for as long as the question may wait."""


class StoreUnavailable(Retryable):
    """No store gave the artifact, after several tries."""


class CacheUnavailable(Retryable):
    """The cache folder cannot be read or written: no permission, or the disk is full."""
