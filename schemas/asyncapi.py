"""Write `schemas/asyncapi.json` from the contracts: an AsyncAPI 3 document, `python -m schemas.asyncapi`.

Every topic is a channel with its settings, every contract a message; the HTTP door is a channel, too. It is
told from Tidemill's side: raw topics are received, announcements are sent. With `--check` nothing is written,
and the exit code is 1 if the file differs from the contracts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from . import topics
from .contract import Announcement, type_of
from .json_schema import dedented
from .topics import Topic

FILE = Path(__file__).with_name("asyncapi.json")
VERSION = "3.0.0"
KAFKA_BINDING, HTTP_BINDING = "0.5.0", "0.3.0"
_NUMBERS = ("retention.ms", "max.message.bytes")
_CLOUD_EVENT = {
    "ce_specversion": {"type": "string", "const": "1.0"},
    "ce_id": {"type": "string", "description": "the same for every repeat: readers drop those"},
    "ce_source": {"type": "string"},
    "ce_type": {"type": "string"},
    "ce_subject": {"type": "string"},
    "ce_time": {"type": "string", "format": "date-time"},
    "ce_dataschema": {"type": "string"},
    "content-type": {"type": "string"},
}
_REQUIRED_HEADERS = ["ce_specversion", "ce_id", "ce_source", "ce_type"]


def document() -> dict[str, Any]:
    """The whole document."""
    contracts = {contract: None for topic in topics.TOPICS for contract in topic.contracts}
    _, schemas = msgspec.json.schema_components(contracts, ref_template="#/components/schemas/{name}")
    raw = [topic for topic in topics.TOPICS if topic.unknown_fields == "refuse"]
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "Tidemill",
            "version": "1.0.0",
            "description": "From a stream of raw events to models that keep up with it. Announcements are "
            "CloudEvents 1.0 in Kafka's binary mode.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{bootstrapServers}",
                "protocol": "kafka",
                "description": "The setting kafka.bootstrap_servers.",
                "variables": {"bootstrapServers": {"default": "localhost:9092"}},
            },
            "door": {
                "host": "{door}",
                "protocol": "http",
                "description": "`tidemill door`: the settings door.host and door.port.",
                "variables": {"door": {"default": "127.0.0.1:8710"}},
            },
        },
        "channels": {_id(topic.name): _channel(topic) for topic in topics.TOPICS} | {"door": _door(raw)},
        "operations": {_id(topic.name): _operation(topic) for topic in topics.TOPICS}
        | {
            "door": {
                "action": "receive",
                "summary": "Events of producers without Kafka, acknowledged once the topic holds them.",
                "channel": {"$ref": "#/channels/door"},
                "bindings": {"http": {"method": "POST", "bindingVersion": HTTP_BINDING}},
            }
        },
        "components": {
            "messages": {
                name: message for topic in topics.TOPICS for name, message in _messages(topic).items()
            },
            "schemas": _told_apart_by_name(dedented(schemas)),
        },
    }


def _told_apart_by_name(part: Any) -> Any:
    """Schemas whose `discriminator` is the property's name, as in AsyncAPI, and no object of OpenAPI's."""
    if isinstance(part, dict):
        return {
            key: value["propertyName"]
            if key == "discriminator" and isinstance(value, dict) and "propertyName" in value
            else _told_apart_by_name(value)
            for key, value in part.items()
        }
    return [_told_apart_by_name(each) for each in part] if isinstance(part, list) else part


def _id(name: str) -> str:
    return name.replace(".", "-")


def _channel(topic: Topic) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in topic.settings.items():
        if name == "cleanup.policy":
            settings[name] = value.split(",")
        elif name in _NUMBERS:
            settings[name] = int(value)
    extensions = {f"x-{n.replace('.', '-')}": v for n, v in topic.settings.items() if n not in settings}
    return {
        "address": topic.name,
        "title": topic.name,
        "description": topic.purpose,
        "servers": [{"$ref": "#/servers/kafka"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _messages(topic)},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": settings,
                "bindingVersion": KAFKA_BINDING,
            }
        },
        "x-producer": topic.producer,
        "x-consumers": list(topic.consumers),
        **extensions,
    }


def _door(raw: list[Topic]) -> dict[str, Any]:
    return {
        "address": "/v1/events/{stream}",
        "title": "The HTTP door",
        "description": "CloudEvents 1.0 (binary, structured, batch) or plain JSON, each event answered for "
        "itself.",
        "servers": [{"$ref": "#/servers/door"}],
        "parameters": {"stream": {"description": "A raw topic.", "enum": [topic.name for topic in raw]}},
        "messages": {
            name: {"$ref": f"#/components/messages/{name}"} for topic in raw for name in _messages(topic)
        },
    }


def _operation(topic: Topic) -> dict[str, Any]:
    return {
        "action": "receive" if topic.unknown_fields == "refuse" else "send",
        "summary": topic.purpose,
        "channel": {"$ref": f"#/channels/{_id(topic.name)}"},
        "messages": [{"$ref": f"#/channels/{_id(topic.name)}/messages/{name}"} for name in _messages(topic)],
    }


def _messages(topic: Topic) -> dict[str, dict[str, Any]]:
    """Its messages by id; one of opaque bytes for a topic without contracts."""
    key = {"kafka": {"key": {"type": "string", "description": topic.key}, "bindingVersion": KAFKA_BINDING}}
    if not topic.contracts:
        return {
            _id(topic.name): {
                "name": topic.name,
                "title": topic.purpose,
                "contentType": "application/vnd.apache.arrow.stream",
                "headers": _headers(),
                "payload": {"type": "string", "description": "an Arrow IPC stream", "format": "binary"},
                "bindings": key,
            }
        }
    found: dict[str, dict[str, Any]] = {}
    for contract, example in zip(topic.contracts, topic.examples, strict=True):
        is_announced = issubclass(contract, Announcement)
        kind = type_of(contract) if is_announced else f"{topic.name}.v{topic.versions[-1].number}"
        said: dict[str, Any] = {
            "name": kind,
            "title": contract.__name__,
            "contentType": "application/json",
            "payload": {"$ref": f"#/components/schemas/{contract.__name__}"},
            "bindings": key,
            "examples": [{"payload": example}],
        }
        if is_announced:
            said["headers"] = _headers()
        found[_id(kind)] = said
    return found


def _headers() -> dict[str, Any]:
    return {"type": "object", "properties": _CLOUD_EVENT, "required": _REQUIRED_HEADERS}


def text() -> str:
    """The document as it stands in the file."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description="Keep schemas/asyncapi.json in step with the contracts.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file differs")
    if not parser.parse_args().check:
        FILE.write_text(text(), encoding="utf-8")
        return 0
    there = FILE.read_text(encoding="utf-8") if FILE.exists() else ""
    if there == text():
        return 0
    print(f"{FILE.name} differs from the contracts; run python -m schemas.asyncapi", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
