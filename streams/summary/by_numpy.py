"""Accounts by numpy: of few rows, and of sessions by key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from streams.summary.account import Account, Sums
from streams.summary.exact import LARGEST, Floats, exact, exact_whole, group_sums, squares
from streams.summary.numbers import HALF_BITS, SumsOf, sums_by_pane
from streams.window import Pane


def accounts(rows: pl.DataFrame, start: pl.Expr, key: pl.Expr | None) -> dict[Pane, Account]:
    """See `summarise`; there is a row, at least."""
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
    # In `order` the rows of a pane stand together, from one of `starts` to the next; None: they do already.
    columns = sums_by_pane(
        rows,
        panes.height,
        wholes=lambda values: _wholes(values, order, starts),
        reals=lambda values: _reals(values, order, starts),
    )
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


def _wholes(values: Any, order: Any, starts: Any) -> SumsOf:
    """Whole numbers, by whole numbers: a time or a count needs no floats to be exact."""
    if order is not None:
        values = values[order]
    sizes = np.diff(starts, append=values.size)
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    totals = np.add.reduceat(values, starts)
    if max(-int(lows.min()), int(highs.max())) < 1 << HALF_BITS:
        squared = [(0, np.add.reduceat(values * values, starts))]
    else:
        upper, lower = values >> HALF_BITS, values & ((1 << HALF_BITS) - 1)
        parts = ((2 * HALF_BITS, upper * upper), (HALF_BITS + 1, upper * lower), (0, lower * lower))
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


def _reals(values: Floats, order: Any, starts: Any) -> SumsOf:
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
