"""Where the fold over the log stood at a version: a cache, so that an announcer need not read the whole log.

Never a second truth: it is what `log.recall` makes of the log, it names the log entry that it stands
behind by its digest, and one that is gone, cut, of another entry or of other windows is passed over.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from infra.atomic_file import write_bytes
from infra.dataset import entry_of
from streams.closing import Closed, Closing, Grid, Sessions
from streams.live.track import Live
from streams.summary.account import Account
from streams.window import Pane, Session, Sliding, Windowing

# A restart announces the newest version again: so the newest snapshot may be one too far.
_KEPT = 3


class _Grid(Struct):
    panes: dict[Pane, Account]
    open: set[Pane]


class _Sessions(Struct):
    open: dict[Pane, Account]
    closed: dict[Pane, Closed]
    recent: list[tuple[int, int]]


class Snapshot(Struct, frozen=True, kw_only=True):
    """State of the fold just after a version, but for rows: those are in the dataset."""

    version: int
    entry_sha256: str
    declared: str
    watermark_ms: int | None
    tail_from_ms: int
    windows: bytes
    live: Live = Live()


def save(
    uri: str,
    window: Windowing,
    version: int,
    *,
    windows: Closing,
    watermark_ms: int | None,
    tail_from_ms: int,
    live: Live,
) -> None:
    """Write it beside the dataset's log; older ones than the newest few go."""
    snapshot = Snapshot(
        version=version,
        entry_sha256=_digest(uri, version),
        declared=_declared(window),
        watermark_ms=watermark_ms,
        tail_from_ms=tail_from_ms,
        windows=_encoded(windows),
        live=live,
    )
    write_bytes(_folder(uri) / f"{version:020d}.fold", msgspec.msgpack.encode(snapshot))
    for old in sorted(_folder(uri).glob("*.fold"))[:-_KEPT]:
        old.unlink(missing_ok=True)


def newest(uri: str, window: Windowing, *, through_version: int) -> tuple[Snapshot, Closing] | None:
    """The newest that holds, not beyond a version; None where there is none."""
    for path in sorted(_folder(uri).glob("*.fold"), reverse=True):
        try:
            snapshot = msgspec.msgpack.decode(path.read_bytes(), type=Snapshot)
            if (
                snapshot.version <= through_version
                and snapshot.declared == _declared(window)
                and snapshot.entry_sha256 == _digest(uri, snapshot.version)
            ):
                return snapshot, _restore(window, snapshot.windows)
        except (msgspec.MsgspecError, OSError):
            continue
    return None


def _encoded(windows: Closing) -> bytes:
    if isinstance(windows, Grid):
        return msgspec.msgpack.encode(_Grid(windows.panes, windows.open))
    assert isinstance(windows, Sessions)
    return msgspec.msgpack.encode(_Sessions(windows.open, windows.closed, windows.recent))


def _restore(window: Windowing, encoded: bytes) -> Closing:
    if isinstance(window, Sliding):
        grid = msgspec.msgpack.decode(encoded, type=_Grid)
        return Grid(window, grid.panes, grid.open)
    assert isinstance(window, Session)
    sessions = msgspec.msgpack.decode(encoded, type=_Sessions)
    # Panes of one session share it.
    shared = {session.window: session for session in sessions.closed.values()}
    closed = {pane: shared[session.window] for pane, session in sessions.closed.items()}
    return Sessions(window, sessions.open, closed, sessions.recent)


def _declared(window: Windowing) -> str:
    """What the state hangs on; not the line that declares it."""
    said = {name: value for name, value in vars(window).items() if name != "place"}
    return f"{type(window).__name__} {sorted(said.items())}"


def _folder(uri: str) -> Path:
    return Path(uri) / "_tidemill"


def _digest(uri: str, version: int) -> str:
    return hashlib.sha256(entry_of(uri, version).read_bytes()).hexdigest()
