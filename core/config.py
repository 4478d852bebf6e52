"""Frozen dataclasses to plain dictionaries and back, so that a checkpoint can carry its config.

Where a field may hold one of several dataclasses (its hint is a union of them), its dictionary says
under the key "type" which one it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
TYPE = "type"


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
    hints = get_type_hints(type(config))
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        tag = {TYPE: type(value).__name__} if _choices(hints[field.name]) else {}
        values[field.name] = {**tag, **_plain(value)} if tag else _plain(value)
    return values


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Return the dataclass `kind` that `to_dict` made `values` of.

    Args:
        kind: A dataclass whose fields are JSON values, tuples of them, such dataclasses or unions
            of them.
        values: One entry per field; none may be missing, so that no default of today silently
            stands in for a choice of yesterday.
        where: What to call the values in an error.

    Raises:
        ValueError: If a key is unknown or missing, or a type is not of the union.
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


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted names."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _choices(hint: Any) -> dict[str, type]:
    """Return the dataclasses of a union by name; none for any other hint."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return {k.__name__: k for k in kinds if dataclasses.is_dataclass(k) and isinstance(k, type)}


def _typed(hint: Any, value: Any, where: str) -> Any:
    if choices := _choices(hint):
        found = value.get(TYPE)
        if found not in choices:
            raise ValueError(
                f"{where}: unknown type {found!r}, known are {', '.join(choices)}; it was written "
                "by another version of this program"
            )
        values = {key: item for key, item in value.items() if key != TYPE}
        return from_dict(choices[found], values, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return tuple(_typed(item, element, where) for element in value)
    return value
