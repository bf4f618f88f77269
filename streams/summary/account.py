"""A commit's small, mergeable account of its rows, by pane.

Every number in it is exact, sums of floats too (`exact`): so the merge of the same rows' accounts is
the same to the last bit, however the rows were ordered, batched and shared out among workers. It is
rounded once, in what is announced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct, field

from schemas.window import Moments, Summary
from streams.summary.exact import Exact, exact, real


class Sums(Struct, frozen=True):
    """Of a column's values: how many, their exact sum and that of their squares, and the extremes."""

    count: int
    total: Exact
    squares: Exact
    min: float
    max: float


class Account(Struct, frozen=True, kw_only=True):
    """What is known of a pane's rows; of those that came in, event times of the first and the last."""

    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    columns: dict[str, Sums] = field(default_factory=dict)
    first_ms: int | None = None
    last_ms: int | None = None


def merge(*accounts: Account) -> Account:
    """The account of all their rows; associative and commutative, exactly."""
    columns: dict[str, list[Sums]] = {}
    for account in accounts:
        for name, sums in account.columns.items():
            columns.setdefault(name, []).append(sums)
    return Account(
        rows=sum(a.rows for a in accounts),
        rejected=_add(a.rejected for a in accounts),
        dropped=_add(a.dropped for a in accounts),
        tags=_add(a.tags for a in accounts),
        columns={name: merge_sums(parts) for name, parts in sorted(columns.items())},
        first_ms=min((a.first_ms for a in accounts if a.first_ms is not None), default=None),
        last_ms=max((a.last_ms for a in accounts if a.last_ms is not None), default=None),
    )


def _add(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    some = [each for each in counts if each]
    if len(some) < 2:
        return dict(sorted(some[0].items())) if some else {}
    total: Counter[str] = Counter()
    for each in some:
        total.update(each)
    return dict(sorted(total.items()))


def merge_sums(parts: list[Sums]) -> Sums:
    """Sums over all parts' values."""
    if len(parts) == 1:
        return parts[0]
    return Sums(
        count=sum(p.count for p in parts),
        total=exact(x for p in parts for x in p.total),
        squares=exact(x for p in parts for x in p.squares),
        min=min(p.min for p in parts),
        max=max(p.max for p in parts),
    )


def moments(sums: Sums) -> Moments:
    """Mean and sum of squared deviations, each rounded once from its exact value."""
    # In whole numbers over a power of two: the quotient of two whole numbers is rounded once.
    total, over = real(sums.total)
    squared, squared_over = real(sums.squares)
    m2_over = max(over * over, squared_over)
    m2 = sums.count * squared * (m2_over // squared_over) - total * total * (m2_over // (over * over))
    return Moments(
        count=sums.count,
        mean=total / (sums.count * over),
        m2=max(m2, 0) / (sums.count * m2_over),
        min=sums.min,
        max=sums.max,
    )


def announced(account: Account) -> Summary:
    """The account as it is announced."""
    return Summary(
        rows=account.rows,
        rejected=account.rejected,
        dropped=account.dropped,
        tags=account.tags,
        columns={name: moments(sums) for name, sums in sorted(account.columns.items())},
    )
