"""The source that a job's code reference means, found without importing it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def source_sha256(reference: str) -> str:
    """SHA-256 of the module's source in "package.module:name"; empty where it cannot be found.

    Nothing is imported: neither user code nor torch belongs into the trainer's own process.
    """
    module, _, _ = reference.partition(":")
    spec: ModuleSpec | None = None
    path: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    parts = module.split(".")
    try:
        for depth in range(1, len(parts) + 1):
            spec = _find(".".join(parts[:depth]), path)
            if spec is None:
                return ""
            path = spec.submodule_search_locations
        if spec is None or spec.origin is None:
            return ""
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    except (OSError, ValueError, ImportError):
        return ""


def _find(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    if path is None:
        return None  # a module inside what is no package
    found = PathFinder.find_spec(name, path)
    if found is not None or "." in name:
        return found
    for finder in sys.meta_path:  # an editable install has a finder of its own
        if finder is not PathFinder and (found := finder.find_spec(name, None)) is not None:
            return found
    return None
