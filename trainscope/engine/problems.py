"""Turn what is wrong with a user's input into sentences: where, what was found, what was perhaps meant.

Knows nothing of rules: it is given names, choices and pydantic's errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' (did you mean X?)', or nothing where no choice is close."""
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or [
        choice for choice in known if choice.lower() == word.lower()
    ]
    return f" (did you mean {close[0]}?)" if close else ""


def shown_path(path: Path) -> str:
    """A path as short as it can be said from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def in_file(path: Path, problems: Iterable[str]) -> list[str]:
    """The problems, each with its file."""
    return [f"{shown_path(path)}: {problem}" for problem in problems]


def validation_problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each error of a pydantic model: dotted path, what is wrong, what was perhaps meant."""
    return [_problem(detail, model) for detail in error.errors(include_url=False)]


def _problem(detail: Any, model: type[BaseModel]) -> str:
    location = [part for part in detail["loc"] if part != "[key]"]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if detail["type"] == "extra_forbidden":
        name = str(location[-1])
        return f"{path}: unknown key{did_you_mean(name, _fields_at(model, location[:-1]))}"
    if detail["type"] == "missing":
        return f"{path}: missing"
    message = detail["msg"].removeprefix("Value error, ")
    shown = repr(detail.get("input"))
    # The message of a validator of ours names the value itself; pydantic's own does not.
    if detail["type"] == "value_error" or len(shown) > 60:
        return f"{path}: {message}" if path else message
    return f"{path}: {message}, found {shown}"


def _fields_at(model: type[BaseModel], location: list[str | int]) -> list[str]:
    """The field names of the model at a location; empty where the location leaves the models."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None or isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        if field is not None:
            current = _model_in(field.annotation)
    return list(current.model_fields) if current is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner)) is not None), None)
