"""A commit's small, mergeable account of its rows, by window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import polars as pl

from schemas.window import Moments, Summary


def merge(a: Summary, b: Summary) -> Summary:
    """The summary of both; associative and commutative up to rounding."""
    columns = dict(a.columns)
    for name, moments in b.columns.items():
        columns[name] = merge_moments(columns[name], moments) if name in columns else moments
    return Summary(
        rows=a.rows + b.rows,
        rejected=_add(a.rejected, b.rejected),
        dropped=_add(a.dropped, b.dropped),
        tags=_add(a.tags, b.tags),
        columns=columns,
    )


def _add(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted((Counter(a) + Counter(b)).items()))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of both samples (Chan, Golub and LeVeque, 1983: the pairwise update)."""
    count = a.count + b.count
    apart = b.mean - a.mean
    return Moments(
        count=count,
        mean=a.mean + apart * b.count / count,
        m2=a.m2 + b.m2 + apart * apart * a.count * b.count / count,
        min=min(a.min, b.min),
        max=max(a.max, b.max),
    )


def summarise(rows: pl.DataFrame, *, start: pl.Expr) -> dict[int, Summary]:
    """Summaries of cleaned and tagged rows by their window's start.

    Moments are of the numeric columns that are no meta column; nulls and NaN do not count.
    """
    if rows.height == 0:
        return {}
    numeric = [c for c, t in rows.schema.items() if t.is_numeric() and not c.startswith("_")]
    framed = rows.with_columns(start.alias("_start"))
    groups = framed.group_by("_start").agg(pl.len().alias("_rows"), *(_moments(c) for c in numeric))
    tagged = (
        framed.select("_start", "_tags")
        .explode("_tags", empty_as_null=True)
        .drop_nulls("_tags")
        .group_by("_start", "_tags")
        .len()
    )
    tags: dict[int, dict[str, int]] = {}
    for start_ms, tag, count in tagged.sort("_start", "_tags").iter_rows():
        tags.setdefault(start_ms, {})[tag] = count
    return {
        group["_start"]: Summary(
            rows=group["_rows"],
            tags=tags.get(group["_start"], {}),
            columns={c: Moments(**group[c]) for c in numeric if group[c]["count"]},
        )
        for group in groups.iter_rows(named=True)
    }


def _moments(column: str) -> pl.Expr:
    value = pl.col(column).cast(pl.Float64)
    value = value.filter(value.is_finite())
    return pl.struct(
        count=value.len().cast(pl.Int64),
        mean=value.mean(),
        m2=((value - value.mean()) ** 2).sum(),
        min=value.min(),
        max=value.max(),
    ).alias(column)
