"""The rules that edited ones are held against: another file, a module, or the same file as committed."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from schemas import topics
from schemas.errors import InvalidConfiguration
from streams.load import Loaded, load_pipeline

_GIT = "git:"


def load_against(edited: str, against: str) -> Loaded:
    """Load a pipeline whose contracts may bear the names of another's.

    Args:
        against: a file, a module, or `git:REVISION`, which is the edited file as it was there.

    Raises:
        InvalidConfiguration: it is not there, or cannot be imported.
    """
    with topics.apart():
        if not against.startswith(_GIT):
            return load_pipeline(against)
        revision = against.removeprefix(_GIT) or "HEAD"
        file = Path(edited) if edited.endswith(".py") else load_pipeline(edited).file
    with topics.apart(), tempfile.TemporaryDirectory(prefix="tidemill-against-") as folder:
        committed = Path(folder) / file.name
        committed.write_bytes(_committed(file.absolute(), revision))
        return load_pipeline(str(committed))


def _committed(file: Path, revision: str) -> bytes:
    way_out = "name the live rules by --against FILE"
    try:
        done = subprocess.run(
            ["git", "show", f"{revision}:./{file.name}"], cwd=file.parent, capture_output=True, check=False
        )
    except OSError as error:
        raise InvalidConfiguration(f"git cannot be run here ({error.strerror}); {way_out}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise InvalidConfiguration(
            f"git has no {file.name} at {revision}: {said[-1] if said else 'no reason given'}; {way_out}"
        )
    return done.stdout
