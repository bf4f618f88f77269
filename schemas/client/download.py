"""Fetch an artifact: resumable, bounded, and checked against size and digest before anybody opens it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

import httpx

from ..aside import aside, breathe, give_way
from ..errors import Rejected
from ..model import Artifact
from .errors import ArtifactMismatch, CacheUnavailable, StoreNotAllowed, StoreUnavailable
from .store_client import StoreClient
from .stores import shown
from .turns import Turns

_PAUSES_S = (0.05, 0.2, 0.8, 2.0)
_KEPT = 3
_LOCKED_S = 0.05
_WRITE_BYTES = 1_048_576
_STEP_BYTES = 65_536
_HASH_BYTES = 65_536
_OK, _PARTIAL, _UNSATISFIABLE = 200, 206, 416


class Downloader:
    """Gets artifacts of one model into a folder of its own, where they lie under their digest.

    Args:
        stores: who may be asked, and by which connections.
        folder: where finished and partial downloads lie; the three last used are kept.
        max_bytes: an artifact that claims more is refused unseen.
        deadline_s: longest time for one artifact, all tries together.
        turns: at downloads, one for each try, not for the pauses between; None: there is no limit.
    """

    def __init__(
        self,
        stores: StoreClient,
        folder: Path,
        *,
        max_bytes: int = 2 * 2**30,
        deadline_s: float = 900.0,
        turns: Turns | None = None,
    ) -> None:
        self._stores, self._http = stores.stores, stores.http
        self._folder = folder
        self._max_bytes = max_bytes
        self._deadline_s = deadline_s
        self._turns = turns

    async def fetch(self, artifact: Artifact) -> bytes:
        """The artifact's bytes, from the folder or a store; checked.

        Raises:
            StoreNotAllowed: its address is below none of the stores, or a store redirects.
            ArtifactMismatch: what came, or what is claimed, has another size or digest.
            StoreUnavailable: it could not be had, after several tries.
            CacheUnavailable: the folder cannot be read or written.
        """
        if artifact.size_bytes > self._max_bytes:
            raise ArtifactMismatch(
                f"artifact {artifact.sha256} claims {artifact.size_bytes} bytes; this client takes at most "
                f"{self._max_bytes}: raise max_bytes if that is right"
            )
        addresses = self._stores.addresses(artifact)
        try:
            async with asyncio.timeout(self._deadline_s):
                while (entered := await asyncio.to_thread(self._enter, artifact)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(_LOCKED_S)
                held, content = entered
                with held:
                    if content is not None:
                        return content
                    await give_way()
                    return await self._download(artifact, addresses)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"artifact {artifact.sha256} did not come within {self._deadline_s:g} s"
            ) from error
        except OSError as error:
            raise CacheUnavailable(f"cannot keep an artifact in {self._folder}: {error}") from error

    async def _download(self, artifact: Artifact, addresses: list[httpx.URL]) -> bytes:
        failed: list[str] = []
        for pause_s in (*_PAUSES_S, None):
            refused: list[Rejected] = []
            failed.clear()
            for address in addresses:
                try:
                    async with self._turns.turn() if self._turns else contextlib.nullcontext():
                        return await self._from(address, artifact)
                except Rejected as error:
                    refused.append(error)
                except StoreUnavailable as error:
                    failed.append(str(error))
            if refused:
                raise refused[0]
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        raise StoreUnavailable(f"artifact {artifact.sha256} could not be had: {'; '.join(failed)}")

    async def _from(self, address: httpx.URL, artifact: Artifact) -> bytes:
        began_at = await asyncio.to_thread(self._partial_size, artifact)
        await self._stream(address, artifact, began_at)
        try:
            return await asyncio.to_thread(self._keep, artifact, address)
        except ArtifactMismatch:
            if began_at == 0:
                raise
        # The part that an earlier try left may be what was wrong: once more, from the start.
        await self._stream(address, artifact, 0)
        return await asyncio.to_thread(self._keep, artifact, address)

    async def _stream(self, address: httpx.URL, artifact: Artifact, have: int) -> None:
        """Bring the partial file up to the artifact's size, from byte `have` on."""
        if have == artifact.size_bytes:
            return
        headers = {"accept-encoding": "identity"} | ({"range": f"bytes={have}-"} if have else {})
        # Apart from the address: httpx logs addresses whole.
        auth = httpx.BasicAuth(address.username, address.password) if address.userinfo else None
        bare = address.copy_with(userinfo=b"")
        try:
            async with self._http.stream("GET", bare, headers=headers, auth=auth) as answer:
                rested = written = have = self._begins_at(answer, artifact, have)
                await give_way()
                unwritten: list[bytes] = []
                try:
                    async for chunk in answer.aiter_raw():
                        have += len(chunk)
                        unwritten.append(chunk)
                        if have > artifact.size_bytes:  # longer than promised: no need to see the rest
                            raise _wrong_size(address, "more", artifact)
                        if have - written >= _WRITE_BYTES:
                            # Taken out first: what is cancelled meanwhile is still written, and only once.
                            at, chunks, written, unwritten = written, unwritten, have, []
                            await asyncio.to_thread(self._append, artifact, at, chunks)
                        if have - rested >= _STEP_BYTES:
                            # The event loop is the answers' as well: a store beside us would fill it.
                            rested = have
                            await give_way()
                finally:
                    # What came before a break is kept, and the next try goes on behind it.
                    if unwritten:
                        await asyncio.to_thread(self._append, artifact, written, unwritten)
        except httpx.HTTPError as error:
            raise StoreUnavailable(f"{shown(address)}: {error or type(error).__name__}") from error
        if have < artifact.size_bytes:
            raise StoreUnavailable(f"{shown(address)} ended after {have} of {artifact.size_bytes} bytes")

    def _begins_at(self, answer: httpx.Response, artifact: Artifact, asked: int) -> int:
        """The offset of the answer's first byte."""
        address, status = answer.request.url, answer.status_code
        if answer.is_redirect:
            raise StoreNotAllowed(
                f"{shown(address)} redirects to {answer.headers.get('location', '')[:200]!r}; this client "
                "follows no redirects: name the store itself"
            )
        if status == _UNSATISFIABLE:
            self._partial(artifact).unlink(missing_ok=True)
        if status not in (_OK, _PARTIAL):
            raise StoreUnavailable(f"{shown(address)} answered {status}")
        promised = answer.headers.get("content-length")
        if status == _OK:
            if promised is not None and promised != str(artifact.size_bytes):
                raise _wrong_size(address, promised, artifact)
            return 0
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("content-range", ""))
        if place is None or int(place[1]) != asked:
            self._partial(artifact).unlink(missing_ok=True)
            raise StoreUnavailable(f"{shown(address)} answered another part than the one asked for")
        if place[2] not in ("*", str(artifact.size_bytes)):
            raise _wrong_size(address, place[2], artifact)
        return asked

    def _enter(self, artifact: Artifact) -> tuple[BinaryIO, bytes | None] | None:
        """One download at a time in this folder, also among processes: a partial file has one writer.

        Gives the lock and what is kept of the artifact; None: another one is in the folder.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        held = (self._folder / ".lock").open("ab")
        try:
            if _lock(held):
                return held, self._kept(artifact)
        except BaseException:
            held.close()
            raise
        held.close()
        return None

    def _kept(self, artifact: Artifact) -> bytes | None:
        path = self._path(artifact)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if not _is_it(content, artifact):
            path.unlink()
            return None
        os.utime(path)
        return content

    def _keep(self, artifact: Artifact, address: httpx.URL) -> bytes:
        """Check what has come, and only then give it its name. Older downloads make room."""
        partial = self._partial(artifact)
        content = partial.read_bytes()
        if not _is_it(content, artifact):
            partial.unlink()
            raise ArtifactMismatch(
                f"{shown(address)} gave {len(content)} bytes that are not {artifact.sha256}; they were "
                "thrown away unopened"
            )
        partial.replace(self._path(artifact))
        by_use = sorted(self._folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for old in (*by_use[_KEPT:], *self._folder.glob("*.part")):
            old.unlink()
        return content

    def _path(self, artifact: Artifact) -> Path:
        return self._folder / f"{artifact.sha256}.safetensors"

    def _partial(self, artifact: Artifact) -> Path:
        return self._folder / f"{artifact.sha256}.part"

    def _partial_size(self, artifact: Artifact) -> int:
        try:
            size = self._partial(artifact).stat().st_size
        except FileNotFoundError:
            return 0
        return size if size <= artifact.size_bytes else 0

    def _append(self, artifact: Artifact, have: int, chunks: list[bytes]) -> None:
        """Write behind the first bytes of the partial file; more than the artifact has are none of it."""
        if have + sum(map(len, chunks)) > artifact.size_bytes:
            self._partial(artifact).unlink(missing_ok=True)
            return
        with self._partial(artifact).open("ab" if have else "wb") as out:
            out.writelines(chunks)


def _lock(file: BinaryIO) -> bool:
    """Take the lock that ends when the file is closed, or its process dies; False if another has it."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system: its processes need folders of their own
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_it(content: bytes, artifact: Artifact) -> bool:
    if len(content) != artifact.size_bytes:
        return False
    digest, whole = hashlib.sha256(), memoryview(content)
    with aside():
        for start in range(0, len(whole), _HASH_BYTES):
            digest.update(whole[start : start + _HASH_BYTES])
            breathe()
    return digest.hexdigest() == artifact.sha256


def _wrong_size(address: httpx.URL, given: str, artifact: Artifact) -> ArtifactMismatch:
    return ArtifactMismatch(
        f"{shown(address)} gives {given} bytes; the event names {artifact.size_bytes} for {artifact.sha256}"
    )
