"""What a training came to, kept until it is concluded: a store that is away costs no second training."""

from __future__ import annotations

from pathlib import Path

import msgspec

from infra import atomic_file
from infra.logging import logger
from trainers.assignment import Outcome

FILE = "trained.json"

log = logger(__name__)


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome, and the run key that says of which training."""

    run_key: str
    outcome: Outcome


def keep(folder: Path, run_key: str, outcome: Outcome) -> None:
    """Keep it in the job's folder. If that cannot be, a later attempt trains again."""
    try:
        atomic_file.write_bytes(folder / FILE, msgspec.json.encode(Trained(run_key=run_key, outcome=outcome)))
    except OSError as error:
        log.warning("what was trained cannot be kept for another attempt", error=str(error))


def recall(folder: Path, run_key: str) -> Outcome | None:
    """What an earlier attempt at the very same training came to."""
    try:
        kept = msgspec.json.decode((folder / FILE).read_bytes(), type=Trained)
    except (OSError, msgspec.DecodeError):
        return None
    return kept.outcome if kept.run_key == run_key else None


def forget(folder: Path) -> None:
    """The job is over."""
    (folder / FILE).unlink(missing_ok=True)
