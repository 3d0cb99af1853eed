"""How options are declared: each once, alone or in a group that several commands have.

A group is a dataclass whose fields are options. A command takes it as one parameter, and `with_groups` makes it a
command of the options themselves.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, get_type_hints

import typer

# The panels of the help, in the order in which a command's options come.
WHAT, COMPARED, MUCH = "What to make", "What to compare", "How much to measure"
WITH, HOW, WHERE = "Acceleration", "Model and machine", "Output"


def whole(least: int | None = None, most: int | None = None) -> dict[str, Any]:
    """A whole number within bounds."""
    return _bounded(int, "a whole number", "N", least, most)


def number(least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """A number within bounds."""
    return _bounded(float, "a number", "X", least, most)


def _bounded(kind: type, words: str, metavar: str, least: float | None, most: float | None) -> dict[str, Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} is not {words}") from error
        # Written so that what is no number at all is not within bounds either.
        low, high = least is None or value >= least, most is None or value <= most
        if not (low and high):
            nearest = most if low else least
            raise typer.BadParameter(f"{text} is not possible; the nearest that works is {nearest}")
        return value

    # The bounds are shown in the help, and not held by typer where there is a parser.
    return {"parser": parse, "metavar": metavar, "min": least, "max": most}


def option(panel: str, help_text: str, *names: str, **rules: Any) -> Any:
    """An option in a panel of the help; its default is not shown, since left out means decided later."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **rules)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of its groups in their places, as typer reads them from a signature."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        group = groups.get(parameter.name)
        if group is None:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        inner = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(field.name, parameter.kind, default=field.default, annotation=inner[field.name])
            for field in dataclasses.fields(group)
        ]
    order = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]

    @wraps(command)
    def taken_apart(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        command(**given)

    vars(taken_apart)["__signature__"] = inspect.Signature(order)
    taken_apart.__annotations__ = {parameter.name: parameter.annotation for parameter in order}
    return taken_apart


def given_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command's parameters, groups taken apart, those that the user gave."""
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        flat |= vars(value) if dataclasses.is_dataclass(value) else {name: value}
    return {name: value for name, value in flat.items() if value is not None and value is not False}
