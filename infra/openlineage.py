"""A model's lineage as an OpenLineage run event (spec 2-0-2): plain JSON for any collector of those."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from schemas.model import Manifest

PRODUCER = "urn:tidemill:trainer"
_SPEC = "https://openlineage.io/spec"
_JOBS = uuid.uuid5(uuid.NAMESPACE_URL, PRODUCER)


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
