"""Writers' schemas by their ids: from files, or from a registry that speaks Confluent's API.

An id names one schema for ever, so what was found is kept. An id that nobody knows is asked for again only
after a while: a producer may register its schema a moment late, and a flood of wrong ids must not be one of
requests. A registry that is away decides nothing: that is Retryable, and the records wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import httpx
import structlog

from infra.settings import SchemaRegistry as Options
from schemas.errors import InvalidConfiguration, Retryable
from streams.decode.avro import NotASchema, Writers, WriterSchema, parse
from streams.pipeline import Pipeline

log = structlog.get_logger(__name__)

_AT_ONCE = 8
_ACCEPT = "application/vnd.schemaregistry.v1+json"


class RegistryAway(Retryable):
    """The schema registry does not answer as it should; the same question may be answered later."""


def writers_for(pipeline: Pipeline, options: Options) -> Writers | None:
    """Where this pipeline's workers find writers' schemas; None where nothing is configured.

    Raises:
        InvalidConfiguration: a source declares Avro, and no registry or folder is configured.
    """
    if options.url is not None or options.folder is not None:
        return SchemaRegistry(options).schemas
    for source in pipeline.sources().values():
        if source.records == "avro":
            raise InvalidConfiguration(
                f'{source.place}: source {source.topic} says records="avro", but no schema can be found: '
                "set schema_registry.url or schema_registry.folder"
            )
    return None


class SchemaRegistry:
    """Finds schemas and remembers them. Safe to ask from one thread at a time."""

    def __init__(self, options: Options, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._now_s = now_s
        self._known: dict[int, WriterSchema] = {}
        self._unknown: dict[int, float] = {}
        auth = (options.username, options.password.get_secret_value()) if options.password else None
        self._client = httpx.Client(
            auth=auth,  # type: ignore[arg-type]  (a user's name goes with a password: the settings say so)
            headers={"Accept": _ACCEPT},
            timeout=options.timeout_ms / 1000,
        )

    def schemas(self, numbers: Collection[int]) -> Mapping[int, WriterSchema | None]:
        """The schemas of these ids; None for an id that nobody knows, or whose schema is none of a record.

        Raises:
            RegistryAway: the registry does not answer.
        """
        again_s = self._now_s() - self._options.unknown_again_ms / 1000
        asked = [n for n in numbers if n not in self._known and self._unknown.get(n, again_s - 1) < again_s]
        if asked:
            with ThreadPoolExecutor(min(_AT_ONCE, len(asked))) as pool:
                for number, text in zip(asked, pool.map(self._find, asked), strict=True):
                    self._take(number, text)
        return {number: self._known.get(number) for number in numbers}

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _take(self, number: int, text: str | None) -> None:
        try:
            if text is not None:
                self._known[number] = parse(text)
                self._unknown.pop(number, None)
                return
        except NotASchema as why:
            log.warning("a schema of no record", id=number, why=str(why))
        self._unknown[number] = self._now_s()

    def _find(self, number: int) -> str | None:
        """A schema's text; None if there is none of that id."""
        if number < 0:
            return None
        folder = self._options.folder
        if folder is not None and (text := _read(folder / f"{number}.avsc")) is not None:
            return text
        return None if self._options.url is None else self._ask(number)

    def _ask(self, number: int) -> str | None:
        url = f"{str(self._options.url).rstrip('/')}/schemas/ids/{number}"
        try:
            answer = self._client.get(url)
            if answer.status_code == HTTPStatus.NOT_FOUND:
                return None
            answer.raise_for_status()
            said = answer.json()
            if said.get("schemaType", "AVRO") != "AVRO":
                return None
            return str(said["schema"])
        except httpx.HTTPStatusError as error:
            raise RegistryAway(
                f"the schema registry answers {error.response.status_code} to {url}; see its log, and "
                "schema_registry.username and password"
            ) from error
        except (httpx.HTTPError, ValueError, KeyError, AttributeError) as error:
            raise RegistryAway(
                f"the schema registry at {url} does not answer ({error or type(error).__name__}); is "
                "schema_registry.url right, and does it run?"
            ) from error


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise RegistryAway(f"the schema file {file} cannot be read: {error}") from error
