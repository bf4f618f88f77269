"""Write `schemas/json/` from the contracts, for readers in any language: `python -m schemas.json_schema`.

With `--check` nothing is written, and the exit code is 1 if a file differs from its contract.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from . import topics
from .contract import Announcement, type_of

FOLDER = Path(__file__).parent / "json"


def documents() -> dict[str, dict[str, Any]]:
    """All JSON Schemas by file name: one a CloudEvents type, and one a raw topic and version."""
    found: dict[str, dict[str, Any]] = {}
    for topic in topics.TOPICS:
        for version in topic.versions:
            examples = topic.examples if version is topic.versions[-1] else ()
            for number, contract in enumerate(version.contracts):
                is_announced = issubclass(contract, Announcement)
                kind = type_of(contract) if is_announced else f"{topic.name}.v{version.number}"
                known = found.get(f"{kind}.json")
                found[f"{kind}.json"] = {
                    "$schema": "https://json-schema.org/draft/2020-12/schema",
                    "$id": f"urn:{kind.replace('.', ':')}",
                    "topics": [*(known["topics"] if known else []), topic.name],
                    **dedented(msgspec.json.schema(contract)),
                    "examples": list(examples[number : number + 1]),
                }
    return found


def differing() -> list[str]:
    """What keeps the folder from being in step, one line a file."""
    wanted = {name: _text(document) for name, document in documents().items()}
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return [
        *(f"{name} is missing" for name in sorted(wanted.keys() - there.keys())),
        *(f"{name} belongs to no contract" for name in sorted(there.keys() - wanted.keys())),
        *(
            f"{name} differs from its contract"
            for name in sorted(wanted)
            if there.get(name, wanted[name]) != wanted[name]
        ),
    ]


def write() -> None:
    """Bring the folder in step."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, document in documents().items():
        (FOLDER / name).write_text(_text(document), encoding="utf-8")


def dedented(part: Any) -> Any:
    """A schema's descriptions without their source's indentation, which only newer Pythons strip."""
    if isinstance(part, dict):
        return {
            key: inspect.cleandoc(value)
            if key == "description" and isinstance(value, str)
            else dedented(value)
            for key, value in part.items()
        }
    return [dedented(each) for each in part] if isinstance(part, list) else part


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description="Keep schemas/json in step with the contracts.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    if not parser.parse_args().check:
        write()
        return 0
    problems = differing()
    for problem in problems:
        print(f"{problem}; run python -m schemas.json_schema", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
