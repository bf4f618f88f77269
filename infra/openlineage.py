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
from schemas.model import Manifest, ModelPublished

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

    async def __aenter__(self) -> Collector:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def take(self, events: Iterable[tuple[Announcement, int]]) -> None:
        """Tell it of these events; all but published models are passed over.

        Raises:
            CollectorAway: tell it again.
            CollectorRefuses: it never will take one of them.
        """
        for event, _ in events:
            if not isinstance(event, ModelPublished):
                continue
            try:
                answer = await self._http.post(self._url, json=run_event(event.manifest))
            except httpx.HTTPError as error:
                raise CollectorAway(f"no collector answers at {self._url}: {error!r}") from error
            if answer.status_code >= 500 or answer.status_code == 429:
                raise CollectorAway(f"the collector at {self._url} fails: {answer.status_code}")
            if not answer.is_success:
                raise CollectorRefuses(
                    f"the collector at {self._url} refuses {event.event_id()}: {answer.status_code} "
                    f"{answer.text[:500]}; --url takes the whole address, as http://host:5000/api/v1/lineage"
                )


def run_event(manifest: Manifest) -> dict[str, Any]:
    """The COMPLETE event of the run that made the model: the dataset and the topics in, the artifact out.

    The same model gives the same event, its run id made from the job's.
    """
    lineage = manifest.lineage
    topics = sorted({read.topic for read in lineage.offsets})
    offsets = _plain(lineage.offsets)
    return {
        "eventType": "COMPLETE",
        "eventTime": datetime.fromtimestamp(manifest.published_ms / 1000, UTC).isoformat(),
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


def _facet(schema_url: str, **content: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": schema_url, **content}


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))
