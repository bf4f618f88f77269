"""Whether a model fits the service that follows it: what it takes is given, and its answer is a chance.

Seen before any download. A model that does not fit would answer its own example well, and then fail each
question of the service.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import InvalidConfiguration
from ..model import Field, Manifest
from .errors import ModelUnfit

Inputs = Collection[str] | Mapping[str, str]
"""Columns that a service can give: their names, or each with its type (`string`, `float` or `int`)."""

_TAKEN_AS = {"string": {"string"}, "float": {"float"}, "int": {"int", "float"}}
"""What a column of each type may be taken as."""

_ANSWER = Field(name="probability", type="float")


def check_inputs(inputs: Inputs | None) -> None:
    """Raises InvalidConfiguration if that is no list of columns, or a type is unknown."""
    if isinstance(inputs, str):
        raise InvalidConfiguration("give the service's inputs as a list of columns, or as columns with types")
    if isinstance(inputs, Mapping):
        for name, kind in inputs.items():
            if kind not in _TAKEN_AS:
                raise InvalidConfiguration(
                    f"input {name} is said to be {kind!r}; a column is one of {', '.join(_TAKEN_AS)}"
                )


def check_fit(manifest: Manifest, inputs: Inputs | None) -> None:
    """See whether a service that gives these columns can use the model.

    Args:
        inputs: None: whatever the model takes is said to be given.

    Raises:
        ModelUnfit: it cannot; the message names each column.
    """
    if manifest.outputs != [_ANSWER]:
        given = ", ".join(f"{each.name} ({each.type})" for each in manifest.outputs) or "nothing"
        raise ModelUnfit(
            f"it answers with {given}; this client takes one column, {_ANSWER.name} ({_ANSWER.type}): "
            "update it, or follow another model"
        )
    if inputs is None:
        return
    if lacking := [each.name for each in manifest.inputs if each.name not in inputs]:
        raise ModelUnfit(
            f"it takes columns that this service cannot give: {', '.join(lacking)}; "
            f"it gives {', '.join(sorted(inputs)) or 'none'}"
        )
    if isinstance(inputs, Mapping):
        wrong = [
            f"{each.name} as {each.type}, and is given {inputs[each.name]}"
            for each in manifest.inputs
            if each.type not in _TAKEN_AS[inputs[each.name]]
        ]
        if wrong:
            raise ModelUnfit(f"it takes {'; '.join(wrong)}")
