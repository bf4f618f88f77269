"""A model's lineage as an OpenLineage run event (spec 2-0-2): plain JSON, for whoever collects those."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from schemas.contract import Announcement
from schemas.errors import Rejected, Retryable
from schemas.job import JobFailed, JobSkipped, JobStarted
from schemas.model import CanaryPublished, Manifest, ModelPublished, ModelRefused, SignedModel

PRODUCER = "urn:tidemill:trainer"
_SPEC = "https://openlineage.io/spec"
_JOBS = uuid.uuid5(uuid.NAMESPACE_URL, PRODUCER)
_REQUEST_S = 30.0


class CollectorAway(Retryable):
    """The collector does not answer, or fails."""


class CollectorRefuses(Rejected):
    """The collector does not take an event."""


class Collector:
    """Whoever takes OpenLineage events over HTTP; `take` tells it of each model that was published.

    A run's id is made of its job's, so a collector that is told again knows the run already.
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        """`url` is the whole address, its path too: OpenLineage leaves that to the collector."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._url, self._http = url, httpx.AsyncClient(headers=headers, timeout=_REQUEST_S)
        self._started_ms: dict[str, int] = {}

    async def __aenter__(self) -> Collector:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def take(self, events: Iterable[tuple[Announcement, int]]) -> None:
        """Tell it of the runs of published models, their start and their end; the others are passed over.

        Raises:
            CollectorAway: tell it again.
            CollectorRefuses: it never will take one of them.
        """
        for event, _ in events:
            match event:
                case JobStarted(job_id=job_id, started_ms=started_ms):
                    self._started_ms[job_id] = started_ms
                case JobFailed(job_id=job_id) | JobSkipped(job_id=job_id) | ModelRefused(job_id=job_id):
                    self._started_ms.pop(job_id, None)
                case ModelPublished(manifest=manifest) | CanaryPublished(manifest=manifest):
                    job_id = manifest.lineage.job_id
                    if (started_ms := self._started_ms.get(job_id)) is not None:
                        await self._post(start_event(manifest, started_ms), event)
                    await self._post(run_event(manifest), event)
                    self._started_ms.pop(job_id, None)
                case _:
                    pass

    async def _post(self, content: dict[str, Any], event: SignedModel) -> None:
        try:
            answer = await self._http.post(self._url, json=content)
        except httpx.HTTPError as error:
            raise CollectorAway(f"no collector answers at {self._url}: {error!r}") from error
        if answer.status_code >= 500 or answer.status_code == 429:
            raise CollectorAway(f"the collector at {self._url} fails: {answer.status_code}")
        if not answer.is_success:
            raise CollectorRefuses(
                f"the collector at {self._url} refuses {event.event_id()}: {answer.status_code} "
                f"{answer.text[:500]}; --url takes the whole address, as http://host:5000/api/v1/lineage"
            )


def start_event(manifest: Manifest, started_ms: int) -> dict[str, Any]:
    """The START event of the same run: what it reads is known, what it makes is not there yet."""
    began = {"eventType": "START", "eventTime": _time(started_ms), "outputs": []}
    return {**run_event(manifest), **began}


def run_event(manifest: Manifest) -> dict[str, Any]:
    """The COMPLETE event of the run that made the model: the dataset and the topics in, the artifact out.

    The same model gives the same event, its run id made from the job's.
    """
    lineage = manifest.lineage
    topics = sorted({read.topic for read in lineage.offsets})
    offsets = _plain(lineage.offsets)
    return {
        "eventType": "COMPLETE",
        "eventTime": _time(manifest.published_ms),
        "producer": PRODUCER,
        "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {
            "runId": str(uuid.uuid5(_JOBS, lineage.job_id)),
            "facets": {
                "processing_engine": _facet(
                    f"{_SPEC}/facets/1-1-1/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet",
                    name="torch",
                    version=lineage.libraries.get("torch", "unknown"),
                ),
                "tidemill": _facet(
                    "urn:tidemill:lineage:1",
                    **_plain(msgspec.structs.replace(lineage, offsets=[])),
                ),
            },
        },
        "job": {
            "namespace": f"tidemill/{lineage.pipeline}",
            "name": manifest.name,
            "facets": {
                "sourceCode": _facet(
                    f"{_SPEC}/facets/1-0-1/SourceCodeJobFacet.json#/$defs/SourceCodeJobFacet",
                    language="python",
                    sourceCode=f"{lineage.code} (SHA-256 {lineage.code_sha256})",
                )
            },
        },
        "inputs": [
            {
                "namespace": "file",
                "name": lineage.dataset_uri,
                "facets": {
                    "version": _facet(
                        f"{_SPEC}/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
                        datasetVersion=str(lineage.dataset_version),
                    )
                },
            },
            *(
                {
                    "namespace": "kafka",
                    "name": topic,
                    "facets": {
                        "tidemill_offsets": _facet(
                            "urn:tidemill:offsets:1", ranges=[r for r in offsets if r["topic"] == topic]
                        )
                    },
                }
                for topic in topics
            ),
        ],
        "outputs": [
            {
                "namespace": "tidemill/models",
                "name": manifest.name,
                "facets": {
                    "version": _facet(
                        f"{_SPEC}/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
                        datasetVersion=f"{manifest.version} {manifest.artifact.sha256}",
                    )
                },
            }
        ],
    }


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()


def _facet(schema_url: str, **content: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": schema_url, **content}


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))
