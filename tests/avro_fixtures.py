"""Avro records in Confluent's framing as producers write them, and a registry that serves their schemas."""

from __future__ import annotations

import io
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fastavro

from streams.decode.avro import WriterSchema, parse

READING = {
    "type": "record",
    "name": "Reading",
    "namespace": "tests",
    "fields": [
        {"name": "id", "type": ["null", "string"]},
        {"name": "at", "type": ["long", "null"]},
        {"name": "level", "type": ["null", "double"]},
        {"name": "count", "type": ["null", "long"]},
        {"name": "good", "type": ["null", "boolean"]},
        {"name": "note", "type": ["null", "string"]},
        {"name": "extra", "type": ["null", "double"]},
    ],
}


def avro_of(record: Mapping[str, Any], schema: Mapping[str, Any] = READING, *, number: int = 7) -> bytes:
    """One record in Confluent's framing."""
    sink = io.BytesIO()
    sink.write(struct.pack(">bi", 0, number))
    fastavro.schemaless_writer(sink, fastavro.parse_schema(dict(schema)), dict(record))
    return sink.getvalue()


def record_schema(**fields: Any) -> dict[str, Any]:
    """A schema of a record with these fields."""
    return {"type": "record", "name": "r", "fields": [{"name": n, "type": t} for n, t in fields.items()]}


class Known:
    """Schemas by id, at hand."""

    def __init__(self, **schemas: Mapping[str, Any]) -> None:
        self._schemas = {int(n.removeprefix("n")): parse(json.dumps(s)) for n, s in schemas.items()}

    def __call__(self, numbers: Any) -> dict[int, WriterSchema | None]:
        return {n: self._schemas.get(n) for n in numbers}


class Registry:
    """A server that answers as Confluent's API does; `asked` are the ids it was asked for."""

    def __init__(self, schemas: Mapping[int, str]) -> None:
        self.schemas = dict(schemas)
        self.asked: list[int] = []
        self.status: int | None = None
        self.url = ""

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        number = int(path.rpartition("/")[2])
        self.asked.append(number)
        if self.status is not None:
            return self.status, {"error_code": self.status, "message": "as the test wants"}
        if number not in self.schemas:
            return 404, {"error_code": 40403, "message": "Schema not found"}
        return 200, {"schema": self.schemas[number]}


@contextmanager
def registry(schemas: Mapping[int, str], *, port: int = 0) -> Iterator[Registry]:
    """A registry on the loopback interface, for the time of the block."""
    served = Registry(schemas)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, said = served.answer(self.path)
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
