"""Pushing files: streamed in equal chunks, each event once on the topic, whatever ends the process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.partitioner import murmur2
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from infra.kafka import EmbeddedBroker
from infra.kafka.connection import Connection
from infra.kafka.topics import ensure
from infra.push import push_file
from infra.settings import Kafka, Paths, Settings
from schemas import topics
from schemas.errors import InvalidConfiguration
from schemas.producer import source as sources
from schemas.producer.encode import Form
from schemas.producer.journal import FileChanged
from schemas.producer.partitions import partitions_for
from schemas.producer.push import Pushed
from schemas.producer.record_batch import Compression
from schemas.producer.sender import EventSender, EventUnfit
from schemas.producer.source import FileUnreadable, open_source
from schemas.topics import CONTENT_TYPE_HEADER, Topic, Version
from tests.stream_fixtures import Reading
from tests.worker_fixtures import wait_until

QUIET = Console(quiet=True)
ROWS = 230


@dataclass
class Place:
    """A raw topic of a test's own, and the settings to reach it."""

    settings: Settings
    topic: str

    def push(self, file: Path, **options) -> Pushed:
        return asyncio.run(push_file(self.settings, self.topic, file, QUIET, **options))

    def records(self) -> list[tuple[bytes | None, bytes | None, tuple]]:
        """Everything on the topic, by partition."""

        async def read() -> list:
            consumer = AIOKafkaConsumer(bootstrap_servers=str(self.settings.kafka.bootstrap_servers))
            await consumer.start()
            try:
                tps = [TopicPartition(self.topic, n) for n in range(3)]
                consumer.assign(tps)
                await consumer.seek_to_beginning()
                ends, found = await consumer.end_offsets(tps), []
                while any([await consumer.position(tp) < ends[tp] for tp in tps]):
                    for own in (await consumer.getmany(timeout_ms=500)).values():
                        found += [(r.key, r.value, tuple(r.headers)) for r in own]
                return found
            finally:
                await consumer.stop()

        return asyncio.run(read())

    def ids(self) -> Counter[str]:
        """How often each event lies on the topic."""
        return Counter(json.loads(value or b"")["id"] for _, value, _ in self.records())


@pytest.fixture
def place(kafka: EmbeddedBroker, tmp_path: Path, topic) -> Place:
    name = topic("push")
    declared = topics.declare(
        Topic(
            name=name,
            purpose="a test's",
            producer="a test",
            consumers=(),
            key="id",
            partitions=3,
            versions=(Version(number=1, contracts=(Reading,)),),
            unknown_fields="refuse",
        )
    )
    asyncio.run(ensure([declared], Connection(bootstrap_servers=kafka.bootstrap_servers)))
    settings = Settings(
        kafka=Kafka(bootstrap_servers=kafka.bootstrap_servers), paths=Paths(home=tmp_path / "home")
    )
    return Place(settings, name)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_ROWS", 50)


def table(rows: int = ROWS) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"r{n}" for n in range(rows)],
            "at": range(rows),
            "level": [n / 10 for n in range(rows)],
            "count": range(rows),
            "good": [n % 2 == 0 for n in range(rows)],
            "note": [None if n % 3 else "x" for n in range(rows)],
        }
    )


def written(folder: Path, ending: str, rows: int = ROWS) -> Path:
    file, data = folder / f"readings{ending}", table(rows)
    match ending:
        case ".ndjson":
            data.write_ndjson(file)
        case ".csv":
            data.write_csv(file)
        case ".parquet":
            data.write_parquet(file, row_group_size=70)
        case ".arrow":
            data.write_ipc(file)
        case ".ipc":
            data.write_ipc_stream(file)
    return file


# ── what a file becomes ─────────────────────────────────────────────────────────────────────────────


@given(keys=st.lists(st.binary(max_size=40), max_size=40), partitions=st.integers(1, 64))
@settings(deadline=None)
def test_many_keys_go_where_each_would_go_alone(keys: list[bytes], partitions: int) -> None:
    alone = [(murmur2(key) & 0x7FFFFFFF) % partitions for key in keys]
    assert partitions_for(keys, partitions).tolist() == alone


