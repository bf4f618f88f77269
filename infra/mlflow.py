"""Jobs and models as MLflow shows them: a mirror of the events by MLflow's REST API, never read back.

A job is a run of the experiment `tidemill/MODEL`, found again by its tag `tidemill.job_id`; a published model
is a version of the registered model of its name, the current one under the alias `live`. The mirror keeps
nothing of its own. Whoever starts one tells MLflow all that the topics hold: MLflow keeps a repeated metric,
parameter or tag once, and runs and versions that are there are not made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from schemas.contract import Announcement
from schemas.errors import Rejected, Retryable
from schemas.job import (
    JobAnswered,
    JobEvent,
    JobFailed,
    JobMerged,
    JobProgress,
    JobRequested,
    JobSkipped,
    JobStarted,
    JobSucceeded,
)
from schemas.model import CanaryPromoted, CurrentModel, Manifest, ModelRefused, RolledBack, Scores

ALIAS = "live"
_JOB, _VERSION = "tidemill.job_id", "tidemill.version"
_METRICS, _PARAMS, _TAGS = 1_000, 100, 100
"""Most of each in one request, by MLflow's own rule."""
_LONGEST_PARAM, _LONGEST_TAG = 6_000, 5_000
_PAGE = 1_000
_REQUEST_S = 30.0


class MlflowAway(Retryable):
    """The server does not answer, or fails."""


class MlflowRefuses(Rejected):
    """The server does not take what it was told."""


