"""The reference is what the docstrings say now, and says it of everything that is public."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass

import pytest

from infra.command import reference


def test_the_pages_in_the_repository_are_those_that_are_made() -> None:
    made = reference.pages()
    found = {file.name: file.read_text(encoding="utf-8") for file in reference.FOLDER.glob("*.md")}
    assert found == made, "python -m infra.command.reference"


@pytest.mark.parametrize("page", reference.MODULES)
def test_everything_public_is_told_with_its_docstring(page: str) -> None:
    text = reference.pages()[f"{page}.md"]
    for name in reference.MODULES[page][1]:
        for each, value in reference.public(importlib.import_module(name)):
            assert f"### `{each}`" in text
            assert inspect.getdoc(value), f"{name}.{each} has no docstring"
    assert " at 0x" not in text


def test_a_docstring_becomes_markdown() -> None:
    @dataclass
    class Told:
        """One line.

        Args:
            first: what it is,
                on two lines.
            second: another.

        Raises:
            ValueError: never.
        """

        first: int
        """In metres."""
        second: str = ""

    text = reference._entry("Told", Told)
    assert "- `first`: what it is, on two lines." in text
    assert "Raises:\n\n- `ValueError`: never." in text
    assert "- `first`: In metres." in text
    assert 'class Told(first: int, second: str = "")' in text
