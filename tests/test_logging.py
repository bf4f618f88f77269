"""The log's lines are JSON with ids where a machine reads them, whoever logged."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from infra.logging import configure, correlated, logger
from infra.settings import Log


@pytest.fixture(autouse=True)
def former_log() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    for handler in [one for one in root.handlers if one not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    structlog.reset_defaults()


async def test_ours_and_the_libraries_lines_carry_part_and_ids_over_tasks(tmp_path):
    file = tmp_path / "logs" / "worker.jsonl"
    stream = io.StringIO()
    configure(Log(), part="worker", file=file, stream=stream)

    async def work(job: str) -> None:
        with correlated(job=job):
            await asyncio.sleep(0)
            logger("ours").info("started", rows=3)
            logging.getLogger("theirs").warning("slow by %d ms", 5)

    await asyncio.gather(work("a"), work("b"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    shown = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [{**line, "timestamp": ""} for line in shown] == [{**line, "timestamp": ""} for line in lines]
    assert "message" not in lines[1]
    assert [(line["logger"], line["job"], line["event"]) for line in lines] == [
        ("ours", "a", "started"),
        ("theirs", "a", "slow by 5 ms"),
        ("ours", "b", "started"),
        ("theirs", "b", "slow by 5 ms"),
    ]
    assert {line["part"] for line in lines} == {"worker"}
    assert lines[0]["rows"] == 3
    assert lines[0]["timestamp"].endswith("Z")


def test_a_traceback_is_one_json_line():
    stream = io.StringIO()
    configure(Log(form="json"), part="trainer", stream=stream)
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        logger("ours").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["exception"][0]["exc_value"] == "broken\nin two"


def test_the_level_holds_and_chatty_libraries_are_quiet_and_a_second_call_replaces_the_first():
    first, second = io.StringIO(), io.StringIO()
    configure(Log(), part="worker", stream=first)
    configure(Log(form="console", level="info"), part="worker", stream=second)
    logger("ours").debug("hidden")
    logging.getLogger("aiokafka.conn").info("hidden too")
    logger("ours").info("shown")
    assert first.getvalue() == ""
    assert "shown" in second.getvalue()
    assert "hidden" not in second.getvalue()


def test_what_a_command_logs_on_its_way_is_no_part_of_its_answer(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "infra.command", "keys", "make"],
        env={**os.environ, "TIDEMILL_PATHS__HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"[0-9a-f]{16}  \S+\n", done.stdout)
    assert "made a key that signs models" in done.stderr
