"""The AsyncAPI document is in step with the contracts, and AsyncAPI's own parser takes it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import platformdirs
import pytest

from schemas import asyncapi, topics

PARSER = "@asyncapi/parser@3.6.6"
PARSE = """
import { Parser } from '@asyncapi/parser';
import { readFileSync } from 'node:fs';
const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], 'utf8'));
const wrong = diagnostics.filter(d => d.severity <= 1).map(d => `${d.path.join('/')}: ${d.message}`);
const channels = document ? document.channels().all().map(c => c.address()) : [];
console.log(JSON.stringify({ wrong, channels }));
"""


def test_the_document_is_in_step_with_the_contracts() -> None:
    assert asyncapi.FILE.read_text() == asyncapi.text(), "run python -m schemas.asyncapi"


def test_every_topic_is_a_channel_and_every_example_fits_its_message() -> None:
    document = asyncapi.document()
    channels = document["channels"]
    assert {c["address"] for c in channels.values()} == {t.name for t in topics.TOPICS} | {
        "/v1/events/{stream}"
    }
    for message in document["components"]["messages"].values():
        for example in message.get("examples", ()):
            schema = {**message["payload"], "components": document["components"]}
            jsonschema.Draft202012Validator(schema).validate(example["payload"])


@pytest.fixture(scope="module")
def parser() -> Path:
    """A folder with AsyncAPI's parser in it; the tests are skipped where it cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("AsyncAPI's parser needs Node.js and npm, which are not here")
    folder = platformdirs.user_cache_path("tidemill") / "asyncapi-parser" / PARSER.rpartition("@")[2]
    if not (folder / "node_modules/@asyncapi/parser/package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact", PARSER]
        try:
            done = subprocess.run(
                install, cwd=folder, capture_output=True, text=True, timeout=150, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"{PARSER} could not be fetched within 150 s")
        if done.returncode:
            pytest.skip(f"{PARSER} cannot be fetched here: {done.stderr[-300:]}")
    (folder / "parse.mjs").write_text(PARSE)
    return folder


def test_asyncapis_own_parser_finds_nothing_wrong(parser: Path) -> None:
    command = [str(shutil.which("node")), "parse.mjs", str(asyncapi.FILE)]
    done = subprocess.run(command, cwd=parser, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["wrong"] == []
    assert len(said["channels"]) == len(topics.TOPICS) + 1
