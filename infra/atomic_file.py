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
    staged = _staged(path, content)
    try:
        staged.replace(path)
        flush(path.parent)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def create_bytes(path: Path, content: bytes, *, flushed: bool = True) -> None:
    """Put `content` at `path` in one step, unless there is something already.

    Args:
        flushed: it is on disk when this returns; else the caller must `flush` file and folder.

    Raises:
        FileExistsError: somebody was first; what he put there stays.
    """
    staged = _staged(path, content, flushed=flushed)
    try:
        os.link(staged, path)
        if flushed:
            flush(path.parent)
    finally:
        staged.unlink(missing_ok=True)


def _staged(path: Path, content: bytes, *, flushed: bool = True) -> Path:
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with staged.open("wb") as out:
            out.write(content)
            out.flush()
            if flushed:
                os.fsync(out.fileno())
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's entries, without which a power cut could still lose the file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
