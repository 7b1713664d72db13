"""Flags made from settings dataclasses, so that a setting is declared once, where it is used."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection
from typing import Any, get_args, get_type_hints

import typer

Command = Callable[..., None]


def flags_of(*settings: type, leave_out: Collection[str] = ()) -> Callable[[Command], Command]:
    """A decorator that adds one ``--flag`` per field of ``settings`` to the options a function declares.

    The function is called with one dict per class of ``settings``, by field name, holding the flags that were
    given, and its own options by keyword. A flag that was not given is not in the dict, so that the function
    can look elsewhere before it takes the default. ``field.metadata`` may hold ``help`` and ``panel``,
    and ``one_way`` for a switch without a ``--no-`` form. A field that two classes share is one flag and goes
    to both.
    """
    wanted = {kind: [f for f in dataclasses.fields(kind) if f.name not in leave_out] for kind in settings}

    def decorate(function: Command) -> Command:
        hints = get_type_hints(function)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        added: dict[str, inspect.Parameter] = {}
        for kind, fields in wanted.items():
            kinds = get_type_hints(kind)
            for field in fields:
                added.setdefault(field.name, _parameter(field, kinds[field.name]))

        def command(**values: Any) -> None:
            given = [
                {f.name: values[f.name] for f in fields if values[f.name] is not None}
                for fields in wanted.values()
            ]
            function(*given, **{parameter.name: values[parameter.name] for parameter in own})

        parameters = [*own, *added.values()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def _parameter(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    text, default = field.metadata.get("help", ""), field.default
    if default is not dataclasses.MISSING and default not in (None, ""):
        shown = ("on" if default else "off") if isinstance(default, bool) else default
        text = f"{text} \\[default: {shown}]"  # a bare [ would begin markup
    panel = field.metadata.get("panel")
    option = typer.Option(
        None, f"--{field.name.replace('_', '-')}", help=text, rich_help_panel=panel, show_default=False
    )
    if bool in (kind, *get_args(kind)) and not field.metadata.get("one_way"):
        option = typer.Option(None, help=text, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None
    )
