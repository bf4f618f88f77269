"""The windows of a dataset as its log has them: a fold over the commits, without a broker.

It is the announcer's own state machine over the same accounts, so it names the windows that were announced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from infra.dataset import Dataset
from infra.exclusion import Exclusion, excluded_at
from schemas.errors import Rejected
from schemas.window import Summary, Window
from streams.announce.fold import accounts
from streams.announce.log import read_account
from streams.closing import closing
from streams.pipeline import Pipeline
from streams.summary.account import announced


class NoSuchWindow(Rejected):
    """No closed window has that name or time, or the text is neither."""


@dataclass(slots=True)
class Listed:
    """A window that closed: its newest summary, and the versions that tell of it.

    Attributes:
        version: the dataset version at which it closed.
        amended: by version, how many late rows it brought.
        excluded: what takes its events, or some of them, out of trainings now.
    """

    window: Window
    version: int
    summary: Summary
    amended: dict[int, int] = field(default_factory=dict)
    excluded: list[Exclusion] = field(default_factory=list)

    @property
    def newest_version(self) -> int:
        """The version that holds the last of its rows."""
        return max([self.version, *self.amended])


def windows(pipeline: Pipeline, uri: str, *, version: int | None = None) -> list[Listed]:
    """The windows that had closed by a version, or by the newest; in the order of time.

    Raises:
        DatasetUnreadable: there is no dataset, no such version, or its log is not whole.
    """
    newest = Dataset(uri).newest_version()
    until = newest if version is None else min(version, newest)
    state, mark_ms = closing(pipeline.window), None
    found: dict[Window, Listed] = {}
    for number in range(until + 1):
        commit = read_account(pipeline, uri, number)
        had_ms, mark_ms = mark_ms, commit.metadata.get("watermark_ms", mark_ms)
        for turn in state.take(accounts(pipeline, commit), had_ms=had_ms, mark_ms=mark_ms):
            summary = announced(turn.account)
            known = found.get(turn.window)
            if known is None:
                found[turn.window] = known = Listed(turn.window, number, summary)
            known.summary = summary
            if turn.late_rows is not None:
                known.amended[number] = turn.late_rows
    standing = excluded_at(uri, until)
    for listed in found.values():
        listed.excluded = [
            each
            for each in standing
            if each.span.start_ms < listed.window.end_ms and each.span.end_ms > listed.window.start_ms
        ]
    return [found[window] for window in sorted(found)]


def named(known: Sequence[Listed], text: str) -> Listed:
    """The window of that name: as events write it, or a date or time (UTC) in it: the first that it starts.

    Raises:
        NoSuchWindow: there is none.
    """
    for listed in known:
        if str(listed.window) == text or text.endswith(f"/{listed.window}"):
            return listed
    first_ms, end_ms = _instant(text)
    starting = [each for each in known if first_ms <= each.window.start_ms < end_ms]
    holding = [each for each in known if each.window.start_ms <= first_ms < each.window.end_ms]
    if not starting and not holding:
        last = f"; the newest closed is {known[-1].window}" if known else "; none has closed yet"
        raise NoSuchWindow(f"no closed window is called {text}, starts then or holds that time{last}")
    return starting[0] if starting else holding[-1]


def span_of(known: Sequence[Listed], text: str) -> Window:
    """A span of event time: `FROM..TO`, dates or times in UTC or epoch ms, or a window as `named` finds it.

    Raises:
        NoSuchWindow: it is neither.
    """
    start, dots, end = text.partition("..")
    if not dots:
        return named(known, text).window
    return Window(_instant(start)[0], _instant(end)[0])


def _instant(text: str) -> tuple[int, int]:
    """Epoch ms of a date or time, and where what was said ends: a day after a date."""
    if text.removeprefix("-").isdigit() and len(text) > 8:
        return int(text), int(text) + 1
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise NoSuchWindow(
            f"{text!r} names no window: write it as its events do (1357016400000-1357102800000), or a date "
            "or time such as 2013-01-08 or 2013-01-08T05:00"
        ) from error
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    end = at + (timedelta(days=1) if len(text) <= 10 else timedelta(milliseconds=1))
    return int(at.timestamp() * 1000), int(end.timestamp() * 1000)
