"""Fetch an artifact: resumable, bounded, checked against size and digest before anybody opens it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from ..model import Artifact
from .errors import ArtifactMismatch, StoreNotAllowed, StoreUnavailable

_PAUSES_S = (0.05, 0.2, 0.8, 2.0)
_OK, _PARTIAL, _UNSATISFIABLE = 200, 206, 416


class Downloader:
    """Gets artifacts from allowed stores into a cache folder, under their digest.

    Args:
        stores: base addresses, such as "http://127.0.0.1:8700/"; nothing else is ever asked.
        cache_dir: where finished and partial downloads lie.
        max_bytes: an artifact that claims more is refused unseen.
    """

    def __init__(
        self, stores: Sequence[str], cache_dir: Path, *, max_bytes: int = 2 * 2**30, timeout_s: float = 10.0
    ) -> None:
        self.stores = tuple(store.rstrip("/") + "/" for store in stores)
        self.cache_dir = cache_dir
        self._max_bytes = max_bytes
        # A redirect could lead to another host: it is an error like any other answer that is no artifact.
        self._client = httpx.AsyncClient(follow_redirects=False, timeout=timeout_s, trust_env=False)

    async def fetch(self, artifact: Artifact) -> bytes:
        """The artifact's bytes, from the cache or a store; checked.

        Raises:
            StoreNotAllowed: its address is below none of the stores.
            ArtifactMismatch: what came has another size or digest.
            StoreUnavailable: it could not be had, after several tries.
        """
        if artifact.size_bytes > self._max_bytes:
            raise ArtifactMismatch(
                f"artifact {artifact.sha256} claims {artifact.size_bytes} bytes, more than the {self._max_bytes} "
                "that this client takes"
            )
        addresses = list(self._addresses(artifact))
        kept = self.cache_dir / f"{artifact.sha256}.{artifact.format}"
        if kept.is_file():
            content = await asyncio.to_thread(kept.read_bytes)
            if _matches(content, artifact):
                return content
            kept.unlink()
        partial = kept.with_suffix(".part")
        await asyncio.to_thread(self.cache_dir.mkdir, parents=True, exist_ok=True)
        failure = "no store was asked"
        for pause_s in (*_PAUSES_S, None):
            for address in addresses:
                try:
                    await self._stream(address, artifact, partial)
                except (httpx.HTTPError, OSError) as error:
                    failure = f"{address}: {error or type(error).__name__}"
                    continue
                content = await asyncio.to_thread(partial.read_bytes)
                if not _matches(content, artifact):
                    partial.unlink(missing_ok=True)
                    raise ArtifactMismatch(
                        f"{address} gave {len(content)} bytes with another digest than {artifact.sha256}; "
                        "they were thrown away unopened"
                    )
                partial.replace(kept)
                return content
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        raise StoreUnavailable(f"artifact {artifact.sha256} could not be had: {failure}")

    def _addresses(self, artifact: Artifact) -> Iterator[str]:
        """The event's own address, then the artifact's name below each store: a store may have moved."""
        parts = urlsplit(artifact.uri)
        is_ours = parts.scheme in ("http", "https") and any(artifact.uri.startswith(s) for s in self.stores)
        named = f"{artifact.sha256}.{artifact.format}"
        if not is_ours and not parts.path.endswith("/" + named):
            raise StoreNotAllowed(
                f"{artifact.uri} lies in none of the stores of this client ({', '.join(self.stores)})"
            )
        if is_ours:
            yield artifact.uri
        for store in self.stores:
            if store + named != artifact.uri:
                yield store + named

    async def _stream(self, address: str, artifact: Artifact, partial: Path) -> None:
        have = partial.stat().st_size if partial.exists() else 0
        if have > artifact.size_bytes:
            partial.unlink()
            have = 0
        if have == artifact.size_bytes:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        async with self._client.stream("GET", address, headers=headers) as answer:
            if answer.status_code == _UNSATISFIABLE:
                partial.unlink(missing_ok=True)
            if answer.status_code not in (_OK, _PARTIAL):
                raise httpx.HTTPStatusError(
                    f"answered {answer.status_code}", request=answer.request, response=answer
                )
            resumed = answer.status_code == _PARTIAL
            have = have if resumed else 0
            with partial.open("ab" if resumed else "wb") as out:
                async for chunk in answer.aiter_bytes(2**20):
                    have += len(chunk)
                    if have > artifact.size_bytes:
                        # Longer than promised: no need to see the rest.
                        out.truncate(0)
                        raise ArtifactMismatch(
                            f"{address} gives more than the {artifact.size_bytes} bytes of {artifact.sha256}"
                        )
                    out.write(chunk)
        if have < artifact.size_bytes:
            raise httpx.RemoteProtocolError(f"ended after {have} of {artifact.size_bytes} bytes")

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()


def _matches(content: bytes, artifact: Artifact) -> bool:
    return len(content) == artifact.size_bytes and hashlib.sha256(content).hexdigest() == artifact.sha256
