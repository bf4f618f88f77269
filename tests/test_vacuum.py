"""What nobody can still ask for goes; what any event may still point at stays."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from infra.command.main import app
from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.settings import Settings
from infra.settings_model import Paths, Store
from schemas import topics
from schemas.contract import Announcement
from schemas.job import JobFailed, JobSucceeded
from schemas.model import CurrentModel, ModelAdopted, ModelPublished
from tests.client_fixtures import published, rolled_back, weights
from tests.s3_fixtures import s3_server
from tests.trainer_fixtures import Topics, a_job
from trainers import trained
from trainers.artifact import Kept
from trainers.keys import KeyFolder
from trainers.needed import Needed
from trainers.stores import Stores
from trainers.vacuum import NotThisStore, Retention, unneeded, vacuum

HOUR_MS = 3_600_000
NOW_MS = 1_764_000_000_000
HISTORY, CURRENT, JOBS = topics.MODELS.name, topics.MODELS_CURRENT.name, topics.JOBS.name


def version(number: int, *, hours_ago: float, name: str = "m", **lineage: Any) -> ModelPublished:
    event = published(name, number, weights(number), store="http://x/")
    manifest = event.manifest
    manifest = msgspec.structs.replace(
        manifest,
        published_ms=int(NOW_MS - hours_ago * HOUR_MS),
        lineage=msgspec.structs.replace(manifest.lineage, **lineage),
    )
    return msgspec.structs.replace(event, manifest=manifest)


def sha(event: CurrentModel) -> str:
    return event.manifest.artifact.sha256


def reasons(
    *said: tuple[str, Announcement], keep_hours: int = 24, keep_versions: int = 2, trusted: bool = True
) -> dict[str, str]:
    known = Needed()
    for topic, event in said:
        known.note(topic, event, trusted=trusted)
    return known.reasons(now_ms=NOW_MS, keep_ms=keep_hours * HOUR_MS, keep_versions=keep_versions)


def test_the_newest_versions_stay_and_of_the_older_those_that_were_live_a_short_while_ago() -> None:
    events = [version(n, hours_ago=100 - 10 * n) for n in range(1, 10)]  # 1: 90 hours ago, 9: 10 hours ago
    needed = reasons(*((HISTORY, e) for e in events))
    # 8 and 9 by their place; 7 gave way 20 hours ago; 6 gave way 30 hours ago, which is longer than 24.
    assert set(needed) == {sha(e) for e in events[6:]}
    assert needed[sha(events[8])] == "m 9 is the newest"
    assert "live within" in needed[sha(events[6])]
    assert set(reasons(*((HISTORY, e) for e in events), keep_hours=35)) == {sha(e) for e in events[5:]}


def test_what_the_current_topic_names_stays_whoever_signed_it_and_however_old_it_is() -> None:
    old = version(1, hours_ago=10_000)
    forged = [version(n, hours_ago=9_000, name="m") for n in range(2, 30)]
    assert sha(old) in reasons((CURRENT, old), trusted=False)
    # Forged versions take no place among the newest: the live one stays.
    known = Needed()
    known.note(HISTORY, old)
    for event in forged:
        known.note(HISTORY, event, trusted=False)
    assert set(known.reasons(now_ms=NOW_MS, keep_ms=HOUR_MS, keep_versions=1)) == {sha(old)}


def test_a_rollback_keeps_the_old_weights_and_what_was_live_before_it() -> None:
    first, second = version(1, hours_ago=500), version(2, hours_ago=400)
    back = rolled_back(first, from_version=2, version=3)
    back = msgspec.structs.replace(
        back, manifest=msgspec.structs.replace(back.manifest, published_ms=NOW_MS - HOUR_MS)
    )
    assert sha(back) == sha(first)
    needed = reasons((HISTORY, first), (HISTORY, second), (HISTORY, back), keep_versions=1)
    assert needed.keys() == {sha(first), sha(second)}  # the second was live until an hour ago


def test_what_a_kept_version_began_from_and_what_a_service_answers_with_stays() -> None:
    parent, child = "a" * 64, version(9, hours_ago=100, parent_sha256="a" * 64, champion_sha256="b" * 64)
    pinned = version(1, hours_ago=5_000)
    adopted = ModelAdopted(
        name="m", service="s", version=1, sha256=sha(pinned), previous_version=None, adopted_ms=1, load_ms=1.0
    )
    needed = reasons((HISTORY, pinned), (HISTORY, child), (HISTORY, adopted), keep_versions=1)
    assert needed.keys() == {parent, "b" * 64, sha(child), sha(pinned)}
    assert needed[sha(pinned)] == "s answers with m 1"


def test_what_an_open_job_came_to_stays_and_of_one_that_is_over_it_does_not(tmp_path: Path) -> None:
    job = a_job(tmp_path, "good:train", "m", job_id="open")
    succeeded = JobSucceeded(
        job_id="open", attempt=1, rows=1, train_s=1.0, finished_ms=1, artifact_sha256="c" * 64, scores={}
    )
    failed = JobFailed(job_id="open", attempt=1, reason="", log_tail="", finished_ms=1)
    assert reasons((JOBS, job), (JOBS, succeeded)).keys() == {"c" * 64}
    assert reasons((JOBS, job), (JOBS, succeeded), (JOBS, failed)) == {}


def test_whatever_a_record_names_that_cannot_be_read_stays() -> None:
    known = Needed()
    known.note_unread(b'{"sha256":"' + b"d" * 64 + b'","other":"' + b"e" * 65 + b'"}')
    assert known.reasons(now_ms=NOW_MS, keep_ms=1, keep_versions=1).keys() == {"d" * 64}


def test_what_was_put_there_a_short_while_ago_stays_without_a_reason() -> None:
    young, old, named = (Kept(c * 64, 1, NOW_MS - h * HOUR_MS) for c, h in (("1", 1), ("2", 30), ("3", 30)))
    gone, stayed = unneeded([young, old, named], {named.sha256: "why"}, now_ms=NOW_MS, keep_ms=24 * HOUR_MS)
    assert gone == [old]
    assert stayed == {young.sha256: "it was put there within the retention", named.sha256: "why"}


# Below, on a real cluster and a real store.


@pytest.fixture
def connection(kafka: EmbeddedBroker) -> Connection:
    connection = Connection(bootstrap_servers=kafka.bootstrap_servers)
    asyncio.run(ensure(topics.TOPICS, connection))
    return connection


def age(settings: Settings, *digests: str) -> None:
    for digest in digests:
        at = time.time() - 30 * 24 * 3600
        os.utime(settings.paths.artifacts / f"{digest}.safetensors", (at, at))


async def test_trials_go_and_the_live_model_stays_in_the_folder_and_on_s3(
    connection: Connection, tmp_path: Path, topic: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic("vacuumed")
    with s3_server(tmp_path / "s3") as server:
        settings = Settings(paths=Paths(home=tmp_path / "home"), store=Store(**server.settings))
        stores, jobs = Stores.of(settings), settings.paths.jobs
        KeyFolder(settings.paths.signing_keys).ensure()
        live = published(name, 1, weights(901), store=stores.address or "")
        job = a_job(tmp_path, "good:train", name)
        trial, unsaid = (stores.folder.put(weights(n)) for n in (902, 903))
        assert stores.folder.put(weights(901)) == sha(live)
        for digest in (sha(live), trial, unsaid):
            await stores.publish(digest)
        folder = jobs / job.job_id
        folder.mkdir(parents=True)
        (folder / trained.FILE).write_text(json.dumps({"outcome": {"sha256": unsaid}}))
        leftover = settings.paths.artifacts / f".{'f' * 64}.safetensors.0a1b2c3d"
        leftover.touch()
        os.utime(leftover, (1, 1))
        age(settings, sha(live), trial, unsaid)
        strict = Retention(keep_ms=HOUR_MS, keep_versions=1)
        later: dict[str, Any] = {
            "jobs": jobs,
            "trusted": None,
            "now_ms": lambda: int(time.time() * 1000) + 48 * HOUR_MS,
        }
        async with Topics(connection.bootstrap_servers) as said:
            await said.ask(job)
            await said.say(HISTORY, live)
            await said.say(CURRENT, live)
            dry = await vacuum(connection, stores, strict, dry_run=True, **later)
            assert [[k.sha256 for k in each.removed] for each in dry] == [[trial], [trial]]
            assert len(server.files) == 3
            assert leftover.exists()

            done = await vacuum(connection, stores, strict, **later)
            assert [[k.sha256 for k in each.removed] for each in done] == [[trial], [trial]]
            assert [each.leftovers for each in done] == [1, 0]
            assert {p.stem for p in server.files} == {sha(live), unsaid}
            assert {k.sha256 for k in stores.folder.kept()} == {sha(live), unsaid}
            assert not leftover.exists()

            # The job is over: what it came to was said by nobody, and goes.
            await said.say(
                JOBS, JobFailed(job_id=job.job_id, attempt=1, reason="", log_tail="", finished_ms=1)
            )
        for variable, value in {
            "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers,
            "TIDEMILL_PATHS__HOME": str(settings.paths.home),
            **{f"TIDEMILL_STORE__{n.upper()}": v for n, v in server.settings.items()},
        }.items():
            monkeypatch.setenv(variable, value)
        shown = await asyncio.to_thread(
            CliRunner().invoke, app, ["models", "vacuum", "--dry-run", "--keep-hours", "1", "--json"]
        )
        assert shown.exit_code == 0, shown.output
        own, remote = json.loads(shown.stdout)["places"]
        assert [each["sha256"] for each in own["removed"]] == [unsaid]
        assert remote["stayed"].keys() == {sha(live), unsaid}  # there it is too young
        print(shown.output)
        listed = await asyncio.to_thread(CliRunner().invoke, app, ["models", name, "--json"])
        assert listed.exit_code == 0, listed.output
        assert [row["sha256"] for row in json.loads(listed.stdout)["models"]] == [sha(live)]


async def test_a_store_of_which_no_event_tells_is_not_emptied(connection: Connection, tmp_path: Path) -> None:
    settings = Settings(paths=Paths(home=tmp_path / "home"))
    stores = Stores.of(settings)
    age(settings, digest := stores.folder.put(b"of another cluster"))
    retention = Retention.of(Store())
    with pytest.raises(NotThisStore, match="another cluster"):
        await vacuum(connection, stores, retention, jobs=settings.paths.jobs, trusted=None)
    assert [k.sha256 for k in stores.folder.kept()] == [digest]
