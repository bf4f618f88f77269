"""Which windows close, and which are amended, as commit after commit is taken in: for every kind of window.

State of the fold over the dataset's log, and a function of it alone. A row in time always finds its windows
open: so which windows there are, and with which rows, does not depend on the order that rows in time came in.
A row that comes late finds them as the log has them by then.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Protocol

from schemas.window import Window
from streams.summary.account import Account, merge
from streams.window import Pane, Session, Sliding, Windowing

# Closed windows whose whole account an amendment can give lie so many panes back; of older ones, what came
# since. With sessions by key each key may have some in every few panes.
_AMENDABLE_PANES = 10_000
_AMENDABLE_PANES_BY_KEY = 20
_RECENT_WINDOWS = 10_000


@dataclass(frozen=True, slots=True)
class Turn:
    """A window closes, or (with `late_rows`) is amended by so many rows. `panes` are those with its rows."""

    window: Window
    account: Account
    panes: tuple[Pane, ...]
    late_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Filling:
    """An open window, its rows so far, and the watermark at which it closes as it stands."""

    window: Window
    rows: int
    closes_at_ms: int


class Closing(Protocol):
    """The windows of a pipeline as the log has them up to a commit."""

    def take(self, said: Mapping[Pane, Account], *, had_ms: int | None, mark_ms: int | None) -> list[Turn]:
        """Take a commit's accounts in; the watermark moves from `had_ms` to `mark_ms`.

        Gives amendments, then the windows that close, each in the order of windows.
        """
        ...

    def open_from_ms(self) -> int | None:
        """Where the first pane starts that an open window holds; None where none is open."""
        ...

    def filling(self, mark_ms: int | None) -> list[Filling]:
        """The windows that are open at a watermark and have rows, oldest first."""
        ...

    def newest_from_ms(self, count: int, end_ms: int) -> int:
        """Where the newest so many windows start that end by then."""
        ...


@singledispatch
def closing(window: Windowing) -> Closing:
    """The state to begin a log with, for windows of that kind."""
    raise TypeError(f"{window!r} is no kind of window")


@dataclass(slots=True)
class Grid:
    """Tumbling and sliding windows: where they lie is known, whatever rows there are."""

    window: Sliding
    panes: dict[Pane, Account] = field(default_factory=dict)
    open: set[Pane] = field(default_factory=set)

    def take(self, said: Mapping[Pane, Account], *, had_ms: int | None, mark_ms: int | None) -> list[Turn]:
        """See `Closing`."""
        late: dict[int, int] = {}
        for pane, account in sorted(said.items()):
            self.panes[pane] = merge(self.panes[pane], account) if pane in self.panes else account
            if had_ms is None or self.window.closes_at_ms(pane.start_ms) > had_ms:
                self.open.add(pane)
            if had_ms is not None and account.rows:
                for start_ms in self.window.starts_over(
                    pane.start_ms, closing_after_ms=None, closing_by_ms=had_ms
                ):
                    late[start_ms] = late.get(start_ms, 0) + account.rows
        turns = [self._turn(start_ms, rows) for start_ms, rows in sorted(late.items())]
        if mark_ms is None:
            return turns
        ending = {
            start_ms
            for pane in self.open
            for start_ms in self.window.starts_over(
                pane.start_ms, closing_after_ms=had_ms, closing_by_ms=mark_ms
            )
        }
        turns += [self._turn(start_ms) for start_ms in sorted(ending)]
        self.open = {p for p in self.open if self.window.closes_at_ms(p.start_ms) > mark_ms}
        self._forget(mark_ms)
        return turns

    def _turn(self, start_ms: int, late_rows: int | None = None) -> Turn:
        starts = range(start_ms, start_ms + self.window.size_ms, self.window.pane_ms)
        panes = tuple(p for s in starts if (p := Pane(s)) in self.panes)
        return Turn(self.window.window(start_ms), merge(*(self.panes[p] for p in panes)), panes, late_rows)

    def _forget(self, mark_ms: int) -> None:
        window = self.window
        oldest_ms = mark_ms - window.lateness_ms - window.size_ms - _AMENDABLE_PANES * window.pane_ms
        # Panes come about in the order of time: the dict's first is nearly always the oldest.
        if next(iter(self.panes), Pane(oldest_ms)).start_ms < oldest_ms:
            self.panes = {p: account for p, account in self.panes.items() if p.start_ms >= oldest_ms}

    def open_from_ms(self) -> int | None:
        """See `Closing`."""
        return min((pane.start_ms for pane in self.open), default=None)

    def filling(self, mark_ms: int | None) -> list[Filling]:
        """See `Closing`."""
        rows: dict[int, int] = {}
        for pane in self.open:
            last_ms = self.window.closes_at_ms(pane.start_ms)
            for start_ms in self.window.starts_over(
                pane.start_ms, closing_after_ms=mark_ms, closing_by_ms=last_ms
            ):
                rows[start_ms] = rows.get(start_ms, 0) + self.panes[pane].rows
        return [
            Filling(self.window.window(start_ms), count, self.window.closes_at_ms(start_ms))
            for start_ms, count in sorted(rows.items())
            if count
        ]

    def newest_from_ms(self, count: int, end_ms: int) -> int:
        """See `Closing`."""
        return end_ms - self.window.size_ms - (count - 1) * self.window.pane_ms


closing.register(Sliding, Grid)


@dataclass(slots=True)
class Closed:
    """A session that has closed, by the panes of its rows: more may come late."""

    window: Window
    panes: dict[Pane, Account]


@dataclass(slots=True)
class Sessions:
    """Session windows: where they lie is told by their rows.

    A pane's rows are late once the watermark has passed its end plus lateness; a session closes once that
    holds for the pane after its last. So no row in time can belong to one that has closed. A late row
    amends the closed session of its pane, or the one from which less than a gap parts it; if there is none,
    it is of an open session, or makes one of its own. A closed session's bounds stay as they were said.
    """

    window: Session
    open: dict[Pane, Account] = field(default_factory=dict)
    closed: dict[Pane, Closed] = field(default_factory=dict)
    recent: list[tuple[int, int]] = field(default_factory=list)
    """End and start of the newest closed sessions, in that order."""

    def take(self, said: Mapping[Pane, Account], *, had_ms: int | None, mark_ms: int | None) -> list[Turn]:
        """See `Closing`."""
        turns: list[Turn] = []
        late: dict[Window, tuple[Closed, int]] = {}
        for pane, account in sorted(said.items()):
            is_late = had_ms is not None and self.window.late_from_ms(pane.start_ms) <= had_ms
            if pane in self.open:
                self.open[pane] = merge(self.open[pane], account)
            elif is_late and (session := self._near(pane, account)) is not None:
                known = session.panes.get(pane)
                session.panes[pane] = account if known is None else merge(known, account)
                self.closed[pane] = session
                late[session.window] = (session, late.get(session.window, (session, 0))[1] + account.rows)
            elif is_late and had_ms is not None and pane.start_ms < self._forgotten_before_ms(had_ms):
                if account.rows:
                    turns.append(Turn(self._bounds({pane: account}), account, (pane,), account.rows))
            else:
                self.open[pane] = account
        turns += [self._turn(session, rows) for session, rows in late.values() if rows]
        turns.sort(key=lambda turn: turn.window)
        if mark_ms is not None:
            turns += self._close(mark_ms)
            self._forget(mark_ms)
        return turns

    def _near(self, pane: Pane, account: Account) -> Closed | None:
        """The closed session that late rows of a pane amend."""
        own = self.closed.get(pane)
        if own is not None or account.first_ms is None or account.last_ms is None:
            return own
        gap_ms = self.window.pane_ms
        before, after = (Pane(pane.start_ms + step_ms, pane.key) for step_ms in (-gap_ms, gap_ms))
        left, right = self.closed.get(before), self.closed.get(after)
        if left is not None and account.first_ms - _last_ms(left.panes[before]) < gap_ms:
            return left
        if right is not None and _first_ms(right.panes[after]) - account.last_ms < gap_ms:
            return right
        return None

    def _close(self, mark_ms: int) -> list[Turn]:
        gap_ms, lateness_ms = self.window.pane_ms, self.window.lateness_ms
        if not any(p.start_ms + 2 * gap_ms + lateness_ms <= mark_ms for p in self.open):
            return []
        turns = []
        for panes in list(self._runs()):
            if panes[-1].start_ms + 2 * gap_ms + lateness_ms <= mark_ms:
                accounts = {pane: self.open.pop(pane) for pane in panes}
                session = Closed(self._bounds(accounts), accounts)
                self.closed |= dict.fromkeys(panes, session)
                insort(self.recent, (session.window.end_ms, session.window.start_ms))
                turns.append(self._turn(session))
        # What was refused makes no session of its own.
        for pane in [p for p, account in self.open.items() if not account.rows]:
            if self.window.late_from_ms(pane.start_ms) <= mark_ms:
                del self.open[pane]
        return sorted(turns, key=lambda turn: turn.window)

    def _runs(self) -> Iterator[list[Pane]]:
        """Panes of each open session, of one key after the other and in the order of time."""
        gap_ms = self.window.pane_ms
        run: list[Pane] = []
        for pane in sorted((p for p, a in self.open.items() if a.rows), key=lambda p: (p.key, p.start_ms)):
            follows = (
                bool(run)
                and run[-1] == Pane(pane.start_ms - gap_ms, pane.key)
                and _first_ms(self.open[pane]) - _last_ms(self.open[run[-1]]) < gap_ms
                and len(run) < self.window.most_panes
            )
            if run and not follows:
                yield run
                run = []
            run.append(pane)
        if run:
            yield run

    def _turn(self, session: Closed, late_rows: int | None = None) -> Turn:
        panes = tuple(sorted(session.panes))
        return Turn(session.window, merge(*(session.panes[p] for p in panes)), panes, late_rows)

    def _bounds(self, panes: Mapping[Pane, Account]) -> Window:
        return Window(
            start_ms=min(map(_first_ms, panes.values())),
            end_ms=max(map(_last_ms, panes.values())) + self.window.pane_ms,
            key=next(iter(panes)).key,
        )

    def _forgotten_before_ms(self, mark_ms: int) -> int:
        most = _AMENDABLE_PANES if self.window.by is None else _AMENDABLE_PANES_BY_KEY
        return mark_ms - self.window.lateness_ms - most * self.window.pane_ms

    def _forget(self, mark_ms: int) -> None:
        # One pane more than is asked for: a row may be near to one.
        oldest_ms = self._forgotten_before_ms(mark_ms) - self.window.pane_ms
        if next(iter(self.closed), Pane(oldest_ms)).start_ms < oldest_ms:
            self.closed = {p: session for p, session in self.closed.items() if p.start_ms >= oldest_ms}
        del self.recent[:-_RECENT_WINDOWS]

    def open_from_ms(self) -> int | None:
        """See `Closing`."""
        return min((pane.start_ms for pane in self.open), default=None)

    def filling(self, mark_ms: int | None) -> list[Filling]:  # noqa: ARG002  (none is open that has closed)
        """See `Closing`."""
        reach_ms = 2 * self.window.pane_ms + self.window.lateness_ms
        found = [
            Filling(
                self._bounds({pane: self.open[pane] for pane in panes}),
                sum(self.open[pane].rows for pane in panes),
                panes[-1].start_ms + reach_ms,
            )
            for panes in self._runs()
        ]
        return sorted(found, key=lambda each: each.window)

    def newest_from_ms(self, count: int, end_ms: int) -> int:
        """See `Closing`."""
        starts_ms = [start_ms for ended_ms, start_ms in self.recent if ended_ms <= end_ms][-count:]
        return min(starts_ms, default=end_ms)


closing.register(Session, Sessions)


def _first_ms(account: Account) -> int:
    assert account.first_ms is not None, "an account of rows"
    return account.first_ms


def _last_ms(account: Account) -> int:
    assert account.last_ms is not None, "an account of rows"
    return account.last_ms
