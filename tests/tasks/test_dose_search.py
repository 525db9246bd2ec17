import json
from dataclasses import replace

import pytest
import torch

from scanfield.data.dose import Dose
from scanfield.errors import InputError
from scanfield.methods.dose.dose_inr import Config, candidates
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.dose_search import architecture, search

GRID = Grid.centred((16, 14, 12), 4.0)
CONFIG = replace(Config.fast(), bits_per_voxel=4.0, steps=40, points_per_step=256)


def planned() -> Dose:
    return Dose((70 * torch.exp(-((GRID.points().norm(dim=1) / 20) ** 2))).reshape(GRID.shape), GRID)


def test_the_winner_is_kept_and_not_searched_again(tmp_path):
    path, run = tmp_path / "site.json", Run(seed=0)
    chosen = architecture(path, "dose_inr", CONFIG, planned(), run)
    facts = json.loads(path.read_text())
    tried = facts["rates"]["4"]["tried"]
    assert [entry["settings"] for entry in tried] == candidates(CONFIG)
    best = min(tried, key=lambda entry: entry["rmse_gy"])
    assert chosen == replace(CONFIG, **best["settings"]) and chosen.steps == CONFIG.steps
    assert any("Architecture at 4 bits" in note for note in run.notes)
    facts["rates"]["4"]["settings"] = {"hidden_layers": 4}
    path.write_text(json.dumps(facts))
    assert architecture(path, "dose_inr", CONFIG, planned(), Run(seed=0)).hidden_layers == 4
    architecture(path, "dose_inr", replace(CONFIG, bits_per_voxel=6.0), planned(), Run(seed=0))
    assert set(json.loads(path.read_text())["rates"]) == {"4", "6"}


def test_widths_follow_from_the_rate():
    tried = search("dose_inr", CONFIG, planned(), Run(seed=0))
    widths = [entry["width"] for entry in tried]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) > 1


def test_a_stopped_search_keeps_nothing(tmp_path):
    run = Run(seed=0)
    run.stop.set()
    assert architecture(tmp_path / "site.json", "dose_inr", CONFIG, planned(), run) == CONFIG
    assert not (tmp_path / "site.json").exists()


@pytest.mark.parametrize("text", ["no json", "[]", '{"schema": 9, "rates": {}}', '{"schema": 1, "rates": {"1": 3}}'])
def test_a_file_that_holds_no_architectures_is_refused(tmp_path, text):
    (tmp_path / "site.json").write_text(text)
    with pytest.raises(InputError, match="no architectures"):
        architecture(tmp_path / "site.json", "dose_inr", CONFIG, planned(), Run())


def test_the_file_of_another_method_is_refused(tmp_path):
    (tmp_path / "site.json").write_text('{"schema": 1, "method": "other", "rates": {}}')
    with pytest.raises(InputError, match="of method 'other'"):
        architecture(tmp_path / "site.json", "dose_inr", CONFIG, planned(), Run())
