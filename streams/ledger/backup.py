"""A dataset with its ledger, copied elsewhere and back: one version of it, whole, whatever goes on meanwhile.

Files of a Delta table never change, so a backup may be taken while workers commit, and taken again into the
same folder it copies only what is new. Its manifest is written last: what it does not name is no backup yet.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from infra import atomic_file
from infra.dataset import Dataset
from schemas.errors import InvalidConfiguration, Rejected

MANIFEST = "BACKUP.json"
_LOG = "_delta_log"


class BackupDamaged(Rejected):
    """A file of the backup is missing or is not as it was copied."""


class Manifest(Struct, frozen=True, kw_only=True):
    """What a backup holds: `files` gives size in bytes and SHA-256 by path within the dataset."""

    pipeline: str
    version: int
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """What was done: the dataset's version, and how much was copied of how much."""

    version: int
    files: int
    size_bytes: int
    copied_files: int
    copied_bytes: int


def back_up(uri: str | Path, folder: Path) -> Copied:
    """Copy the newest version of a dataset, and all older ones that can still be read, into a folder.

    Raises:
        InvalidConfiguration: the folder holds something else, or lies within the dataset.
        DatasetUnreadable: there is no dataset.
        OSError: it cannot be read or written. The folder's former backup still holds.
    """
    root = Path(uri)
    if folder.resolve().is_relative_to(root.resolve()):
        raise InvalidConfiguration(f"{folder} lies within the dataset {root}; name a folder elsewhere")
    former = _former(folder, root.name)
    version = Dataset(root).newest_version()
    files: dict[str, tuple[int, str]] = {}
    copied_files = copied_bytes = 0
    for path in _files_of(root, version):
        source, known = root / path, former.get(path)
        if known is not None and known[0] == source.stat().st_size and (folder / path).is_file():
            files[path] = known
            continue
        files[path] = _copy(source, folder / path)
        copied_files += 1
        copied_bytes += files[path][0]
    manifest = Manifest(pipeline=root.name, version=version, files=files)
    atomic_file.write_text(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)).decode())
    for stale in former.keys() - files.keys():
        (folder / stale).unlink(missing_ok=True)
    return Copied(
        version=version,
        files=len(files),
        size_bytes=sum(size for size, _ in files.values()),
        copied_files=copied_files,
        copied_bytes=copied_bytes,
    )


def restore(folder: Path, uri: str | Path) -> Copied:
    """Copy a backup to where its dataset was, or is to be; each file is held against its digest first.

    Raises:
        InvalidConfiguration: there is no backup, or there is a dataset already: it is never written over.
        BackupDamaged: a file is missing, or is not as it was copied; nothing was restored.
    """
    manifest = _manifest(folder)
    root = Path(uri)
    if root.exists():
        raise InvalidConfiguration(
            f"{root} is there already, and a backup is never written over a dataset; move it away first"
        )
    beside = root.with_name(f"{root.name}.restoring")
    if beside.exists():
        shutil.rmtree(beside)  # of a restore that was broken off
    try:
        for path, (_, sha256) in manifest.files.items():
            source = folder / path
            if not source.is_file():
                raise BackupDamaged(f"{source} is missing; take another backup of {manifest.pipeline}")
            if _copy(source, beside / path)[1] != sha256:
                raise BackupDamaged(
                    f"{source} is not as it was copied; take another backup of {manifest.pipeline}"
                )
        _flush_folders(beside)
        beside.rename(root)
        _flush(root.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    size_bytes = sum(size for size, _ in manifest.files.values())
    number = len(manifest.files)
    return Copied(
        version=manifest.version,
        files=number,
        size_bytes=size_bytes,
        copied_files=number,
        copied_bytes=size_bytes,
    )


def pipeline_of(folder: Path) -> str:
    """Whose dataset a backup holds. Raises InvalidConfiguration where there is none."""
    return _manifest(folder).pipeline


def _files_of(root: Path, version: int) -> Iterator[str]:
    """The log up to a version, and the rows of all its versions that are not vacuumed."""
    named: set[str] = set()
    for entry in sorted((root / _LOG).glob("*.json")):
        if not entry.stem.isdigit() or int(entry.stem) > version:
            continue
        for line in entry.read_bytes().splitlines():
            added = msgspec.json.decode(line).get("add")
            if added is not None:
                named.add(unquote(added["path"]))
        yield f"{_LOG}/{entry.name}"
    # Rows after the log that names them: no matter in a backup, whose manifest is written last.
    yield from sorted(path for path in named if (root / path).is_file())


def _former(folder: Path, pipeline: str) -> dict[str, tuple[int, str]]:
    if not folder.exists():
        return {}
    if not (folder / MANIFEST).is_file():
        if any(path.name != _LOG and path.suffix != ".parquet" for path in folder.iterdir()):
            raise InvalidConfiguration(f"{folder} holds something that is no backup; name an empty folder")
        return {}
    manifest = _manifest(folder)
    if manifest.pipeline != pipeline:
        raise InvalidConfiguration(
            f"{folder} holds a backup of {manifest.pipeline}, not of {pipeline}; give each its own folder"
        )
    return manifest.files


def _manifest(folder: Path) -> Manifest:
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidConfiguration(
            f"{folder} holds no whole backup ({error}); `tidemill dataset backup` makes one"
        ) from error


def _copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy one file to the disk; size in bytes and SHA-256 of what was copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size_bytes = hashlib.sha256(), 0
    partial = target.with_name(f"{target.name}.partial")
    with source.open("rb") as reads, partial.open("wb") as writes:
        while chunk := reads.read(2**20):
            digest.update(chunk)
            size_bytes += len(chunk)
            writes.write(chunk)
        writes.flush()
        os.fsync(writes.fileno())
    partial.replace(target)
    return size_bytes, digest.hexdigest()


def _flush_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        _flush(Path(folder))


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
