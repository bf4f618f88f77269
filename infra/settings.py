"""Settings from file and environment, and where each value came from.

Order of precedence: environment (`TIDEMILL_KAFKA__BOOTSTRAP_SERVERS=…`, sections joined by two underscores),
then a TOML file (`--config`, or `TIDEMILL_CONFIG`, or `tidemill.toml` in the working directory), then the
defaults in `settings_model.py`. Relative paths in the file, and the default home, start at the file's folder;
relative paths in the environment start at the working directory. `describe` is what `tidemill config` prints.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, SettingsError

from schemas.errors import InvalidConfiguration

from .settings_model import (
    Broker,
    Doctor,
    Door,
    Kafka,
    Log,
    Metrics,
    Page,
    Paths,
    SchemaRegistry,
    Settings,
    Store,
    Traces,
    Trainer,
    Worker,
)

__all__ = [
    "load",
    "describe",
    "Described",
    "Settings",
    "Paths",
    "Kafka",
    "SchemaRegistry",
    "Broker",
    "Worker",
    "Trainer",
    "Store",
    "Page",
    "Metrics",
    "Door",
    "Traces",
    "Log",
    "Doctor",
]

PREFIX = "TIDEMILL_"
CONFIG_VARIABLE = "TIDEMILL_CONFIG"
SET_UP_VARIABLE = "TIDEMILL_VENV"
"""Read by `infra/bootstrap.py` before there is anything else: no setting, and no mistake either."""
DEFAULT_FILE = "tidemill.toml"
SECTION_MARK = "__"


@dataclass(frozen=True, kw_only=True)
class Described:
    """One line of `tidemill config`."""

    name: str
    value: str
    """As text; a secret is masked."""
    source: str
    """`default`, `FILE:LINE`, or `env NAME`."""


def load(config: Path | None = None) -> Settings:
    """Settings from `config` (or the default file, if there is one), the environment and the defaults.

    Raises InvalidConfiguration naming every wrong key or value, where it stands, and what would be right.
    """
    file = _config_file(config)
    base = file.parent if file else Path.cwd()
    sources: dict[str, str] = {}
    problems: list[str] = []

    from_file, text = _read_toml(file)
    from_env = _read_environment()
    _check_names(from_file, Settings, (), lambda key: _place(file, text, key), problems)
    problems += _unknown_variables()

    merged: dict[str, Any] = {}
    for values, start, place in (
        (from_file, base, lambda key: _place(file, text, key)),
        (from_env, Path.cwd(), lambda key: f"env {_variable(key)}"),
    ):
        for key, field, value in _leaves(values, Settings):
            sources[".".join(key)] = place(key)
            section = merged
            for part in key[:-1]:
                section = section.setdefault(part, {})
            section[key[-1]] = _anchored(value, field, start)
    merged.setdefault("paths", {}).setdefault("home", base / Paths.model_fields["home"].default)

    try:
        settings = Settings(**merged)
    except ValidationError as error:
        for detail in error.errors():
            key = tuple(str(part) for part in detail["loc"])
            if detail["type"] == "extra_forbidden":
                continue  # named above, with its place and the nearest valid name
            name = ".".join(key)
            place = next((s for n, s in sources.items() if name == n or name.startswith(f"{n}.")), "")
            message = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{name}: {message}" + (f" ({place})" if place else ""))
    else:
        if not problems:
            settings._sources.update(sources)
            settings._file = file
            return settings
    raise InvalidConfiguration("; ".join(problems))


def describe(settings: Settings) -> list[Described]:
    """Every setting with its value and source, in the order of declaration. Secrets are masked."""
    lines = []
    for key, _, value in _leaves(dict(settings), Settings):
        name = ".".join(key)
        fallback = "paths.home" if key[0] == "paths" and key != ("paths", "home") else "default"
        lines.append(Described(name=name, value=_shown(value), source=settings._sources.get(name, fallback)))
    return lines


def _config_file(named: Path | None) -> Path | None:
    """The file to read, absolute; None if none is named and the default one is not there."""
    if named is None and (by_env := os.environ.get(CONFIG_VARIABLE)):
        named = Path(by_env)
    if named is not None:
        if not named.expanduser().is_file():
            raise InvalidConfiguration(
                f"there is no settings file {named}; correct --config or {CONFIG_VARIABLE}"
            )
        return named.expanduser().absolute()
    default = Path(DEFAULT_FILE).absolute()
    return default if default.is_file() else None


def _read_toml(file: Path | None) -> tuple[dict[str, Any], str]:
    if file is None:
        return {}, ""
    try:
        text = file.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except (OSError, ValueError) as error:
        raise InvalidConfiguration(f"{file} cannot be read as TOML: {error}") from error


def _read_environment() -> dict[str, Any]:
    source = EnvSettingsSource(
        Settings,
        env_prefix=PREFIX,
        env_nested_delimiter=SECTION_MARK,
        case_sensitive=False,
        env_ignore_empty=True,
    )
    try:
        return source()
    except SettingsError as error:
        raise InvalidConfiguration(f"environment: {error} ({error.__cause__})") from error


def _unknown_variables() -> list[str]:
    known = {_variable(key) for key, _, _ in _leaves(None, Settings)}
    sections = {name for name, field in Settings.model_fields.items() if _section_of(field)}
    # A whole section may be given as JSON.
    sections = {PREFIX + name.upper() for name in sections} | {CONFIG_VARIABLE, SET_UP_VARIABLE}
    problems = []
    for name in os.environ:
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known | sections:
            continue
        if any(upper.startswith(f"{table}{SECTION_MARK}") for table in known):
            continue  # a key of a free table, such as broker.settings
        problems.append(f"unknown environment variable {name}{_nearest(upper, known | sections)}")
    return problems


def _check_names(
    values: Mapping[str, Any],
    model: type[BaseModel],
    above: tuple[str, ...],
    place: Callable[[tuple[str, ...]], str],
    problems: list[str],
) -> None:
    for name, value in values.items():
        key = (*above, name)
        field = model.model_fields.get(name)
        if field is None:
            everywhere = {".".join(leaf) for leaf, _, _ in _leaves(None, Settings)} | set(
                Settings.model_fields
            )
            here = {".".join((*above, sibling)) for sibling in model.model_fields}
            near = _nearest(".".join(key), here, everywhere)
            problems.append(f"unknown setting {'.'.join(key)} ({place(key)}){near}")
        elif (section := _section_of(field)) and isinstance(value, Mapping):
            _check_names(value, section, key, place, problems)


def _nearest(name: str, *candidates: set[str]) -> str:
    """The nearest valid name, from the first set that has one; a name without its section finds that too."""
    for valid in candidates:
        matches = get_close_matches(name, sorted(valid), n=1, cutoff=0.6)
        if not matches:
            by_last = {full.rsplit(".", 1)[-1]: full for full in sorted(valid)}
            matches = [
                by_last[last] for last in get_close_matches(name.rsplit(".", 1)[-1], sorted(by_last), n=1)
            ]
        if matches:
            return f"; did you mean {matches[0]}?"
    return "; `tidemill config` lists all"


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _leaves(
    values: Mapping[str, Any] | None, model: type[BaseModel], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo, Any]]:
    """(key, field, value) of each known setting that `values` has; of every setting if `values` is None."""
    for name, field in model.model_fields.items():
        if values is not None and name not in values:
            continue
        value = None if values is None else values[name]
        section = _section_of(field)
        if section is None:
            yield (*above, name), field, value
        elif values is None:
            yield from _leaves(None, section, (*above, name))
        elif isinstance(value, BaseModel):
            yield from _leaves(dict(value), section, (*above, name))
        elif isinstance(value, Mapping):
            yield from _leaves(value, section, (*above, name))
        else:
            yield (*above, name), field, value  # not a table: the model says so


def _anchored(value: Any, field: FieldInfo, start: Path) -> Any:
    """A relative path, made absolute where it was written."""
    kinds = (field.annotation, *get_args(field.annotation))
    is_path = any(kind is Path or Path in get_args(kind) for kind in kinds)
    return start / Path(value).expanduser() if is_path and isinstance(value, str) and value else value


def _variable(key: tuple[str, ...]) -> str:
    return PREFIX + SECTION_MARK.join(key).upper()


def _place(file: Path | None, text: str, key: tuple[str, ...]) -> str:
    """FILE:LINE where `key` is set; the file alone if the line is not found."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            table = _dotted(header[1])
            if table == key:
                return f"{file}:{number}"
        elif (entry := re.match(r"""\s*([A-Za-z0-9_."'-]+?)\s*=""", line)) and (
            *table,
            *_dotted(entry[1]),
        ) == key:
            return f"{file}:{number}"
    return str(file)


def _dotted(name: str) -> tuple[str, ...]:
    return tuple(part.strip(" \"'") for part in name.split("."))


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "********"
    if value is None:
        return "(unset)"
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value)
