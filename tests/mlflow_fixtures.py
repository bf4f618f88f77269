"""A stand-in for MLflow that knows the names of its contract and no others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from infra.kafka.ports import free_port

CONTRACT = json.loads(Path(__file__).with_name("mlflow_contract.json").read_text())["endpoints"]
"""Of MLflow 3.17: for each endpoint the names of all fields, those of nested messages behind a dot."""


def fields_of(value: Any, at: str = "") -> set[str]:
    """The names of a message's fields, as the contract has them."""
    if isinstance(value, dict):
        return {name for k, v in value.items() for name in {f"{at}{k}", *fields_of(v, f"{at}{k}.")}}
    return {name for each in value for name in fields_of(each, at)} if isinstance(value, list) else set()


@dataclass
class Recorder:
    """Answers as MLflow does, by names of the contract alone, and holds each request to it."""

    asked: Counter[str] = field(default_factory=Counter)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)
    refuses: dict[str, int] = field(default_factory=dict)

    async def serve(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/api/2.0")
        name = f"{request.method} {path}"
        body = await request.json() if request.method == "POST" else dict(request.query)
        self.asked[path.removeprefix("/mlflow/")] += 1
        if (status := self.refuses.get(path.removeprefix("/mlflow/"))) is not None:
            return web.json_response({"error_code": "REFUSED"}, status=status)
        if name not in CONTRACT:
            self.wrong.append(f"no endpoint {name}")
            return web.json_response({}, status=404)
        self.wrong += [f"{name}: {f}" for f in fields_of(body) - set(CONTRACT[name]["request"])]
        answer = self.answer(path.removeprefix("/mlflow/"), body)
        if answer is None:
            return web.json_response({"error_code": "RESOURCE_DOES_NOT_EXIST"}, status=404)
        self.wrong += [f"{name} (answer): {f}" for f in fields_of(answer) - set(CONTRACT[name]["response"])]
        return web.json_response(answer)

    def answer(self, what: str, body: dict[str, Any]) -> dict[str, Any] | None:  # noqa: PLR0911
        match what:
            case "experiments/get-by-name":
                found = self.experiments.get(body["experiment_name"])
                return {"experiment": {"experiment_id": found}} if found else None
            case "experiments/create":
                self.experiments[body["name"]] = str(len(self.experiments))
                return {"experiment_id": self.experiments[body["name"]]}
            case "runs/create":
                run = {"info": {"run_id": f"r{len(self.runs)}"}, "data": {"tags": body["tags"]}}
                self.runs[run["info"]["run_id"]] = run | {"in": body["experiment_id"]}
                return {"run": run}
            case "runs/search":
                (mine,) = body["experiment_ids"]
                found = [run for run in self.runs.values() if run["in"] == mine]
                return {"runs": [{"info": run["info"], "data": run["data"]} for run in found]}
            case "runs/get":
                return {"run": {"info": {"artifact_uri": f"mlflow-artifacts:/{body['run_id']}"}}}
            case "runs/log-batch":
                self.metrics += body["metrics"]
            case "runs/update":
                self.status[body["run_id"]] = body["status"]
            case "registered-models/get":
                return {"registered_model": {"name": body["name"]}} if body["name"] in self.models else None
            case "registered-models/create":
                self.models.add(body["name"])
            case "registered-models/alias":
                self.aliases[body["alias"]] = body["version"]
            case "model-versions/create":
                version = {"version": str(len(self.versions) + 1), "tags": body["tags"]}
                self.versions.append(version)
                return {"model_version": version}
            case "model-versions/search":
                return {"model_versions": self.versions}
        return {}


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[Recorder, str]]:
    """Served on loopback; gives what was asked, and the address."""
    recorder = Recorder()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", recorder.serve)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port := free_port()).start()
    yield recorder, f"http://127.0.0.1:{port}"
    await runner.cleanup()
