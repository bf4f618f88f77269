"""The contracts: every example fits them, and what is written for readers of other languages is the same."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import json_schema, topics
from schemas.contract import Announcement, announcement_for, announcements, announces, type_of
from schemas.dead_letter import DeadLetter
from schemas.envelope import Envelope, NotAnAnnouncement, open_record, unwrap, unwrap_as, wrap
from schemas.examples import announced
from schemas.json_schema import documents
from schemas.model import ModelAdopted, ModelPublished
from schemas.prediction import Predictions
from schemas.window import WindowClosed

DOCUMENTS = documents()
CASES = [
    (topic.name, contract, example)
    for topic in topics.TOPICS
    for contract, example in zip(topic.contracts, topic.examples, strict=True)
]
RAW = [topic for topic in topics.TOPICS if topic.unknown_fields == "refuse"]
EXAMPLE = {type(event): event for event in announced()}


def schema_of(topic: str, contract: type[msgspec.Struct]) -> jsonschema.Draft202012Validator:
    kind = type_of(contract) if issubclass(contract, Announcement) else f"{topic}.v1"
    return jsonschema.Draft202012Validator(DOCUMENTS[f"{kind}.json"])


def is_taken(contract: type[msgspec.Struct], value: Any) -> bool:
    try:
        msgspec.json.decode(json.dumps(value), type=contract)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("topic", "contract", "example"), CASES, ids=[f"{t}-{c.__name__}" for t, c, _ in CASES]
)
def test_an_example_fits_its_contract_and_its_json_schema(
    topic: str, contract: type[msgspec.Struct], example: dict[str, Any]
) -> None:
    value = msgspec.json.decode(json.dumps(example), type=contract)
    assert msgspec.json.decode(msgspec.json.encode(value)) == example
    schema_of(topic, contract).validate(example)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_json_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENTS[name])
    assert DOCUMENTS[name]["examples"]


def test_every_topic_with_contracts_has_an_example_of_each() -> None:
    assert {topic.name for topic in topics.TOPICS if not topic.contracts} == {"tidemill.features"}
    assert all(len(topic.examples) == len(topic.contracts) for topic in topics.TOPICS)


def test_the_files_are_in_step_with_the_contracts() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "schemas.json_schema", "--check"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(json_schema.__file__).parents[1],
    )
    assert checked.stderr == ""
    assert checked.returncode == 0


def test_a_file_that_is_out_of_step_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "FOLDER", tmp_path / "json")
    json_schema.write()
    assert json_schema.differing() == []
    (tmp_path / "json" / "weather.hourly.v1.json").write_text("{}")
    (tmp_path / "json" / "flights.arrived.v1.json").unlink()
    (tmp_path / "json" / "gone.json").write_text("{}")
    assert json_schema.differing() == [
        "flights.arrived.v1.json is missing",
        "gone.json belongs to no contract",
        "weather.hourly.v1.json differs from its contract",
    ]


def test_an_announcement_is_declared_in_exactly_one_family_of_topics() -> None:
    """`tidemill.models` and `tidemill.models.current` are one family."""
    families: dict[type[msgspec.Struct], set[str]] = {
        contract: set() for contract in announcements().values()
    }
    for topic in topics.TOPICS:
        for contract in topic.contracts:
            if issubclass(contract, Announcement):
                families[contract].add(".".join(topic.name.split(".")[:2]))
    assert {contract.__name__: len(found) for contract, found in families.items()} == {
        contract.__name__: 1 for contract in families
    }


def test_a_type_is_declared_once() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        announces("model.published")(WindowClosed)
    assert announcement_for("tidemill.model.published.v1") is ModelPublished
    assert announcement_for("tidemill.model.forgotten.v1") is None


def test_topics_have_distinct_names_and_say_what_they_are_for() -> None:
    names = [topic.name for topic in topics.TOPICS]
    assert len(set(names)) == len(names)
    for topic in topics.TOPICS:
        assert topic.purpose.endswith(".")
        assert topic.producer
        assert topic.consumers
        assert topic.key
        assert topic.partitions >= 1
        assert topics.topic(topic.name) is topic
    with pytest.raises(KeyError, match="not declared"):
        topics.topic("tidemill.nothing")


def test_only_the_topics_of_current_models_and_canaries_are_compacted() -> None:
    compacted = {t.name for t in topics.TOPICS if t.settings.get("cleanup.policy") == "compact"}
    assert compacted == {"tidemill.models.current", "tidemill.models.canaries"}
    for name in compacted:
        settings = topics.topic(name).settings
        # Else the broker refuses a record that the topic takes; and what is being written is not compacted.
        assert int(settings["segment.bytes"]) > int(settings["max.message.bytes"])
        assert int(settings["segment.ms"]) <= 3_600_000


@pytest.mark.parametrize("topic", RAW, ids=[topic.name for topic in RAW])
def test_an_unknown_field_of_a_raw_event_is_refused(topic: topics.Topic) -> None:
    (contract,) = topic.contracts
    misspelt = {**topic.examples[0], "carier": "UA"}
    assert not is_taken(contract, misspelt)
    assert not schema_of(topic.name, contract).is_valid(misspelt)


@pytest.mark.parametrize("event", announced(), ids=lambda event: type(event).__name__)
def test_an_unknown_field_of_an_announcement_is_ignored(event: Announcement) -> None:
    envelope = wrap(event, source="/test", time_ms=0)
    newer = json.loads(envelope.data) | {"added_in_a_later_version": 1}
    read = unwrap(replace(envelope, data=json.dumps(newer).encode()))
    assert read == event
    assert schema_of("", type(event)).is_valid(newer)


@pytest.mark.parametrize("event", announced(), ids=lambda event: type(event).__name__)
def test_an_announcement_is_a_cloud_event_in_kafkas_binary_mode(event: Announcement) -> None:
    envelope = wrap(
        event, source="/tidemill/test", time_ms=1_764_000_000_123, extensions={"ledgerversion": "7"}
    )
    key, value, headers = envelope.record()
    said = {name: content.decode() for name, content in headers}
    assert len(said) == len(headers)
    kind = type_of(type(event))
    assert said == {
        "ce_specversion": "1.0",
        "ce_id": event.event_id(),
        "ce_source": "/tidemill/test",
        "ce_type": kind,
        "ce_subject": event.subject(),
        "ce_time": said["ce_time"],
        "ce_dataschema": DOCUMENTS[f"{kind}.json"]["$id"],
        "ce_ledgerversion": "7",
        "content-type": "application/json",
    }
    assert said["ce_time"].endswith("Z")
    assert datetime.fromisoformat(said["ce_time"]).timestamp() == pytest.approx(1_764_000_000.123)
    assert key == event.key().encode()
    assert value == event.encoded()
    assert json.loads(value) == json.loads(msgspec.json.encode(event))
    opened = open_record(key, value, headers)
    assert opened == envelope
    assert unwrap(opened) == event
    assert unwrap_as(opened, type(event)) == event


def test_an_announcements_id_is_the_same_for_a_repeat_and_of_no_other() -> None:
    ids = [event.event_id() for event in announced()]
    assert len(set(ids)) == len(ids)
    assert ids == [copy.deepcopy(event).event_id() for event in announced()]
    published = EXAMPLE[ModelPublished]
    assert isinstance(published, ModelPublished)
    assert published.event_id() == f"flights/2/published/{published.manifest.artifact.sha256}"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("ce_id", b"1")],
        [("ce_id", b"1"), ("ce_type", b"x"), ("ce_source", b"/x"), ("ce_specversion", b"0.1")],
        [("ce_id", b"\xff"), ("ce_type", b"x"), ("ce_source", b"/x"), ("ce_specversion", b"1.0")],
        [("ce_id", None), ("ce_type", b"x"), ("ce_source", b"/x"), ("ce_specversion", b"1.0")],
        [
            ("ce_id", b"1"),
            ("ce_type", b"x"),
            ("ce_source", b"/x"),
            ("ce_specversion", b"1.0"),
            ("ce_time", b"soon"),
        ],
        [
            ("ce_id", b"1"),
            ("ce_type", b"x"),
            ("ce_source", b"/x"),
            ("ce_specversion", b"1.0"),
            ("ce_time", b"2013-01-01T00:00:00"),
        ],
    ],
)
def test_a_record_that_is_no_cloud_event_is_said_to_be_none(headers: Any) -> None:
    with pytest.raises(NotAnAnnouncement):
        open_record(None, b"{}", headers)


def test_an_unknown_type_and_broken_data_are_named() -> None:
    envelope = wrap(EXAMPLE[ModelAdopted], source="/x", time_ms=0)
    with pytest.raises(NotAnAnnouncement, match=r"breaks the contract of tidemill\.model\.adopted\.v1"):
        unwrap(replace(envelope, data=b'{"name": 1}'))
    with pytest.raises(NotAnAnnouncement, match="breaks the contract"):
        unwrap(replace(envelope, data=b"\xff"))
    unknown = Envelope(id="1", type="tidemill.new.thing.v1", source="/x", subject="x", time_ms=0, data=b"{}")
    with pytest.raises(NotAnAnnouncement, match="not declared"):
        unwrap(unknown)


words = st.text(min_size=1, max_size=40)
times_ms = st.integers(-62_135_596_800_000, 253_402_300_799_999)


@given(
    id=words,
    type=words,
    subject=words,
    key=words,
    time_ms=times_ms,
    data=st.binary(max_size=200),
    extensions=st.dictionaries(st.from_regex(r"x[a-z0-9]{0,15}", fullmatch=True), words, max_size=3),
)
def test_an_envelope_comes_back_as_it_was_sent(**parts: Any) -> None:
    envelope = Envelope(source="/x", **parts)
    assert open_record(*envelope.record()) == envelope


@settings(deadline=None)
@given(
    key=st.none() | st.binary(max_size=50),
    value=st.none() | st.binary(max_size=200),
    headers=st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=20)), max_size=3),
)
def test_a_dead_letter_keeps_the_original_bytes(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    letter = DeadLetter(
        pipeline="p",
        topic="t",
        partition=0,
        offset=1,
        reason="malformed",
        rule="json",
        detail="not JSON",
        record_key=key,
        record_value=value,
        record_headers=headers,
    )
    envelope = wrap(letter, source="/x", time_ms=0)
    schema_of("", DeadLetter).validate(json.loads(envelope.data))
    assert unwrap(envelope) == letter


@given(
    rows=st.lists(
        st.tuples(words, st.integers(-(2**53), 2**53), st.floats(0, 1)),
        max_size=20,
    )
)
def test_predictions_come_back_bit_by_bit(rows: list[tuple[str, int, float]]) -> None:
    event = Predictions(
        service="s",
        name="m",
        version=1,
        sha256="0" * 64,
        features_id="f",
        keys=[key for key, _, _ in rows],
        times_ms=[at for _, at, _ in rows],
        scores=[score for _, _, score in rows],
        newest_event_ms=0,
        answered_ms=0,
    )
    envelope = wrap(event, source="/x", time_ms=0)
    schema_of("", Predictions).validate(json.loads(envelope.data))
    assert unwrap(envelope) == event


anything = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer())
    | st.text(max_size=70)
    | st.lists(st.integers(0, 1), max_size=2)
)


@pytest.mark.parametrize("topic", RAW, ids=[topic.name for topic in RAW])
@settings(max_examples=150)
@given(data=st.data())
def test_contract_and_json_schema_agree_on_any_change_of_an_event(
    topic: topics.Topic, data: st.DataObject
) -> None:
    (contract,) = topic.contracts
    event = dict(topic.examples[0])
    name = data.draw(st.sampled_from(sorted(event)) | st.text(max_size=5))
    if data.draw(st.booleans()):
        event.pop(name, None)
    else:
        event[name] = data.draw(anything)
    assert is_taken(contract, event) == schema_of(topic.name, contract).is_valid(event)
