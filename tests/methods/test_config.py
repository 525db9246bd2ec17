from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from scanfield.errors import InputError
from scanfield.methods import config


@dataclass(frozen=True)
class Grid:
    finest_mm: float = 1.0
    levels: int = 8


@dataclass(frozen=True)
class Config:
    steps: int = 100
    rate: float = 1e-3
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    widths: tuple[int, ...] = (64, 64)
    pair: tuple[float, float] = (0.9, 0.999)
    quick: bool = False
    label: str = ""
    grid: Grid = field(default_factory=Grid)

    @staticmethod
    def fast() -> Config:
        return Config(steps=10)

    @staticmethod
    def tiny() -> Config:
        return Config(steps=1)


def test_round_trip():
    value = Config(3, 0.5, "b", 7, (1, 2, 3), (0.5, 0.25), True, "μ", Grid(0.25, 2))
    assert config.from_json(Config, json.loads(json.dumps(config.to_json(value)))) == value
    assert config.from_json(Config, json.loads(json.dumps(config.to_json(Config())))) == Config()


def test_absent_keys_keep_the_base_also_inside():
    base = Config(steps=5, grid=Grid(0.1, 3))
    assert config.from_json(Config, {"grid": {"levels": 4}}, base=base) == Config(steps=5, grid=Grid(0.1, 4))
    assert config.from_json(Config, {}) == Config()


def test_an_integer_is_a_float_but_not_the_other_way_round():
    assert config.from_json(Config, {"rate": 1}).rate == 1.0
    assert type(config.from_json(Config, {"rate": 1}).rate) is float


def test_null_where_it_is_allowed():
    assert config.from_json(Config, {"limit": None}, base=Config(limit=3)).limit is None


@pytest.mark.parametrize(
    ("facts", "where"),
    [
        ({"steps": 1.5}, "steps"),
        ({"steps": "1"}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": None}, "steps"),
        ({"rate": "fast"}, "rate"),
        ({"rate": True}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"mode": "c"}, "mode"),
        ({"mode": ["a"]}, "mode"),
        ({"limit": 1.5}, "limit"),
        ({"widths": 64}, "widths"),
        ({"widths": [64, "x"]}, "widths"),
        ({"pair": [0.9]}, "pair"),
        ({"pair": [0.9, 0.99, 0.999]}, "pair"),
        ({"quick": 1}, "quick"),
        ({"label": 3}, "label"),
        ({"grid": 3}, "grid"),
        ({"grid": {"levels": "x"}}, "grid.levels"),
    ],
)
def test_wrong_values_name_their_key(facts, where):
    with pytest.raises(InputError) as caught:
        config.from_json(Config, facts, where="c.json")
    assert caught.value.where.startswith(f"c.json.{where}")


@pytest.mark.parametrize(("key", "known"), [("step", "steps"), ("wdths", "widths")])
def test_an_unknown_key_names_the_nearest(key, known):
    with pytest.raises(InputError, match=f"did you mean '{known}'"):
        config.from_json(Config, {key: 1})


@pytest.mark.parametrize("facts", [None, [], "steps", 3])
def test_a_configuration_is_an_object(facts):
    with pytest.raises(InputError, match="JSON object"):
        config.from_json(Config, facts)


def test_presets():
    assert config.preset(Config, "paper") == Config()
    assert (config.preset(Config, "fast").steps, config.preset(Config, "tiny").steps) == (10, 1)
    with pytest.raises(InputError, match="did you mean 'fast'"):
        config.preset(Config, "fats")
