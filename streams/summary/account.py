"""A commit's small, mergeable account of its rows, by pane.

Every number in it is exact, sums of floats too (`exact`): so the merge of the same rows' accounts is
the same to the last bit, however the rows were ordered, batched and shared out among workers. It is
rounded once, in what is announced.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct, field

from schemas.window import Moments, Summary
from streams.summary.exact import LARGEST, Exact, Floats, exact, exact_whole, group_sums, real, squares
from streams.window import Pane


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


def summarise(rows: pl.DataFrame, *, start: pl.Expr, key: pl.Expr | None = None) -> dict[Pane, Account]:
    """Accounts of cleaned and tagged rows by pane: by its start and, for sessions by key, the key.

    Sums are of the numeric columns that are no meta column; nulls, NaN and numbers beyond 2^500 do not count.
    """
    if rows.height == 0:
        return {}
    framed = rows.select(
        "_time", "_tags", start.alias("_start"), (pl.lit("") if key is None else key).alias("_key")
    )
    by = ["_start"] if key is None else ["_start", "_key"]
    panes = (
        framed.group_by(by)
        .agg(rows=pl.len(), first=pl.col("_time").min(), last=pl.col("_time").max())
        .sort(by)
        .with_row_index("_pane")
    )
    order, starts = None, np.zeros(1, dtype=np.intp)
    if panes.height > 1:
        if key is None:
            of_pane = (
                panes.get_column("_start").to_numpy().searchsorted(framed.get_column("_start").to_numpy())
            )
        else:
            joined = framed.select(by).join(panes, on=by, maintain_order="left", how="left")
            of_pane = joined.get_column("_pane").to_numpy()
        if panes.height < 2**16:
            of_pane = of_pane.astype(np.uint16)  # which numpy sorts without comparing
        if (of_pane[1:] < of_pane[:-1]).any():
            order = of_pane.argsort(kind="stable")
            of_pane = of_pane[order]
        starts = of_pane.searchsorted(np.arange(panes.height, dtype=of_pane.dtype))
    if key is None:
        panes = panes.with_columns(_key=pl.lit(""))
    columns: list[dict[str, Sums]] = [{} for _ in range(panes.height)]
    for name, dtype in sorted(rows.schema.items()):
        if dtype.is_numeric() and not name.startswith("_"):
            for pane, sums in _column(rows.get_column(name), order, starts):
                columns[pane][name] = sums
    tags = _tags(framed)
    found: dict[Pane, Account] = {}
    for number, start_ms, of_key, count, first_ms, last_ms in panes.select(
        "_pane", "_start", "_key", "rows", "first", "last"
    ).iter_rows():
        pane = Pane(start_ms, of_key)
        found[pane] = Account(
            rows=count,
            tags=tags.get(pane, {}),
            columns=columns[number],
            first_ms=first_ms,
            last_ms=last_ms,
        )
    return found


def _tags(framed: pl.DataFrame) -> dict[Pane, dict[str, int]]:
    tagged = (
        framed.select("_start", "_key", "_tags")
        .filter(pl.col("_tags").list.len() > 0)
        .explode("_tags", empty_as_null=True)
        .drop_nulls("_tags")
        .group_by("_start", "_key", "_tags")
        .len()
    )
    found: dict[Pane, dict[str, int]] = {}
    for start_ms, key, tag, count in tagged.sort("_start", "_key", "_tags").iter_rows():
        found.setdefault(Pane(start_ms, key), {})[tag] = count
    return found


def _column(column: pl.Series, order: Any, starts: Any) -> Iterable[tuple[int, Sums]]:
    """Sums of one column by the number of the pane, for panes that have a value.

    In `order` the rows of a pane stand together, from one of `starts` to the next; None: they do already.
    """
    if column.dtype.is_integer() and column.null_count() == 0 and column.len() < _MOST_WHOLE:
        low, high = int(column.min()), int(column.max())  # type: ignore[arg-type]
        if low > -_LARGEST_WHOLE and high < _LARGEST_WHOLE:
            return _whole_column(column.cast(pl.Int64).to_numpy(), order, starts)
    return _real_column(column, order, starts)


# Of whole numbers below the one, so many can be squared in halves and added up without leaving 64 bits.
_HALF = 21
_LARGEST_WHOLE = 1 << 2 * _HALF
_MOST_WHOLE = 1 << 20


def _whole_column(values: Any, order: Any, starts: Any) -> Iterable[tuple[int, Sums]]:
    """Whole numbers, by whole numbers: a time or a count needs no floats to be exact."""
    if order is not None:
        values = values[order]
    sizes = np.diff(starts, append=values.size)
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    totals = np.add.reduceat(values, starts)
    if max(-int(lows.min()), int(highs.max())) < 1 << _HALF:
        squared = [(0, np.add.reduceat(values * values, starts))]
    else:
        upper, lower = values >> _HALF, values & ((1 << _HALF) - 1)
        parts = ((2 * _HALF, upper * upper), (_HALF + 1, upper * lower), (0, lower * lower))
        squared = [(shift, np.add.reduceat(part, starts)) for shift, part in parts]
    for pane, size in enumerate(sizes):
        yield (
            pane,
            Sums(
                int(size),
                exact_whole(int(totals[pane])),
                exact_whole(sum(int(part[pane]) << shift for shift, part in squared)),
                float(lows[pane]),
                float(highs[pane]),
            ),
        )


# So many values are worked on at a time: all that is made of them stays in the processor's cache.
_BLOCK = 8_192


def _real_column(column: pl.Series, order: Any, starts: Any) -> Iterable[tuple[int, Sums]]:
    values: Floats = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if order is not None:
        values = values[order]
    panes = len(starts)
    counts = [0] * panes
    lows, highs = [math.inf] * panes, [-math.inf] * panes
    totals: list[list[float]] = [[] for _ in range(panes)]
    squared: list[list[float]] = [[] for _ in range(panes)]
    for at in range(0, values.size, _BLOCK):
        block = values[at : at + _BLOCK]
        first, last = starts.searchsorted((at, at + block.size - 1), side="right") - 1
        own = np.maximum(starts[first : last + 1] - at, 0)
        low = high = block
        counted = np.abs(block) < LARGEST
        if counted.all():
            sizes = np.diff(own, append=block.size)
        else:
            sizes = np.add.reduceat(counted, own, dtype=np.intp)
            low, high = np.where(counted, block, np.inf), np.where(counted, block, -np.inf)
            block = np.where(counted, block, 0.0)
        sums = group_sums(block, own)
        of_squares = [part for each in squares(block) for part in group_sums(each, own)]
        least, most = np.minimum.reduceat(low, own), np.maximum.reduceat(high, own)
        for number in range(len(own)):
            pane = first + number
            counts[pane] += int(sizes[number])
            lows[pane] = min(lows[pane], float(least[number]))
            highs[pane] = max(highs[pane], float(most[number]))
            totals[pane] += [float(part[number]) for part in sums]
            squared[pane] += [float(part[number]) for part in of_squares]
    for pane, count in enumerate(counts):
        if count:
            # No minus zero: which of two equal zeros is least is a matter of order.
            ends = lows[pane] + 0.0, highs[pane] + 0.0
            yield pane, Sums(count, exact(totals[pane]), exact(squared[pane]), *ends)
