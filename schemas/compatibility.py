"""What changed in the contracts since they were last released, in words, and whether it breaks anybody.

    python -m schemas.compatibility           compares with `schemas/released.json`; exit 1 if one breaks
    python -m schemas.compatibility --accept  makes today's contracts the released ones

A break is a field that is gone, a new field that must be there, a value that was allowed and is refused now
(a narrower type, bound, length or list of values), or a type that is gone: whoever wrote the old contract can
be read no more, and records of it lie on the topics. In a topic whose compatibility is `full` a wider value
is a break as well, since older readers refuse it. What is meant to break gets a new version of the type.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import topics
from .json_schema import documents

RELEASED = Path(__file__).with_name("released.json")
_SAID_ONLY = ("description", "examples", "$schema", "default", "discriminator")
_LEAST = {"minimum": "least", "exclusiveMinimum": "least (exclusive)", "minLength": "least length"}
_LEAST |= {"minItems": "least number of items"}
_MOST = {"maximum": "most", "exclusiveMaximum": "most (exclusive)", "maxLength": "most length"}
_MOST |= {"maxItems": "most number of items"}
_EXACT = {"pattern": "pattern", "multipleOf": "multiple", "format": "format"}

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `contract` is a CloudEvents type or a raw topic's version; `where` a field in it."""

    contract: str
    where: str
    words: str
    breaks: bool

    def __str__(self) -> str:
        at = f" {self.where}" if self.where else ""
        return f"{'BREAK' if self.breaks else 'fine '} {self.contract}{at}: {self.words}"


def changes(before: Mapping[str, Schema], after: Mapping[str, Schema]) -> list[Change]:
    """Every difference between two sets of JSON Schemas, each by its file name; the breaks first."""
    found: list[Change] = []
    for name in sorted(before.keys() | after.keys()):
        contract = name.removesuffix(".json")
        if name not in after:
            found.append(Change(contract, "", "the type is gone", breaks=True))
        elif name not in before:
            found.append(Change(contract, "", "a new type", breaks=False))
        else:
            full = _is_full(after[name])
            pair = _Pair(contract, before[name], after[name], widening_breaks=full)
            found += dict.fromkeys(pair.compare(before[name], after[name], ""))
    return sorted(found, key=lambda change: not change.breaks)


def essence(schema: Any) -> Any:
    """A schema without what only explains it."""
    if isinstance(schema, Mapping):
        # A field may bear such a name as well: under "properties" nothing is left out.
        return {
            key: {name: essence(one) for name, one in value.items()}
            if key in ("properties", "$defs")
            else essence(value)
            for key, value in schema.items()
            if key not in _SAID_ONLY
        }
    return [essence(one) for one in schema] if isinstance(schema, list) else schema


def _is_full(schema: Schema) -> bool:
    """Whether a topic of the contract promises older readers that they can read newer records."""
    named = [topics.declared(name) for name in schema.get("topics", ())]
    return any(t is not None and t.versions[-1].compatibility == "full" for t in named)


