"""What a finished job comes to: decided once, written down, then announced; after a crash, announced again.

The order of a job's last events is: job succeeded, its model published (or refused) in the history, the
current model. The history's event ends the job. All of them are on disk before the first goes out, so a
trainer that dies in between says the very same at its next start, without training again. Should the file be
lost with the machine, the job is run again, and its events bear the same ids where training is repeatable.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec

from infra import atomic_file
from schemas.errors import Rejected
from schemas.job import JobRequested, JobSucceeded
from schemas.model import Artifact, CanaryPublished, Field, Manifest, ModelPublished, ModelRefused
from trainers.artifact import ENDING
from trainers.assignment import Outcome
from trainers.gate import judge

FILE = "conclusion.json"
LARGEST_BYTES = 1_900_000
"""Of a model event: the topics take 2 MiB a record."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


class ModelTooWordy(Rejected):
    """The model's plain data do not fit into an event."""


class Conclusion(msgspec.Struct, frozen=True, kw_only=True):
    """All that a job's end announces."""

    succeeded: JobSucceeded
    published: ModelPublished | None = None
    refused: ModelRefused | None = None
    canary: CanaryPublished | None = None

    @property
    def model_event(self) -> ModelPublished | ModelRefused | CanaryPublished:
        """The event that ends the job."""
        event = self.published or self.refused or self.canary
        assert event is not None
        return event


def conclude(
    job: JobRequested,
    attempt: int,
    outcome: Outcome,
    *,
    judged_against: Manifest | None,
    champion: Manifest | None,
    store_url: str,
    version: int | None = None,
    on_trial: Manifest | None = None,
    now_ms: int,
) -> Conclusion:
    """Publish or refuse: a pure function of what came out and what is live.

    Args:
        judged_against: the live model that the challenger was scored beside.
        champion: the live model now.
        version: what the model is to be called; None: one more than the live model's.
        on_trial: the canary of that name, if there is one: no second is taken beside it.

    Raises:
        ModelTooWordy: the model event would not fit into a record.
    """
    experiment = job.experiment
    succeeded = JobSucceeded(
        job_id=job.job_id,
        attempt=attempt,
        rows=outcome.rows,
        train_s=outcome.train_s,
        finished_ms=outcome.trained_ms,
        artifact_sha256=outcome.sha256,
        scores=measures(outcome),
    )
    verdict = judge(
        experiment.gate,
        champion=outcome.champion,
        challenger=outcome.challenger,
        has_champion=champion is not None,
        comparison=outcome.comparison,
        findings=outcome.findings,
        champion_changed=_version(judged_against) != _version(champion),
    )
    terms = None if champion is None else job.canary
    reason, publish = verdict.reason, verdict.publish
    if publish and terms is not None and on_trial is not None:
        publish = False
        reason = f"version {on_trial.version} is on trial, and a second canary is not taken; else: {reason}"
    if not publish:
        refused = ModelRefused(
            name=experiment.model,
            job_id=job.job_id,
            reason=reason,
            champion=outcome.champion,
            challenger=outcome.challenger,
            refused_ms=now_ms,
            comparison=outcome.comparison,
            findings=outcome.findings,
        )
        return Conclusion(succeeded=succeeded, refused=refused)
    manifest = Manifest(
        name=experiment.model,
        version=version or _version(champion) + 1,
        artifact=Artifact(
            uri=f"{store_url}{outcome.sha256}{ENDING}", size_bytes=outcome.size_bytes, sha256=outcome.sha256
        ),
        architecture=outcome.architecture,
        config=outcome.config,
        inputs=outcome.inputs,
        outputs=[Field(name="probability", type="float")],
        example=outcome.example,
        champion=outcome.champion,
        challenger=outcome.challenger,
        lineage=outcome.lineage,
        published_ms=now_ms,
        comparison=outcome.comparison,
        canary=terms,
    )
    if terms is None or champion is None:
        said = Conclusion(
            succeeded=succeeded, published=ModelPublished(name=experiment.model, manifest=manifest)
        )
    else:
        offered = CanaryPublished(name=experiment.model, manifest=manifest, beside_version=champion.version)
        said = Conclusion(succeeded=succeeded, canary=offered)
    if (size_bytes := len(msgspec.json.encode(said.model_event))) > LARGEST_BYTES:
        raise ModelTooWordy(
            f"the model's event takes {size_bytes:,} bytes, a record at most {LARGEST_BYTES:,}: "
            "its config is too large; shorten its vocabularies"
        )
    return said


def measures(outcome: Outcome) -> dict[str, float]:
    """The challenger's scores as far as there are any."""
    scores = outcome.challenger
    if scores is None:
        return {}
    known = {"auc": scores.auc, "log_loss": scores.log_loss, "accuracy": scores.accuracy}
    return {name: value for name, value in known.items() if value is not None}


def _version(manifest: Manifest | None) -> int:
    return 0 if manifest is None else manifest.version


def folder_of(jobs: Path, job_id: str) -> Path:
    """A job's own folder: its log, its checkpoint, and its conclusion."""
    if _PLAIN_NAME.fullmatch(job_id):
        return jobs / job_id
    return jobs / hashlib.sha256(job_id.encode()).hexdigest()


def write_down(folder: Path, conclusion: Conclusion) -> None:
    """Keep it in the job's folder; on return it is on disk. Raises OSError."""
    atomic_file.write_text(folder / FILE, msgspec.json.encode(conclusion).decode())
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the job's folder may be new itself
    finally:
        os.close(handle)


def read_back(folder: Path, *, champion: Manifest | None, version: int | None = None) -> Conclusion | None:
    """What was concluded and may be unsaid; None if nothing was, or if it no longer holds.

    A model that was published or rolled back to meanwhile has taken the version that this one was to get:
    then the job is run again and judged against that model.
    """
    try:
        conclusion = msgspec.json.decode((folder / FILE).read_bytes(), type=Conclusion)
    except (OSError, msgspec.DecodeError):
        return None
    published = conclusion.published or conclusion.canary
    if published is not None and published.manifest.version != (version or _version(champion) + 1):
        return None
    return conclusion
