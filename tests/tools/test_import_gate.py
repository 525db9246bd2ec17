"""The import gate sees what it is meant to see."""

from __future__ import annotations

import pytest

from import_gate import heavy_imports


def test_light_statements_pass_and_heavy_ones_are_named() -> None:
    assert heavy_imports("import scanfield") == []
    assert heavy_imports("import json, scipy") == ["scipy"]


def test_the_module_is_found_even_when_the_command_exits() -> None:
    assert heavy_imports("import scipy, sys; sys.exit(0)") == ["scipy"]


def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(SystemExit, match="failed"):
        heavy_imports("raise RuntimeError('broken')")
