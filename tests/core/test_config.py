"""Configs survive the way through JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from core.config import from_dict, to_dict


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    rate: float = 0.5
    parts: tuple[Inner, ...] = ()


def test_round_trip_through_json_gives_an_equal_config():
    config = Outer(Inner((3,), "x"), 1e-4, (Inner(), Inner((5, 6))))
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


@dataclass(frozen=True)
class Other:
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None


@dataclass(frozen=True)
class Either:
    part: Inner | Other


@pytest.mark.parametrize("part", [Inner((3,)), Other((3,))])
def test_a_choice_of_dataclasses_comes_back_as_the_one_it_was(part):
    values = json.loads(json.dumps(to_dict(Either(part))))
    assert values == {"part": {"type": type(part).__name__, "sizes": [3], "name": None}}
    assert from_dict(Either, values) == Either(part)
    assert type(from_dict(Either, values).part) is type(part)


@pytest.mark.parametrize("found", [{"type": "Outer"}, {}])
def test_an_unknown_choice_is_named(found):
    name = found.get("type")
    with pytest.raises(ValueError, match=rf"config\.part: unknown type {name!r}, known are Inner"):
        from_dict(Either, {"part": found})


def test_unknown_and_missing_keys_are_named():
    values = to_dict(Outer())
    values["inner"]["colour"] = values["inner"].pop("name")
    with pytest.raises(ValueError, match=r"config\.inner: unknown keys \['colour'\].*\['name'\]"):
        from_dict(Outer, values)
