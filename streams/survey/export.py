"""A dataset's rows in one Parquet file, written in one step: there whole, or not there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import polars as pl

from infra.atomic_file import flush
from infra.digest import table_digest
from schemas.errors import InvalidConfiguration


class NotExported(InvalidConfiguration):
    """The file is there already, or cannot be written."""


def write(frame: pl.DataFrame, file: Path, *, said: dict[str, object], replace: bool = False) -> str:
    """Write a table, with what it is in the file's own metadata under `tidemill`; gives its digest.

    Args:
        said: where the rows come from, as plain data.
        replace: a file that is there may go.

    Raises:
        NotExported: a file is there, or the folder cannot be written to.
    """
    if file.exists() and not replace:
        raise NotExported(f"{file} is there already; name another, or add --replace")
    digest = table_digest(frame)
    told = msgspec.json.encode({**said, "rows": frame.height, "sha256": digest}).decode()
    staged = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(staged, metadata={"tidemill": told})
        flush(staged)
        staged.replace(file)
        flush(file.parent)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise NotExported(f"{file} cannot be written: {error}; free space or name another folder") from error
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return digest
