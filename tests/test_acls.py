"""Rights on topics follow their declarations: each part may do what it does, and no more."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from infra.kafka.acls import Acl, acls
from schemas import topics
from streams.announce.outbox import OUTBOX_TOPICS
from streams.live.judge import FOLLOWED as HEARD
from trainers.bulletin import FOLLOWED

TIDEMILL = Path(sys.executable).with_name("tidemill")
GIVEN = set(acls(topics.TOPICS))


def may(role: str, operation: str) -> set[str]:
    return {
        acl.name for acl in GIVEN if (acl.role, acl.operation, acl.resource) == (role, operation, "topic")
    }


def test_every_topic_has_somebody_who_may_write_it_and_somebody_who_may_read_it() -> None:
    for operation in ("Write", "Read"):
        allowed = {acl.name for acl in GIVEN if acl.operation == operation and acl.resource == "topic"}
        assert {topic.name for topic in topics.TOPICS} <= allowed


def test_worker_and_trainer_may_do_what_they_do() -> None:
    spoken = {*OUTBOX_TOPICS, topics.DEAD_LETTERS.name, topics.ALERTS.name, topics.STANDINGS.name}
    raw = {topic.name for topic in topics.TOPICS if topic.unknown_fields == "refuse"}
    assert spoken <= may("worker", "Write") & may("worker", "Read")
    assert {*raw, *HEARD} <= may("worker", "Read")
    followed = {topic.name for topic in FOLLOWED}
    assert followed <= may("trainer", "Write") & may("trainer", "Read") & may("trainer", "DescribeConfigs")
    assert Acl("worker", "Read", "group", "tidemill-*") in GIVEN


def test_nobody_but_the_trainer_says_which_model_is_live_and_only_producers_write_raw_events() -> None:
    writers = {
        acl.role for acl in GIVEN if acl.name == topics.MODELS_CURRENT.name and acl.operation == "Write"
    }
    assert writers == {"trainer"}
    raw = {topic.name for topic in topics.TOPICS if topic.unknown_fields == "refuse"}
    assert {acl.role for acl in GIVEN if acl.name in raw and acl.operation == "Write"} == {"producer"}
    assert {acl.role for acl in GIVEN if acl.operation == "Create"} == {"admin"}


def test_the_command_prints_them_for_kafkas_own_tool_and_as_json() -> None:
    told = subprocess.run([TIDEMILL, "topics", "--acls"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in told.splitlines() if line]
    assert len(lines) == len(GIVEN)
    form = r"kafka-acls --add --allow-principal User:\S+ --operation \w+ (--topic|--group|--cluster)\b.*"
    assert [line for line in lines if not re.fullmatch(form, line)] == []
    told = subprocess.run(
        [TIDEMILL, "topics", "--acls", "--json"], capture_output=True, text=True, check=True
    ).stdout
    assert {acl["role"] for acl in json.loads(told)["acls"]} == {acl.role for acl in GIVEN}
