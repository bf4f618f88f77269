"""`tidemill up` as somebody runs it: what is killed comes back, the broker too, and a switch is followed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from pathlib import Path

import httpx

from infra.dataset import Dataset, DatasetUnreadable
from infra.kafka.connection import Connection
from infra.kafka.running import running_on
from infra.scaffold import write
from schemas import topics
from streams.ingest import dataset_schema
from streams.lab.replay import version_name
from streams.lab.switch import switch
from streams.ledger.commit import Ledger
from streams.load import load_pipeline
from tests.running_fixtures import TIDEMILL
from tests.worker_fixtures import wait_until


def rows_in(dataset: Path) -> int:
    try:
        return sum(
            said["rows"] for c in Dataset(dataset).commits() for said in c.metadata.get("counts", {}).values()
        )
    except DatasetUnreadable:
        return 0


def switched(project: Path, home: Path, server: str) -> Path:
    """Switch to an empty dataset by edited rules; gives its folder."""
    edited = project / "edited.py"
    edited.write_text((project / "pipeline.py").read_text() + "# edited\n")
    with topics.apart():
        old = load_pipeline(str(project / "pipeline.py"))
    with topics.apart():
        new = load_pipeline(str(edited))
    to = version_name(new)
    Ledger(home / "dataset" / to, dataset_schema(new.pipeline))
    connection = Connection(bootstrap_servers=server)
    asyncio.run(switch(old, new, home / "dataset", connection, to=to, reason="a test", by="ann"))
    return home / "dataset" / to


def test_a_killed_broker_comes_back_the_door_takes_events_on_and_a_switch_is_followed(
    tmp_path: Path,
) -> None:
    project = tmp_path / "kiosk"
    write(project)
    home, log_file = project / "tidemill-data", project / "up.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMILL_")}
    environment["TIDEMILL_PATHS__HOME"] = str(home)
    # All parts read the file that `up` was given: only there are the ports free ones.
    given = (project / "tidemill.toml").rename(tmp_path / "given.toml")
    given.write_text(given.read_text() + "\n[door]\nport = 0\n\n[store]\nport = 0\n")
    command = [TIDEMILL, "--config", given, "up", "--no-page", "--door"]
    with log_file.open("wb") as log:
        up = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)

    def runs() -> bool:
        assert up.poll() is None, log_file.read_text()
        return True

    def address() -> str:
        door_log = home / "logs" / "door.log"
        said = re.findall(
            r"open at (http://\S+)/v1/events/", door_log.read_text() if door_log.exists() else ""
        )
        return said[-1] if runs() and said else ""

    def taken(number: int) -> bool:
        event = {"visit_id": f"v{number}", "at": 1_704_067_200_000 + number, "shop": "north", "basket": 9.0}
        try:
            answer = httpx.post(f"{url}/v1/events/kiosk.visits", json=event, timeout=20)
        except httpx.TransportError:
            return False
        return runs() and answer.is_success

    try:
        url = wait_until(address, "the door is open", within_s=120)
        wait_until(lambda: taken(1), "an event is taken")
        broker = running_on(home / "kafka")
        assert broker is not None
        broker.kill()
        again = wait_until(lambda: running_on(home / "kafka"), "another broker", within_s=60)
        assert again is not None
        assert (again.pid, again.port) != (broker.pid, 0)
        assert again.port == broker.port
        wait_until(lambda: taken(2), "an event is taken by the broker that came back", within_s=90)
        said = "the broker was killed and is started again"
        wait_until(lambda: runs() and said in log_file.read_text(), "it says so")
        old = home / "dataset" / "kiosk"
        wait_until(lambda: runs() and rows_in(old) == 2, "both are in the dataset", within_s=90)
        live = switched(project, home, f"127.0.0.1:{again.port}")
        wait_until(lambda: taken(3), "an event is taken behind the switch")
        wait_until(
            lambda: runs() and rows_in(live) == 3,
            "the worker goes on in the dataset that is live now",
            within_s=90,
        )
        assert "the worker goes on by" in log_file.read_text()
        up.send_signal(signal.SIGINT)
        up.wait(90)
        assert running_on(home / "kafka") is None
    finally:
        if up.poll() is None:
            up.terminate()
            up.wait(60)
