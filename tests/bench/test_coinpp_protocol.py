"""All of the protocol on small volumes, with trainings too short to mean anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scanfield.bench import parallel
from scanfield.bench.kept import BenchRun, Kept
from scanfield.bench.protocols import coinpp as protocol
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.methods.compression.coinpp import Config
from scanfield.space.grid import Grid


def test_every_ratio_has_its_model_and_every_check_its_rows(tmp_path, monkeypatch):
    pytest.importorskip("imagecodecs")
    grid = Grid.centred((32, 24, 16), 1.0)
    x = grid.points().numpy()
    for number in (1, 2, 3, 4):
        values = 120 + 60 * np.sin(x[:, 0] / (3 + number)) + 40 * np.cos(x[:, 1] / 5)
        write_nifti(tmp_path / f"{number}.nii", values.round().astype(np.uint8).reshape(grid.shape), grid)
    fine = replace(Config.tiny(), patch=8, latent=6, steps=4, refine=0)
    coarse = replace(fine, patch=16)
    settings = {"TRAIN": (1, 2), "VALIDATION": (3,), "TEST": (4,), "RATIOS": (8, 16, 4000), "RANDOM_RATES": (1.0,)}
    settings |= {"CONFIG": fine, "COARSE": coarse, "FROM": {fine: 0, coarse: 16}}
    settings |= {"_file": lambda number: tmp_path / f"{number}.nii", "SHARED_BY": (10,)}
    for name, value in settings.items():
        monkeypatch.setattr(protocol, name, value)
    monkeypatch.setattr(parallel, "_processors", lambda: 1)  # other processes would not know of these changes
    result = protocol.run(BenchRun(kept=Kept(tmp_path / "kept", {})))
    rows = {(row.get("ratio"), row["row"]): row for row in result.table}
    original = read_nifti(tmp_path / "4.nii").grid.size
    for ratio in (8, 16):
        own = rows[ratio, "COIN++"]
        assert own["bytes"] <= 1.02 * original / ratio
        assert rows[ratio, "SPERR"]["bytes"] <= own["bytes"]
    assert rows[16, "COIN++"]["bytes_shared_by_10"] > rows[16, "COIN++"]["bytes"]
    assert any("4000:1: no file" in note for note in result.notes)
    assert sum("patches of" in note for note in result.notes) == 2
    named = {check.name: check.value for check in result.checks}
    three, fifty = (rows[None, f"{n} inner steps, 12 bits"]["psnr_db"] for n in (3, 50))
    assert named["PSNR of three inner steps over that of fifty"] == pytest.approx(three / fifty)
    assert rows[None, "COIN++ against SPERR"]["gain_db_at_8"] < 0, "four steps are no training"
    again = BenchRun(kept=Kept(tmp_path / "kept", {}))
    resumed = protocol.run(again)
    assert len(again.kept.taken_s) == again.kept.jobs > 0, "models and files of the first run"
    assert resumed.checks == result.checks and resumed.notes == result.notes
