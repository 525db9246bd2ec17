"""How an outcome shows itself in a notebook."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from scanfield.data.scan import Scan
from scanfield.errors import InputError, MissingExtra
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.shortcuts import reconstruct
from scanfield.space.grid import Grid
from scanfield.tasks.outcome import Outcome


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    grid = Grid.centred((32, 24, 1), (2.0, 2.0, 3.0))
    values = torch.full(grid.shape, 0.02)
    scan = simulate_ct(Scan(values, grid, unit="1/mm"), CtScanOptions(views=16, bins=40))
    folder = tmp_path_factory.mktemp("run") / "run"
    return reconstruct(scan, "scope", preset="tiny", settings={"steps": 5}, folder=folder, baselines="fast")


def test_a_notebook_shows_every_image_and_the_table(outcome: Outcome) -> None:
    shown = outcome._repr_html_()
    labels = [picture.label for picture in outcome.pictures]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", shown) == labels
    assert shown.count('src="data:image/png;base64,') == len(labels) and "held-out residual" in shown
    outcome.pictures[0].__dict__["label"] = "<script>"
    assert "<script>" not in outcome._repr_html_()
    outcome.pictures[0].__dict__["label"] = labels[0]


def test_a_widget_gets_the_method_s_image_first(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    class Widget:
        volumes: list[dict[str, Any]]

        def load_volumes(self, volumes: list[dict[str, Any]]) -> None:
            self.volumes = volumes

    module = types.ModuleType("ipyniivue")
    module.NiiVue = Widget  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipyniivue", module)
    volumes = outcome.view().volumes
    paths = [Path(volume["path"]) for volume in volumes]
    assert paths[0].name == "scope.nii.gz" and all(path.exists() for path in paths)
    assert [v["opacity"] for v in volumes] == [1.0] + [0.0] * (len(volumes) - 1)
    in_memory = Outcome(outcome.result, outcome.grid, outcome.pictures, outcome.table, None)
    with pytest.raises(InputError, match="in memory"):
        in_memory.view()
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(MissingExtra, match="ipyniivue"):
        outcome.view()
