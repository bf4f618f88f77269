"""A file is either the old one or the new one, whatever dies in between."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path` in one step; a reader never sees a part of it. Creates missing folders."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step, on disk when it returns. Creates missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with staged.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        staged.replace(path)
        _flush(path.parent)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def _flush(folder: Path) -> None:
    """The folder's entry, without which a power cut could still lose the file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
