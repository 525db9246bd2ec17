"""Config dataclasses as flags: names, help, precedence, refusals."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from scanfield.cli.config_flags import add_config_flags, attribute_docstrings, flag_values, read_config
from scanfield.cli.parser import Parser
from scanfield.errors import InputError, ScanfieldError


@dataclass(frozen=True)
class Grid:
    """A nested part."""

    finest_mm: float = 1.5
    """voxel size of the finest level,
    in mm"""


@dataclass(frozen=True)
class Config:
    """Settings."""

    steps: int = 1000
    """optimisation steps (100 % of them)"""
    learning_rate: float = 1e-3
    """Adam's rate"""
    samples: int | None = None
    """points per ray"""
    kind: Literal["sine", "relu"] = "sine"
    """activation"""
    anneal: bool = True
    """coarse to fine"""
    widths: tuple[int, ...] = (64, 64)
    """hidden layers"""
    grid: Grid = field(default_factory=Grid)
    """its grid"""


def parse(*argv, base=None, file=None):
    parser = Parser("scanfield try", "")
    base = Config() if base is None else base
    add_config_flags(parser, Config, base, "settings")
    return read_config(Config, base, file, flag_values(parser.parse(argv)))


def test_no_flags_keep_the_preset():
    base = Config(steps=7)
    assert parse(base=base) == base


def test_every_kind_of_field_has_a_flag():
    config = parse(
        *("--steps", "5", "--learning-rate", "1e-2", "--samples", "48", "--kind", "relu", "--no-anneal"),
        *("--widths", "32", "16", "8", "--grid.finest-mm", "0.5"),
    )
    expected = Config(
        steps=5, learning_rate=0.01, samples=48, kind="relu", anneal=False, widths=(32, 16, 8), grid=Grid(finest_mm=0.5)
    )
    assert config == expected


def test_none_is_written_none():
    assert parse("--samples", "none", base=Config(samples=3)).samples is None


def test_flags_go_before_the_file_and_the_file_before_the_preset(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"steps": 20, "learning_rate": 0.5, "grid": {"finest_mm": 3}}')
    config = parse("--steps", "30", base=Config(steps=10, kind="relu"), file=str(path))
    assert (config.steps, config.learning_rate, config.kind, config.grid.finest_mm) == (30, 0.5, "relu", 3.0)


def test_help_shows_the_docstring_and_the_presets_value(capsys):
    parser = Parser("scanfield try", "")
    add_config_flags(parser, Config, Config(steps=77), "settings")
    text = " ".join(parser.format_help().split())
    assert "optimisation steps (100 % of them) (default: 77)" in text
    assert "--grid.finest-mm X" in text and "voxel size of the finest level, in mm (default: 1.5)" in text
    assert "--samples N|none" in text and "(default: none)" in text
    assert "--kind sine|relu" in text and "(default: 64 64)" in text


def test_docstrings_are_those_below_the_fields():
    assert attribute_docstrings(Grid) == {"finest_mm": "voxel size of the finest level, in mm"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stps", "5"], r"unknown option '--stps' \(did you mean '--steps'\?\)"),
        (["--steps", "five"], "--steps: expected a whole number, got 'five'"),
        (["--steps", "1.5"], "--steps: expected a whole number"),
        (["--learning-rate", "nan"], "--learning-rate: expected a number, got 'nan'"),
        (["--learning-rate", "inf"], "--learning-rate: expected a number"),
        (["--kind", "sin"], r"--kind: 'sin' is not one of sine, relu \(did you mean 'sine'\?\)"),
        (["--step", "5"], "unknown option '--step'"),  # no abbreviations: a new field must not change old commands
    ],
)
def test_wrong_flags_are_refused_by_name(argv, message):
    with pytest.raises(InputError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"stepz": 1}', r"unknown configuration key 'stepz' \(did you mean 'steps'\?\)"),
        ('{"steps": "many"}', "expected int, got 'many'"),
        ('{"learning_rate": NaN}', "NaN is not a JSON number"),
        ("{", "not valid JSON"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        parse(file=str(path))
    assert str(path) in caught.value.where


def test_a_missing_file_is_refused():
    with pytest.raises(InputError, match="cannot be read: No such file"):
        parse(file="nowhere.json")


def test_a_field_that_hides_an_option_of_the_command_is_a_fault_of_the_method():
    parser = Parser("scanfield try", "")
    parser.add_argument("--steps")
    with pytest.raises(ScanfieldError, match=r"Config\.steps: --steps is an option of the command itself"):
        add_config_flags(parser, Config, Config(), "settings")