class _Pair:
    """Two versions of one contract."""

    def __init__(self, contract: str, before: Schema, after: Schema, *, widening_breaks: bool) -> None:
        self._contract, self._widening_breaks = contract, widening_breaks
        self._before, self._after = before.get("$defs", {}), after.get("$defs", {})
        self._seen: set[tuple[str, str]] = set()

    def compare(self, before: Schema, after: Schema, where: str) -> Iterator[Change]:
        """Differences between two schemas at one place."""
        names = (str(before.get("$ref", "")), str(after.get("$ref", "")))
        if all(names):
            if names in self._seen:
                return
            self._seen.add(names)
        old = {_kind(s): s for s in _alternatives(before, self._before)}
        new = {_kind(s): s for s in _alternatives(after, self._after)}
        if len(old) == len(new) == 1 and {_bare(k) for k in old} == {_bare(k) for k in new}:
            new = dict(zip(old, new.values(), strict=True))  # renamed, as a struct may be
        for kind, schema in old.items():
            if (match := new.get(kind)) is None and kind == "integer":
                match = new.get("number")
                if match is not None:
                    yield self._wider(where, "was whole numbers and takes all numbers now")
            if match is None:
                yield self._narrower(where, f"took {kind} and takes it no more; it takes {', '.join(new)}")
            else:
                yield from self._same_kind(schema, match, where)
        for kind in new.keys() - old.keys():
            if not (kind == "number" and "integer" in old) and not (kind == "integer" and "number" in old):
                yield self._wider(where, f"takes {kind} now")

    def _same_kind(self, before: Schema, after: Schema, where: str) -> Iterator[Change]:
        yield from self._values(before, after, where)
        yield from self._bounds(before, after, where)
        yield from self._fields(before, after, where)
        for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
            old, new = before.get(key), after.get(key)
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                yield from self.compare(old, new, where + mark)
        old, new = before.get("prefixItems", []), after.get("prefixItems", [])
        if len(old) != len(new):
            yield self._narrower(where, f"had {len(old)} places and has {len(new)}")
        for at, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from self.compare(one, other, f"{where}[{at}]")

    def _values(self, before: Schema, after: Schema, where: str) -> Iterator[Change]:
        old, new = _allowed(before), _allowed(after)
        if old == new:
            return
        if old is None:
            yield self._narrower(where, f"took any value and takes only {_listed(new)}")
        elif new is None:
            yield self._wider(where, f"takes any value, and not only {_listed(old)}")
        else:
            if gone := old - new:
                yield self._narrower(where, f"takes {_listed(gone)} no more")
            if more := new - old:
                yield self._wider(where, f"takes {_listed(more)} as well")

    def _bounds(self, before: Schema, after: Schema, where: str) -> Iterator[Change]:
        for key, words in (_LEAST | _MOST | _EXACT).items():
            old, new = before.get(key), after.get(key)
            if old == new:
                continue
            what = f"{words}: {_or_none(old)} before, {_or_none(new)} now"
            if old is None or (new is not None and (key in _EXACT or (new > old) == (key in _LEAST))):
                yield self._narrower(where, what)
            else:
                yield self._wider(where, what)

    def _fields(self, before: Schema, after: Schema, where: str) -> Iterator[Change]:
        old, new = before.get("properties", {}), after.get("properties", {})
        had, has = set(before.get("required", ())), set(after.get("required", ()))
        for name in old.keys() - new.keys():
            yield self._change(_at(where, name), "the field is gone", breaks=True)
        for name in new.keys() - old.keys():
            if name in has:
                yield self._change(_at(where, name), "a new field that must be there", breaks=True)
            else:
                yield self._change(_at(where, name), "a new field that may be left out", breaks=False)
        for name in sorted(old.keys() & new.keys()):
            if name in has - had:
                yield self._narrower(_at(where, name), "could be left out and must be there now")
            elif name in had - has:
                yield self._wider(_at(where, name), "may be left out now")
            yield from self.compare(old[name], new[name], _at(where, name))
        if (
            before.get("additionalProperties", True) is not False
            and after.get("additionalProperties") is False
        ):
            yield self._narrower(where, "refuses fields that it does not know, and took them before")

    def _narrower(self, where: str, words: str) -> Change:
        return self._change(where, words, breaks=True)

    def _wider(self, where: str, words: str) -> Change:
        return self._change(where, words, breaks=self._widening_breaks)

    def _change(self, where: str, words: str, *, breaks: bool) -> Change:
        return Change(self._contract, where, words, breaks)


def _alternatives(schema: Schema, definitions: Schema) -> Iterator[Schema]:
    """What a value may be: references followed, `anyOf` and lists of types taken apart."""
    if "$ref" in schema:
        yield from _alternatives(definitions[str(schema["$ref"]).rpartition("/")[2]], definitions)
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _alternatives(one, definitions)
    elif isinstance(schema.get("type"), list):
        for kind in schema["type"]:
            yield {**schema, "type": kind}
    else:
        yield schema


def _kind(schema: Schema) -> str:
    """By what an alternative is known in both versions."""
    if "type" not in schema:
        values = _allowed(schema)
        return "any value" if values is None else "listed values"
    if schema["type"] != "object":
        return str(schema["type"])
    tags = [
        f"{n}={p['enum'][0]}" for n, p in schema.get("properties", {}).items() if len(p.get("enum", ())) == 1
    ]
    return f"object {' '.join(tags) or schema.get('title', '')}".strip()


def _bare(kind: str) -> str:
    return kind.partition(" ")[0]


def _allowed(schema: Schema) -> set[str] | None:
    if "const" in schema:
        return {json.dumps(schema["const"])}
    return {json.dumps(value) for value in schema["enum"]} if "enum" in schema else None


def _listed(values: set[str] | None) -> str:
    return ", ".join(sorted(values or ()))


def _or_none(bound: object) -> str:
    return "none" if bound is None else str(bound)


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def released() -> dict[str, Any]:
    """The contracts as they were last released."""
    return json.loads(RELEASED.read_text(encoding="utf-8"))


def main() -> int:
    """Compare or accept; the exit code."""
    parser = argparse.ArgumentParser(description="Compare the contracts with the released ones.")
    parser.add_argument("--accept", action="store_true", help="today's contracts are the released ones")
    accept = parser.parse_args().accept
    today = essence(documents())
    found = changes(released(), today) if RELEASED.exists() else []
    for change in found:
        print(change)
    breaks = sum(change.breaks for change in found)
    if accept:
        RELEASED.write_text(json.dumps(today, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{len(today)} contracts are the released ones, {breaks} breaks among their changes")
        return 0
    print(f"{len(today)} contracts: {len(found)} changes since they were released, {breaks} of them breaks")
    if breaks:
        print(
            "declare a new version of the type beside the old one; or, if nobody has it yet, "
            "python -m schemas.compatibility --accept",
            file=sys.stderr,
        )
    return 1 if breaks else 0


if __name__ == "__main__":
    sys.exit(main())