@pytest.mark.parametrize("ending", [".ndjson", ".csv", ".parquet", ".arrow", ".ipc"])
def test_a_file_is_read_in_the_same_chunks_each_time(tmp_path: Path, ending: str) -> None:
    source = open_source(written(tmp_path, ending), (Reading,))
    sizes = [chunk.rows for chunk in source.chunks()]
    assert sizes == [50, 50, 50, 50, 30]
    assert [chunk.rows for chunk in source.chunks()] == sizes
    assert source.rows in (None, ROWS)


@pytest.mark.parametrize("ending", [".ndjson", ".csv", ".parquet", ".arrow"])
def test_every_row_is_one_event_with_its_key_and_partition(place: Place, tmp_path: Path, ending: str) -> None:
    pushed = place.push(written(tmp_path, ending))
    assert (pushed.sent, pushed.before, pushed.stopped) == (ROWS, 0, False)
    records = place.records()
    rows = {key: json.loads(value or b"") for key, value, _ in records}
    assert len(records) == len(rows) == ROWS
    assert rows[b"r3"] == {"id": "r3", "at": 3, "level": 0.3, "count": 3, "good": False, "note": "x"}


def test_a_csv_has_the_types_of_its_contract_and_one_odd_value_is_one_odd_event(
    place: Place, tmp_path: Path
) -> None:
    file = tmp_path / "odd.csv"
    file.write_text(
        "id,at,level,count,good,note\n"
        "007,1,1e3,2,True,12\n"
        "b,2,,3.0,FALSE,\n"
        "c,3,NaN,many,perhaps,x\n"
        'd,"",4,5,,"a ""b"""\n'
    )
    place.push(file)
    assert {key: json.loads(value or b"") for key, value, _ in place.records()} == {
        b"007": {"id": "007", "at": 1, "level": 1000.0, "count": 2, "good": True, "note": "12"},
        b"b": {"id": "b", "at": 2, "level": None, "count": 3.0, "good": False, "note": None},
        b"c": {"id": "c", "at": 3, "level": "NaN", "count": "many", "good": "perhaps", "note": "x"},
        b"d": {"id": "d", "at": None, "level": 4.0, "count": 5, "good": None, "note": 'a "b"'},
    }
    with pytest.raises(FileUnreadable, match="leave out --as arrow"):
        place.push(file, form="arrow", from_beginning=True)


def test_as_arrow_some_thousand_rows_are_one_record(place: Place, tmp_path: Path) -> None:
    place.push(written(tmp_path, ".parquet"), form="arrow")
    records = place.records()
    assert {dict(headers)[CONTENT_TYPE_HEADER] for _, _, headers in records} == {
        b"application/vnd.apache.arrow.stream"
    }
    back = pl.concat([pl.read_ipc_stream(value or b"") for _, value, _ in records]).sort("at")
    assert back.equals(table())
    assert len(records) == 5 * 3


@pytest.mark.parametrize(("form", "compression"), [("json", "lz4"), ("json", "zstd"), ("arrow", "gzip")])
def test_a_compressed_push_is_the_same_events(
    place: Place, tmp_path: Path, form: Form, compression: Compression
) -> None:
    file = written(tmp_path, ".parquet")
    place.push(file, form=form)
    plain = Counter((key, value) for key, value, _ in place.records())
    place.push(file, form=form, compression=compression, from_beginning=True)
    assert Counter((key, value) for key, value, _ in place.records()) == plain + plain


