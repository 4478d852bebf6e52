"""Frozen dataclasses to plain dictionaries and back, so that a checkpoint can carry its config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def check_literal(name: str, value: object, allowed: Any) -> None:
    """Refuse a value that is not one of a ``Literal``.

    Raises:
        ValueError: Naming what it is, what was given and what is allowed.
    """
    if value not in get_args(allowed):
        raise ValueError(
            f"{name} is {value!r}; allowed is {', '.join(map(repr, get_args(allowed)))}"
        )


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dictionaries of JSON values; tuples become lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Return the dataclass `kind` that `to_dict` made `values` of.

    Args:
        kind: A dataclass whose fields are JSON values, tuples of them, or such dataclasses.
        values: One entry per field; none may be missing, so that no default of today silently
            stands in for a choice of yesterday.
        where: What to call the values in an error.

    Raises:
        ValueError: If a key is unknown or missing.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown, missing = sorted(set(values) - set(names)), sorted(set(names) - set(values))
    if unknown or missing:
        raise ValueError(
            f"{where}: unknown keys {unknown}, missing keys {missing}; it was written by another "
            "version of this program"
        )
    return kind(**{name: _typed(hints[name], values[name], f"{where}.{name}") for name in names})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return tuple(_typed(item, element, where) for element in value)
    return value