@dataclass
class _Said:
    """Of one run, what is to be logged together."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: tuple[str, int] | None = None


class Mlflow:
    """One server; `take` tells it of events, in the order in which they came."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=f"{self.url}/api/2.0/mlflow/",
            headers={} if token is None else {"authorization": f"Bearer {token}"},
            timeout=_REQUEST_S,
        )
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, dict[str, str]] = {}
        """By model: runs by job."""
        self._models: dict[str, str] = {}
        """Of each job the name of its model."""
        self._versions: dict[str, dict[str, str]] = {}
        """By model: MLflow's number of each of Tidemill's versions."""
        self._live: dict[str, int] = {}

    async def __aenter__(self) -> Mlflow:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def take(self, events: Iterable[tuple[Announcement, int]]) -> None:
        """Tell it of these events, each with its time in epoch ms.

        Raises:
            MlflowAway: tell it again, all of them; nothing is there twice.
            MlflowRefuses: it never will take them.
        """
        said: dict[str, _Said] = {}
        models: list[CurrentModel] = []
        for event, time_ms in events:
            match event:
                case JobEvent():
                    await self._take_job(event, time_ms, said)
                case ModelRefused(name=name, job_id=job_id):
                    run = await self._run(job_id, name, time_ms)
                    about = said.setdefault(run, _Said())
                    about.tags |= {"tidemill.gate": f"refused: {event.reason}"}
                    about.metrics += _scores(event.champion, event.challenger, time_ms)
                case CurrentModel(name=name, manifest=manifest):
                    run = await self._run(manifest.lineage.job_id, name, time_ms)
                    about = said.setdefault(run, _Said())
                    about.tags |= {"tidemill.gate": "published", _VERSION: str(manifest.version)}
                    about.metrics += _scores(manifest.champion, manifest.challenger, time_ms)
                    models.append(event)
                case _:
                    pass
        for run, about in said.items():
            await self._log(run, about)
        for event in models:
            await self._publish(event)

    async def _take_job(self, event: JobEvent, time_ms: int, said: dict[str, _Said]) -> None:
        if isinstance(event, JobRequested):
            self._models[event.job_id] = event.experiment.model
        model = self._models.get(event.job_id)
        if model is None:
            return  # asked for before the topic begins
        run = await self._run(event.job_id, model, time_ms)
        about = said.setdefault(run, _Said())
        match event:
            case JobRequested(experiment=experiment):
                about.params |= {name: _plain(value) for name, value in experiment.params.items()}
                about.params |= {"seed": str(experiment.seed), "code": experiment.code}
                about.tags |= {
                    "tidemill.pipeline": experiment.pipeline,
                    "tidemill.purpose": experiment.purpose,
                    "tidemill.dataset": f"{experiment.training.uri}@{experiment.training.version}",
                    "tidemill.decision": event.decision_id or "",
                    "mlflow.note.content": event.why,
                }
            case JobStarted():
                about.tags |= {"tidemill.device": event.device, "tidemill.run_key": event.run_key}
                about.tags |= {"tidemill.attempt": str(event.attempt)}
            case JobProgress():
                about.metrics += [
                    {"key": name, "value": value, "timestamp": time_ms, "step": event.step}
                    for name, value in event.metrics.items()
                ]
            case JobSucceeded():
                found = {"rows": event.rows, "train_s": event.train_s, **event.scores}
                about.metrics += [_metric(name, value, event.finished_ms) for name, value in found.items()]
                about.tags |= {"tidemill.artifact_sha256": event.artifact_sha256}
                about.status = ("FINISHED", event.finished_ms)
            case JobFailed(reason=reason, finished_ms=end_ms):
                about.tags |= {"tidemill.end": f"failed: {reason}"}
                about.status = ("FAILED", end_ms)
            case JobSkipped(reason=reason, finished_ms=end_ms):
                about.tags |= {"tidemill.end": f"skipped: {reason}"}
                about.status = ("KILLED", end_ms)
            case JobAnswered(earlier_job_id=other, answered_ms=end_ms):
                about.tags |= {"tidemill.end": f"answered by {other}"}
                about.status = ("KILLED", end_ms)
            case JobMerged(into_job_id=other, merged_ms=end_ms):
                about.tags |= {"tidemill.end": f"merged into {other}"}
                about.status = ("KILLED", end_ms)
            case _:
                pass

    async def _log(self, run: str, about: _Said) -> None:
        params = [{"key": k, "value": v[:_LONGEST_PARAM]} for k, v in about.params.items()]
        tags = [{"key": k, "value": v[:_LONGEST_TAG]} for k, v in about.tags.items() if v]
        parts = max(len(about.metrics) / _METRICS, len(params) / _PARAMS, len(tags) / _TAGS)
        for part in range(int(-(-parts // 1))):
            body = {
                "run_id": run,
                "metrics": about.metrics[part * _METRICS : (part + 1) * _METRICS],
                "params": params[part * _PARAMS : (part + 1) * _PARAMS],
                "tags": tags[part * _TAGS : (part + 1) * _TAGS],
            }
            await self._post("runs/log-batch", body)
        if about.status is not None:
            status, end_ms = about.status
            await self._post("runs/update", {"run_id": run, "status": status, "end_time": end_ms})

    async def _run(self, job_id: str, model: str, time_ms: int) -> str:
        """The run of a job, made if it is not there."""
        self._models.setdefault(job_id, model)
        experiment = await self._experiment(model)
        runs = self._runs[model]
        if job_id not in runs:
            body = {
                "experiment_id": experiment,
                "run_name": job_id,
                "start_time": time_ms,
                "tags": [{"key": _JOB, "value": job_id}, {"key": "mlflow.source.name", "value": "tidemill"}],
            }
            runs[job_id] = (await self._post("runs/create", body))["run"]["info"]["run_id"]
        return runs[job_id]

    async def _experiment(self, model: str) -> str:
        if model in self._experiments:
            return self._experiments[model]
        name = f"tidemill/{model}"
        found = await self._get("experiments/get-by-name", {"experiment_name": name})
        if found is None:
            made = await self._post("experiments/create", {"name": name})
            identity = made["experiment_id"]
        else:
            identity = found["experiment"]["experiment_id"]
        runs: dict[str, str] = {}
        page: dict[str, Any] = {"experiment_ids": [identity], "max_results": _PAGE}
        while True:
            answer = await self._post("runs/search", page)
            for run in answer.get("runs", ()):
                tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())}
                if job_id := tags.get(_JOB):
                    runs[job_id] = run["info"]["run_id"]
            if not (token := answer.get("next_page_token")):
                break
            page["page_token"] = token
        self._runs[model], self._experiments[model] = runs, identity
        return identity

    async def _publish(self, event: CurrentModel) -> None:
        """A version of the registered model; whatever is newest is live, after a rollback too."""
        manifest = event.manifest
        versions = await self._registered(event.name)
        key = str(manifest.version)
        if key not in versions:
            run = await self._run(manifest.lineage.job_id, event.name, manifest.published_ms)
            tags = {
                _VERSION: key,
                "tidemill.artifact_uri": manifest.artifact.uri,
                "tidemill.artifact_sha256": manifest.artifact.sha256,
                "tidemill.why": _why(event),
            }
            body = {
                "name": event.name,
                "source": await self._source(manifest.artifact.uri, run),
                "run_id": run,
                "description": f"Tidemill's version {key}: {_why(event)}",
                "tags": [{"key": k, "value": v[:_LONGEST_TAG]} for k, v in tags.items()],
            }
            made = await self._post("model-versions/create", body)
            versions[key] = str(made["model_version"]["version"])
        if manifest.version > self._live.get(event.name, 0):
            body = {"name": event.name, "alias": ALIAS, "version": versions[key]}
            await self._post("registered-models/alias", body)
            self._live[event.name] = manifest.version

    async def _source(self, uri: str, run: str) -> str:
        """Where MLflow is to look: it takes no other server's address. The tags say where the model lies."""
        if uri.startswith("s3://"):
            return uri
        found = await self._get("runs/get", {"run_id": run})
        if found is None:
            raise MlflowAway(f"MLflow at {self.url} no longer knows run {run}")
        return str(found["run"]["info"]["artifact_uri"])

    async def _registered(self, name: str) -> dict[str, str]:
        if name in self._versions:
            return self._versions[name]
        if await self._get("registered-models/get", {"name": name}) is None:
            await self._post("registered-models/create", {"name": name})
        versions: dict[str, str] = {}
        quoted = name.replace("'", "''")
        page: dict[str, Any] = {"filter": f"name = '{quoted}'", "max_results": _PAGE}
        while True:
            answer = await self._get("model-versions/search", page) or {}
            for each in answer.get("model_versions", ()):
                tags = {tag["key"]: tag["value"] for tag in each.get("tags", ())}
                if version := tags.get(_VERSION):
                    versions[version] = str(each["version"])
            if not (token := answer.get("next_page_token")):
                break
            page["page_token"] = token
        self._versions[name] = versions
        return versions

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = await self._ask("POST", path, json=body)
        if answer.is_error:
            raise MlflowRefuses(
                f"MLflow at {self.url} refuses {path}: {answer.status_code} {answer.text[:500]}"
            )
        return answer.json()

    async def _get(self, path: str, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer; None where there is no such thing."""
        answer = await self._ask("GET", path, params=params)
        if answer.status_code == 404:
            return None
        if answer.is_error:
            raise MlflowRefuses(
                f"MLflow at {self.url} refuses {path}: {answer.status_code} {answer.text[:500]}"
            )
        return answer.json()

    async def _ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **what)
        except httpx.HTTPError as error:
            raise MlflowAway(f"MLflow at {self.url} does not answer: {error!r}") from error
        if answer.status_code >= 500 or answer.status_code == 429:
            raise MlflowAway(f"MLflow at {self.url} fails: {answer.status_code} {answer.text[:500]}")
        return answer


def _why(event: CurrentModel) -> str:
    match event:
        case RolledBack(reason=reason):
            return f"rolled back to: {reason}"
        case CanaryPromoted(canary_version=canary, reason=reason):
            return f"promoted, having been canary version {canary}: {reason}"
        case _:
            return _published_because(event.manifest)


def _published_because(manifest: Manifest) -> str:
    decision = manifest.lineage.decision_id
    return f"published by {manifest.lineage.job_id}" + (f", decision {decision}" if decision else "")


def _scores(champion: Scores | None, challenger: Scores | None, time_ms: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for whose, scores in (("champion", champion), ("challenger", challenger)):
        for name in ("auc", "log_loss", "accuracy"):
            value = None if scores is None else getattr(scores, name)
            if value is not None:
                found.append(_metric(f"{whose}.{name}", value, time_ms))
    return found


def _metric(name: str, value: float, time_ms: int) -> dict[str, Any]:
    return {"key": name, "value": value, "timestamp": time_ms, "step": 0}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(msgspec.to_builtins(value))
