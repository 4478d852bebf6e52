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


def test_unknown_and_missing_keys_are_named():
    values = to_dict(Outer())
    values["inner"]["colour"] = values["inner"].pop("name")
    with pytest.raises(ValueError, match=r"config\.inner: unknown keys \['colour'\].*\['name'\]"):
        from_dict(Outer, values)
