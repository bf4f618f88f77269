"""Make a model again from its event alone, and say where it differs if it does.

Rebuilt are the rows that it was trained and judged on, from the dataset version, and compared by digest;
then, where it was trained on a CPU, its weights: same code, seed, parameters, parent and number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import polars as pl
import safetensors.torch
import torch

from infra.digest import table_digest
from schemas.errors import Rejected, TidemillError
from schemas.job import Experiment
from schemas.model import Manifest
from trainers.artifact import ArtifactCorrupt, ArtifactStore
from trainers.lineage import hardware, libraries
from trainers.rows import Rows, read
from trainers.work import find_code, live_model, losses_of, train_on, weights_of


class CannotReproduce(Rejected):
    """The event does not say enough, or what it names is no longer here."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing compared: `same` is None where it could not be, and `detail` says why."""

    name: str
    same: bool | None
    detail: str


@dataclass(slots=True)
class Reproduction:
    """What was compared, in the order in which one thing follows from another."""

    model: str
    version: int
    checks: list[Check] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether input bytes and weights are those of the event, as far as they can be compared."""
        return all(check.same for check in self.checks if check.name in ("input", "weights"))

    @property
    def differs_at(self) -> str | None:
        """The first thing that differs; what comes after it may differ because of it."""
        return next((check.name for check in self.checks if check.same is False), None)


def reproduce(
    manifest: Manifest,
    *,
    champion: Manifest | None,
    store: ArtifactStore,
    retrain: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Reproduction:
    """Compare what comes out today with what the event says.

    Args:
        champion: the model that was live then, if the lineage names one: rows may have been chosen by it, and
            the training may have begun from it.
        store: where artifacts lie.
        retrain: train too; without, only the rows are rebuilt.
        say: told what is under way.

    Raises:
        CannotReproduce: the event is of an older trainer, or what it names is gone.
    """
    lineage, experiment = manifest.lineage, _experiment_of(manifest)
    found = Reproduction(manifest.name, manifest.version)
    found.checks += [
        _texts("libraries", lineage.libraries, libraries()),
        _texts("hardware", lineage.hardware, hardware("cpu")),
    ]
    torch.set_num_threads(lineage.threads)
    live = _live(lineage.champion_sha256, champion, store)
    say(f"reading {experiment.training.uri} at version {experiment.training.version}")
    rows = _read(experiment, live)
    found.checks += _inputs(manifest, rows)
    if retrain:
        say(f"training on {rows.training.height:,} rows")
        found.checks += _weights(manifest, experiment, rows.training, live, store)
    return found


def rows_of(manifest: Manifest, *, champion: Manifest | None, store: ArtifactStore) -> Rows:
    """Exactly the rows that a model was trained and judged on; for `champion` and `store` see `reproduce`.

    Raises:
        CannotReproduce: the event is of an older trainer, or what it names is gone.
    """
    experiment = _experiment_of(manifest)
    return _read(experiment, _live(manifest.lineage.champion_sha256, champion, store))


def _experiment_of(manifest: Manifest) -> Experiment:
    lineage = manifest.lineage
    if lineage.experiment is None or not lineage.input_sha256:
        raise CannotReproduce(
            f"model {manifest.name} version {manifest.version} was published by an older trainer, whose "
            "events do not hold the experiment; only newer models can be made again"
        )
    return lineage.experiment


def _read(experiment: Experiment, live: object) -> Rows:
    try:
        return read(experiment, losses_of(live, experiment))
    except TidemillError as error:
        raise CannotReproduce(f"the rows cannot be read again: {error}") from error


def _live(sha256: str | None, champion: Manifest | None, store: ArtifactStore) -> object:
    if sha256 is None:
        return None
    if champion is None or champion.artifact.sha256 != sha256:
        raise CannotReproduce(f"no event here tells of the model that was live then, with weights {sha256}")
    try:
        return live_model(champion, store)
    except ArtifactCorrupt as error:
        raise CannotReproduce(f"the weights of the model that was live then: {error}") from error


def _inputs(manifest: Manifest, rows: Rows) -> list[Check]:
    lineage = manifest.lineage
    checks = [_digests("input", lineage.input_sha256, table_digest(rows.training), rows.training.height)]
    if lineage.evaluation_sha256 and rows.judged is not None:
        judged = table_digest(rows.judged)
        checks.append(_digests("evaluation", lineage.evaluation_sha256, judged, rows.judged.height))
    return checks


def _digests(name: str, then: str, now: str, rows: int) -> Check:
    if then == now:
        return Check(name, same=True, detail=f"{rows:,} rows, SHA-256 {now}")
    return Check(name, same=False, detail=f"{rows:,} rows with SHA-256 {now}, the event says {then}")


def _weights(
    manifest: Manifest, experiment: Experiment, rows: pl.DataFrame, live: object, store: ArtifactStore
) -> list[Check]:
    try:
        train, code_sha256 = find_code(experiment)
    except TidemillError as error:
        return [
            Check("code", same=False, detail=str(error)),
            Check("weights", same=False, detail="not trained"),
        ]
    then = manifest.lineage.code_sha256
    said = f"{experiment.code}, SHA-256 {code_sha256}" + ("" if then == code_sha256 else f"; then {then}")
    checks = [Check("code", same=then == code_sha256, detail=said)]
    if manifest.lineage.device != "cpu":
        was = f"trained on {manifest.lineage.device}: only a training on a CPU is the same to the bit"
        return [*checks, Check("weights", same=None, detail=was)]
    model = train_on(rows, experiment, train=train, champion=live, device=torch.device("cpu"))
    content = weights_of(model)
    return [*checks, _compared(content, manifest, store)]


def _compared(content: bytes, manifest: Manifest, store: ArtifactStore) -> Check:
    """Byte for byte; where they differ, in which tensor and by how much."""
    digest = hashlib.sha256(content).hexdigest()
    if digest == manifest.artifact.sha256:
        return Check("weights", same=True, detail=f"SHA-256 {digest}")
    said = f"SHA-256 {digest}, the event says {manifest.artifact.sha256}"
    try:
        then = safetensors.torch.load(store.get(manifest.artifact.sha256))
    except ArtifactCorrupt as error:
        return Check("weights", same=False, detail=f"{said}; {error}")
    now = safetensors.torch.load(content)
    if then.keys() != now.keys() or any(then[n].shape != now[n].shape for n in then):
        return Check("weights", same=False, detail=f"{said}; names or shapes differ")
    gaps = {n: float((then[n].double() - now[n].double()).abs().max()) for n in then if then[n].numel()}
    worst = max(gaps, key=lambda name: gaps[name])
    differing = sum(gap > 0 for gap in gaps.values())
    return Check(
        "weights",
        same=False,
        detail=f"{said}; {differing} of {len(gaps)} tensors differ, {worst} the most, by {gaps[worst]:.3g}",
    )


def _texts(name: str, then: dict[str, str], now: dict[str, str]) -> Check:
    changed = [
        f"{key} {then[key]} then, {now.get(key, 'none')} now" for key in then if then[key] != now.get(key)
    ]
    return Check(
        name, same=not changed, detail="; ".join(changed) or ", ".join(f"{k} {v}" for k, v in now.items())
    )
