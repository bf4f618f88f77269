"""The artifact stores that a service may ask, and its one HTTP client that asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from .reach import StoreTransport
from .signed import Signer
from .stores import Stores


class StoreClient:
    """Connections to stores, shared by the downloads of every model.

    Args:
        stores: base addresses; nothing else is ever asked.
        timeout_s: longest wait for a connection, or for the next bytes.
        s3: how to reach stores on S3, see `signed.Signer`.

    Raises:
        InvalidConfiguration: a store is no base address, or an option of S3 is none.
    """

    def __init__(
        self, stores: Sequence[str], *, timeout_s: float = 10.0, s3: Mapping[str, Any] | None = None
    ) -> None:
        self.stores = Stores(stores)
        signer = Signer(s3)
        for bucket in self.stores.buckets:
            signer.open(bucket)
        # A redirect could lead to another host, and a proxy of the environment is another host.
        self.http = httpx.AsyncClient(
            transport=StoreTransport(signer), follow_redirects=False, timeout=timeout_s, trust_env=False
        )

    async def close(self) -> None:
        """Close connections."""
        await self.http.aclose()
