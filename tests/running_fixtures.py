"""The whole road as somebody runs it: `tidemill init`, worker and trainer by their commands, real events."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from infra.kafka import EmbeddedBroker
from infra.scaffold import write
from tests.worker_fixtures import wait_until

TIDEMILL = Path(sys.executable).with_name("tidemill")
WARM = """
import json, os, sys
import aiokafka, infra.submit
from infra.command import main
for line in sys.stdin:
    asked = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for number, file in enumerate((os.devnull, *asked["files"])):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.argv[:] = ["tidemill", *asked["arguments"]]
    sys.path[0] = os.path.dirname(sys.executable)
    sys.exit(main())
"""
"""Commands are forked from this process, which has one thread: a start costs more than most of them."""
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def sums(samples: Samples, name: str, **labels: str) -> float:
    """The sum over a name's series that have these labels."""
    wanted = set(labels.items())
    return sum(value for (each, own), value in samples.items() if each == name and wanted <= set(own))


@dataclass
class Part:
    """One process of the road, and what it says of itself."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def log(self) -> list[dict[str, Any]]:
        """Its log's JSON lines."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def address(self) -> str:
        """Where its metrics are served."""
        assert self.process.poll() is None, self.log_file.read_text()[-4000:]
        said = re.search(r'"address": "(http://[^"]+)"', self.log_file.read_text())
        return said.group(1) if said else ""

    def ask(self, path: str) -> httpx.Response:
        """Status and body of one of its pages."""
        address = wait_until(self.address, f"the {self.name} serves its metrics")
        return httpx.get(f"{address}{path}", timeout=15)

    def families(self) -> dict[str, Any]:
        """Its metrics, read by Prometheus's own parser."""
        answer = self.ask("metrics")
        assert answer.status_code == 200, answer.text
        return {family.name: family for family in text_string_to_metric_families(answer.text)}

    def samples(self) -> Samples:
        """Values by name and labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families().values()
            for sample in family.samples
        }

    def is_ready(self) -> bool:
        """Whether it says so."""
        return self.ask("ready").status_code == 200

    def end(self) -> int:
        """SIGTERM; gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@dataclass
class Road:
    """A project that `tidemill init` wrote, on a broker of its own."""

    project: Path
    broker: EmbeddedBroker
    settings: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)
    """Command lines of the pages that have run."""
    warm: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        """The pipeline's, and its model's."""
        return self.project.name

    @property
    def home(self) -> Path:
        """Where the road keeps everything."""
        return self.project / "tidemill-data"

    def environment(self) -> dict[str, str]:
        """What its commands are called with."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("TIDEMILL_")},
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": self.broker.bootstrap_servers,
            "TIDEMILL_PATHS__HOME": str(self.home),
            "POLARS_MAX_THREADS": "2",
            "COLUMNS": "200",
            **self.settings,
        }

    def traces(self, name: str) -> Path:
        """Where a part's spans go, a JSON object a line."""
        return self.project / f"{name}-traces.jsonl"

    def start(self, name: str, *options: str) -> Part:
        """One part, by its command."""
        log_file = self.project / f"{name}.log"
        log_file.unlink(missing_ok=True)
        with log_file.open("wb") as log:
            traced = {
                "TIDEMILL_TRACES__EXPORTER": "file",
                "TIDEMILL_TRACES__FILE": str(self.traces(name)),
                "TIDEMILL_TRACES__INTERVAL_MS": "200",
            }
            process = subprocess.Popen(
                [TIDEMILL, name, *options],
                cwd=self.project,
                env={**self.environment(), **traced},
                stdout=log,
                stderr=log,
            )
        self.parts[name] = Part(name, process, log_file)
        return self.parts[name]

    def tidemill(self, *arguments: str) -> str:
        """What a command prints; it must succeed."""
        files = [self.project / "command.out", self.project / "command.err"]
        asked = {
            "arguments": arguments,
            "folder": str(self.project),
            "environment": self.environment(),
            "files": list(map(str, files)),
        }
        if self.warm is None:
            self.warm = subprocess.Popen(
                [sys.executable, "-c", WARM],
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self.warm.stdin is not None
        assert self.warm.stdout is not None
        print(json.dumps(asked), file=self.warm.stdin, flush=True)
        returned = self.warm.stdout.readline().strip()
        out, err = (file.read_text() for file in files)
        assert returned == "0", f"tidemill {shlex.join(arguments)}: {returned}: {out}{err}"
        return out

    def until(self, arguments: list[str], is_done: Callable[[psutil.Process], Any]) -> None:
        """A command that ends by Ctrl-C alone, and is ended so once that is done."""
        with (self.project / "command.out").open("wb") as out:
            process = subprocess.Popen(
                [TIDEMILL, *arguments], cwd=self.project, env=self.environment(), stdout=out, stderr=out
            )
        try:
            wait_until(
                lambda: process.poll() is not None or is_done(psutil.Process(process.pid)),
                f"{shlex.join(arguments)} has done it",
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130, (self.project / "command.out").read_text()
        finally:
            process.kill()
            process.wait()

    def push(self) -> None:
        """The project's own events."""
        subprocess.run(
            [sys.executable, f"{self.name}_events.py"], cwd=self.project, check=True, capture_output=True
        )
        for stream in ("visits", "outcomes"):
            topic = f"{self.name}.{stream}"
            self.tidemill("push", topic, f"{topic}.ndjson", "--pipeline", "pipeline.py")


@contextmanager
def road(folder: Path, name: str, **settings: str) -> Iterator[Road]:
    """A broker and a new project; whatever was started ends with the block."""
    project = folder / name
    write(project)
    broker = EmbeddedBroker(folder / "kafka")
    served = {
        "TIDEMILL_LOG__FORM": "json",
        "TIDEMILL_WORKER__METRICS_PORT": "0",
        "TIDEMILL_TRAINER__METRICS_PORT": "0",
        "TIDEMILL_DOOR__METRICS_PORT": "0",
        "TIDEMILL_DOOR__PORT": "0",
        "TIDEMILL_PAGE__METRICS_PORT": "0",
        "TIDEMILL_METRICS__CONTACT_MS": "8000",
        # The session's time is how long a rebalance may take.
        "TIDEMILL_WORKER__SESSION_TIMEOUT_MS": "6000",
    }
    broker.start()
    opened = Road(project, broker, {**served, **settings})
    try:
        yield opened
    finally:
        for part in opened.parts.values():
            if part.process.poll() is None:
                part.process.kill()
                part.process.wait()
        if opened.warm is not None:
            opened.warm.communicate()
        broker.stop()
