"""A small disk of its own for a dataset, so that it can be full without filling anybody else's."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path


class Disk:
    """A memory file system at `at`; a context manager. Where it cannot be mounted, a plain folder."""

    def __init__(self, at: Path, size_bytes: int) -> None:
        self.at, self.size_bytes = at, size_bytes
        self.is_small = False
        self._ballast = at / ".ballast"

    def __enter__(self) -> Disk:
        self.at.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.size_bytes}", "tmpfs", str(self.at)]
        if os.geteuid() == 0:
            self.is_small = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_small:
            subprocess.run(["umount", "-l", str(self.at)], check=False, capture_output=True)

    def fill(self) -> None:
        """Leave no byte."""
        if not self.is_small:
            raise RuntimeError(f"{self.at} is no small disk: only root may mount one")
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as filling:
            while True:
                filling.write(bytes(65_536))

    def make_room(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink(missing_ok=True)
