"""A training as a Kubernetes Job: rendered for whoever applies it, sent nowhere.

It runs what a job on a Ray cluster runs (`trainers.apart`), once, and is ended at its time limit. Its pod is
as `infra/deploy/kubernetes` has the trainer's: the same image, user, and volume for `paths.home`. What it
says lies in the job's folder on that volume; no trainer follows it.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

import msgspec

from schemas.errors import InvalidConfiguration
from schemas.job import JobRequested, Resources
from schemas.model import Manifest
from trainers.assignment import Assignment

NAMESPACE = "tidemill"
IMAGE = "tidemill"
HOME = "/var/lib/tidemill"
PYTHON = "/opt/tidemill/.venv/bin/python"
_ORDER = "/etc/tidemill/job"
_LARGEST_BYTES = 2**20
"""Of a ConfigMap's content."""
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")


def manifests(job: JobRequested, *, champion: Manifest | None) -> list[dict[str, Any]]:
    """A ConfigMap with the job's assignment, and the Job that mounts it.

    Args:
        champion: the live model of its name, which its challenger is scored beside.

    Raises:
        InvalidConfiguration: the assignment is too large for a ConfigMap.
    """
    asked, name = job.experiment.resources, _name(job.job_id)
    on_gpu = asked.gpus > 0 or asked.device == "cuda"
    order = msgspec.json.encode(
        Assignment(
            job=job,
            attempt=1,
            artifacts=f"{HOME}/artifacts",
            champion=champion,
            device="cuda:0" if on_gpu else "cpu",
            device_name="Kubernetes, GPU" if on_gpu else "Kubernetes, cpu",
            threads=max(1, asked.cpus // asked.ranks),
            run_key=job.experiment.run_key(
                parent_sha256=None if champion is None else champion.artifact.sha256
            ),
            checkpoint=f"{HOME}/jobs/{name}/checkpoint.safetensors",
        )
    ).decode()
    if len(order) > _LARGEST_BYTES:
        raise InvalidConfiguration(
            f"the assignment of {job.job_id} takes {len(order):,} bytes, a ConfigMap {_LARGEST_BYTES:,}: "
            "the live model's config is too large; shorten its vocabularies"
        )
    about = {"name": name, "namespace": NAMESPACE, "labels": {"app": "tidemill", "part": "job"}}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": about,
            "immutable": True,
            "data": {"assignment.json": order},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": about,
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": math.ceil(asked.time_limit_s),
                "template": {
                    "metadata": {"labels": about["labels"]},
                    "spec": _pod(name, asked, on_gpu=on_gpu),
                },
            },
        },
    ]


def _pod(name: str, asked: Resources, *, on_gpu: bool) -> dict[str, Any]:
    limits: dict[str, Any] = {"cpu": str(asked.cpus), "memory": str(asked.memory_bytes + _TORCH_BYTES)}
    if on_gpu:
        limits["nvidia.com/gpu"] = str(max(1, asked.gpus))
    reports = f"{HOME}/jobs/{name}/kubernetes.reports"
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "job",
                "image": IMAGE,
                "command": [PYTHON, "-m", "trainers.apart", f"{_ORDER}/assignment.json", reports],
                "resources": {"requests": dict(limits), "limits": limits},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "home", "mountPath": HOME},
                    {"name": "order", "mountPath": _ORDER, "readOnly": True},
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
            }
        ],
        "volumes": [
            {"name": "home", "persistentVolumeClaim": {"claimName": "home"}},
            {"name": "order", "configMap": {"name": name}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


_TORCH_BYTES = 2**30
"""What a process holds that has imported torch: a job's own `memory_bytes` come on top of it."""


def _name(job_id: str) -> str:
    """What the Kubernetes API takes for a name: the job's id, or a hash of it."""
    if _DNS_LABEL.fullmatch(job_id):
        return f"job-{job_id}"
    return f"job-{hashlib.sha256(job_id.encode()).hexdigest()[:40]}"