def test_lines_go_as_they_stand_good_or_bad(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "odd.ndjson"
    lines = [b'{"id": "a"}', b"no JSON", b'{"id": 7}', b'{"other": 1}', b'{"id": null}', b"\xff\xfe"]
    file.write_bytes(b"\r\n".join(lines) + b"\n\n  \n" + b'{"id": "last"}')
    place.push(file)
    found = {value: key for key, value, _ in place.records()}
    assert set(found) == {*lines, b'{"id": "last"}'}
    assert (found[lines[0]], found[lines[1]], found[lines[2]]) == (b"a", b"", b"7")


# ── again ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_was_pushed_is_not_pushed_again_unless_one_says_so(place: Place, tmp_path: Path) -> None:
    file = written(tmp_path, ".parquet")
    place.push(file)
    again = place.push(file)
    assert (again.sent, again.before) == (0, ROWS)
    assert place.push(file, from_beginning=True).sent == ROWS
    assert set(place.ids().values()) == {2}


def test_a_new_file_of_an_old_name_is_new(place: Place, tmp_path: Path) -> None:
    place.push(written(tmp_path, ".csv", rows=60))
    assert place.push(written(tmp_path, ".csv", rows=70)).sent == 70


def test_a_file_that_changed_half_way_is_refused(place: Place, tmp_path: Path) -> None:
    file = written(tmp_path, ".ndjson")
    with file.open("rb") as kept:
        content = kept.read()
    file.write_bytes(content + b"\n")
    place.push(file)
    (journal,) = (tmp_path / "home" / "push").glob("*.json")
    said = json.loads(journal.read_text())
    journal.write_text(json.dumps({**said, "complete": False, "chunks": 2, "events": 100}))
    file.write_bytes(content)
    with pytest.raises(FileChanged, match="--from-beginning"):
        place.push(file)


# ── killed ──────────────────────────────────────────────────────────────────────────────────────────

STRIKER = """
import asyncio, os, signal, sys
from pathlib import Path
from rich.console import Console
import schemas.producer.source, schemas.producer.push as sending
from infra.push import push_file
from infra.settings import Kafka, Paths, Settings
from schemas import topics
from schemas.topics import Topic, Version
from tests.stream_fixtures import Reading

servers, home, topic, file, where, number, what = sys.argv[1:]
schemas.producer.source.CHUNK_ROWS = 50
topics.declare(Topic(name=topic, purpose="a test's", producer="a test", consumers=(), key="id", partitions=3,
                     versions=(Version(number=1, contracts=(Reading,)),), unknown_fields="refuse"))
real = getattr(sending.Push, where)
calls = 0

async def striking(self, *arguments):
    global calls
    calls += 1
    result = await real(self, *arguments)
    if calls == int(number):
        if what == "SIGKILL":
            await asyncio.sleep(0.2)  # so that what was sent is on its way, or there
        os.kill(os.getpid(), getattr(signal, what))
        await asyncio.sleep(0)
    return result

setattr(sending.Push, where, striking)
settings = Settings(kafka=Kafka(bootstrap_servers=servers), paths=Paths(home=Path(home)))
pushed = asyncio.run(push_file(settings, topic, Path(file), Console(quiet=True)))
sys.exit(130 if pushed.stopped else 0)
"""


def strike(place: Place, file: Path, where: str, number: int, what: str) -> int:
    """A push in a process of its own that strikes itself at exactly that instant; gives its exit code."""
    servers, home = place.settings.kafka.bootstrap_servers, place.settings.paths.home
    arguments = [str(servers), str(home), place.topic, str(file), where, str(number), what]
    done = subprocess.run(
        [sys.executable, "-c", STRIKER, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode in (130, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.parametrize(("where", "number"), [("_send", 4), ("_settle", 2)])
def test_after_kill_9_a_second_run_leaves_each_event_once(
    place: Place, tmp_path: Path, where: str, number: int
) -> None:
    file = written(tmp_path, ".ndjson", rows=600)
    assert strike(place, file, where, number, "SIGKILL") == -signal.SIGKILL
    rest = place.push(file)
    assert not rest.stopped
    assert place.ids() == Counter({f"r{n}": 1 for n in range(600)})


def test_killed_again_while_it_goes_on_it_still_leaves_each_event_once(place: Place, tmp_path: Path) -> None:
    """With events of the very same bytes, which nothing but their place tells apart."""
    file = tmp_path / "same.ndjson"
    file.write_bytes(b'{"id": "same"}\n' * 600)
    for where, number in (("_send", 3), ("_send", 1), ("_settle", 1)):
        assert strike(place, file, where, number, "SIGKILL") == -signal.SIGKILL
    place.push(file)
    assert place.ids() == Counter({"same": 600})


def test_asked_to_stop_it_ends_what_is_on_its_way_and_goes_on_later(place: Place, tmp_path: Path) -> None:
    file = written(tmp_path, ".ndjson", rows=600)
    assert strike(place, file, "_send", 2, "SIGTERM") == 130
    there = sum(place.ids().values())
    assert there in range(100, 600)
    rest = place.push(file)
    assert (rest.before, rest.sent) == (there, 600 - there)
    assert place.ids() == Counter({f"r{n}": 1 for n in range(600)})


def test_ctrl_c_on_the_command_says_where_it_stands(place: Place, tmp_path: Path) -> None:
    file = written(tmp_path, ".ndjson", rows=400_000)
    environment = {
        **os.environ,
        "TIDEMILL_KAFKA__BOOTSTRAP_SERVERS": str(place.settings.kafka.bootstrap_servers),
        "TIDEMILL_PATHS__HOME": str(tmp_path / "home"),
    }
    asyncio.run(
        ensure(topics.TOPICS, Connection(bootstrap_servers=environment["TIDEMILL_KAFKA__BOOTSTRAP_SERVERS"]))
    )
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-m", "infra.command", "push", "weather.hourly", str(file), "--json"]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        journals = tmp_path / "home" / "push"
        wait_until(
            lambda: any(json.loads(j.read_text())["chunks"] for j in journals.glob("*.json")),
            "it is on its way",
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    said = (tmp_path / "out").read_text()
    assert "the same command goes on from there" in said
    (journal,) = journals.glob("*.json")
    assert 0 < json.loads(journal.read_text())["events"] < 400_000


# ── refused ─────────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(place: Place, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.parquet").write_text("no parquet")
    for name in ("nothing.csv", "a.txt", "a.parquet"):
        with pytest.raises(FileUnreadable, match=name):
            place.push(tmp_path / name)
    with pytest.raises(InvalidConfiguration, match="no raw topic"):
        asyncio.run(push_file(place.settings, "tidemill.models", tmp_path / "a.csv", QUIET))
    with pytest.raises(InvalidConfiguration, match="--as arrow"):
        place.push(written(tmp_path, ".ndjson"), form="arrow")
    assert place.records() == []


def test_two_pushes_of_one_file_do_not_run_at_once(place: Place, tmp_path: Path) -> None:
    from schemas.producer.journal import Journal

    file = written(tmp_path, ".csv")
    place.push(file)
    (path,) = (tmp_path / "home" / "push").glob("*.json")
    cluster = json.loads(path.read_text())["cluster"]
    other = Journal(path.parent, file, topic=place.topic, cluster=cluster, form="json")
    other.hold()
    with pytest.raises(InvalidConfiguration, match="another push"):
        place.push(file)
    other.release()
    assert place.push(file).before == ROWS


# ── the client's own ────────────────────────────────────────────────────────────────────────────────


def sent(place: Place, data: object, **options) -> Pushed:
    async def send() -> Pushed:
        servers = str(place.settings.kafka.bootstrap_servers)
        async with EventSender(place.topic, client={"bootstrap_servers": servers}, **options) as sender:
            if isinstance(data, Path):
                return await sender.send_file(data)
            return await sender.send_frame(data)

    return asyncio.run(send())


def test_the_client_sends_frames_arrow_and_files_checked(place: Place, tmp_path: Path) -> None:
    batches = [pl.Series(part.to_struct()) for part in table().iter_slices(70)]
    assert sent(place, table()).sent == ROWS
    assert sent(place, (part.struct.unnest() for part in batches)).sent == ROWS
    assert set(place.ids().values()) == {2}
    bad = table().with_columns(level=pl.when(pl.col("at") == 120).then(99.0).otherwise("level"))
    with pytest.raises(EventUnfit, match=r"r120.*breaks the contract.*<= 50"):
        sent(place, bad)
    assert (place.ids()["r0"], place.ids()["r120"]) == (3, 2)


def test_the_client_goes_on_with_what_the_command_left(place: Place, tmp_path: Path) -> None:
    file, journals = written(tmp_path, ".ndjson", rows=600), tmp_path / "home" / "push"
    assert strike(place, file, "_settle", 2, "SIGKILL") == -signal.SIGKILL
    sent(place, file, journal_dir=journals, checked=False)
    assert place.ids() == Counter({f"r{n}": 1 for n in range(600)})
    assert sent(place, file, journal_dir=journals, checked=False).sent == 0
