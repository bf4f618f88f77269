"""Tags of what is unusual: outliers, rare and new values, change points, crowding producers.

They judge a row by the rows before it, so they are no expression of the row alone: they are computed beside
its features, by `infra.lookback`, live and in training alike. The dataset's own rows do not carry them;
feature rows, training rows and the windows' profiles do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from schemas.lookback import QUARANTINED, Crowding, Isolated, Lookback, Outlier, Rare, Shifted
from streams.declared import InvalidPipeline, here
from streams.duration import to_ms
from streams.tag import Behind, Tag


def outlier(
    column: str,
    *,
    mad: float | None = None,
    iqr: float | None = None,
    by: tuple[str, ...] = (),
    season: str | None = None,
    phases: int = 24,
    over: str = "7d",
    every: str = "1d",
    minimum_rows: int = 50,
    name: str = "",
) -> Behind:
    """Numbers far from the middle of the rows before.

    Args:
        mad: by more than so many robust standard deviations (6 where neither is given).
        iqr: or by more than so many interquartile ranges beyond the quartiles; 1.5 and 3 are Tukey's.
        by: judged within groups of the same values.
        season: judged within the same part of it: "1d" with 24 `phases` compares like hours.
        over: the rows before that are looked at; the worker holds these columns of them in memory.
        every: for so long the middle stays as it is.
        name: of the tag; `outlier(column)` else.

    Raises:
        InvalidPipeline: both ways are given, or a span cannot be.
    """
    if mad is not None and iqr is not None:
        raise InvalidPipeline(here(), f"outlier({column!r}): judge by mad= or by iqr=, not by both")
    reach = mad if mad is not None else 6.0 if iqr is None else iqr
    return _behind(
        Outlier,
        name or f"outlier({column})",
        over,
        every,
        minimum_rows,
        column=column,
        method="mad" if iqr is None else "iqr",
        reach=reach,
        by=by,
        season_ms=None if season is None else to_ms(season),
        phases=phases,
    )


def rare(
    column: str,
    share: float,
    *,
    over: str = "7d",
    every: str = "1d",
    minimum_rows: int = 50,
    name: str = "",
) -> Behind:
    """Values that fewer than this share of the rows before had."""
    given = name or f"rare({column})"
    return _behind(Rare, given, over, every, minimum_rows, column=column, share=share)


def never_seen(
    column: str, *, over: str = "30d", every: str = "1d", minimum_rows: int = 50, name: str = ""
) -> Behind:
    """Values that no row before had."""
    given = name or f"never_seen({column})"
    return _behind(Rare, given, over, every, minimum_rows, column=column, share=0.0)


def isolated(
    *columns: str,
    score: float = 0.65,
    trees: int = 64,
    over: str = "7d",
    every: str = "1d",
    minimum_rows: int = 50,
    name: str = "",
) -> Behind:
    """Rows that are unusual in several columns together (an isolation forest's score)."""
    if len(columns) < 2:
        raise InvalidPipeline(here(), "isolated() looks at several columns together; for one write outlier()")
    given = name or f"isolated({', '.join(columns)})"
    return _behind(Isolated, given, over, every, minimum_rows, columns=columns, score=score, trees=trees)


def shifted(
    column: str,
    *,
    reach: float = 6.0,
    over: str = "7d",
    every: str = "1d",
    minimum_rows: int = 50,
    name: str = "",
) -> Behind:
    """Rows behind a change point: the level of the span `every` before was another than before that."""
    given = name or f"shifted({column})"
    return _behind(Shifted, given, over, every, minimum_rows, column=column, reach=reach)


def crowding(
    producer: str,
    share: float,
    *,
    quarantine: bool = False,
    over: str = "7d",
    every: str = "1h",
    minimum_rows: int = 50,
    name: str = "",
) -> Behind:
    """Rows of one producer beyond its share of what all usually send in a span `every`: against poisoning.

    Args:
        producer: the column that says who sent a row.
        share: of the usual rows of all, 0 to 1.
        quarantine: no training and no judging of models sees such a row; the dataset has it.
    """
    given = QUARANTINED if quarantine else name or f"crowding({producer})"
    return _behind(Crowding, given, over, every, minimum_rows, column=producer, share=share)


def _behind(kind: type[Any], name: str, over: str, every: str, minimum_rows: int, **options: Any) -> Behind:
    spans = {"over_ms": to_ms(over), "every_ms": to_ms(every)}
    if spans["every_ms"] > spans["over_ms"]:
        raise InvalidPipeline(here(), f"{name}: every={every} is longer than over={over}; look back further")
    try:
        declared = msgspec.convert(
            {
                "type": kind.__struct_config__.tag,
                "name": name,
                "minimum_rows": minimum_rows,
                **spans,
                **options,
            },
            Lookback,
        )
    except msgspec.ValidationError as error:
        raise InvalidPipeline(here(), f"{name}: {error}") from error
    return Behind(declared)


def lookup(column: str, table: pl.DataFrame | Path | str, *, key: str, tag: str) -> list[Tag]:
    """Tags by a table: a row carries what the table's `tag` column says of its `column`'s value.

        tag=[*lookup("dest", "airports.csv", key="faa", tag="region"), …]

    Args:
        table: a frame, or a CSV or Parquet file that is read once, when the pipeline is declared.
        key: the table's column of values; each stands there once.

    Raises:
        InvalidPipeline: the table cannot be read, lacks a column, or has a key twice.
    """
    if not isinstance(table, pl.DataFrame):
        try:
            table = pl.read_parquet(table) if str(table).endswith(".parquet") else pl.read_csv(table)
        except (OSError, pl.exceptions.PolarsError) as error:
            first = str(error).partition("\n")[0]
            raise InvalidPipeline(here(), f"lookup({column!r}): {table} cannot be read: {first}") from error
    if absent := [c for c in (key, tag) if c not in table.columns]:
        there = ", ".join(table.columns)
        raise InvalidPipeline(here(), f"lookup({column!r}): the table has no {absent[0]!r}; it has {there}")
    known = table.select(key, pl.col(tag).cast(pl.String)).drop_nulls()
    if (twice := known.filter(pl.col(key).is_duplicated())).height:
        raise InvalidPipeline(here(), f"lookup({column!r}): {twice[0, 0]!r} stands in the table twice")
    place = here()
    return [
        Tag(str(name), pl.col(column).is_in(rows.get_column(key).to_list()), place)
        for (name,), rows in sorted(known.partition_by(tag, as_dict=True).items())
    ]
