"""The protocol's data and rows, with fits too short to mean anything."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.bench.protocols import uncertainr as protocol
from scanfield.data.samples import sample
from scanfield.methods.reconstruction.uncertainr import Config
from scanfield.run import Run


def test_the_scan_has_the_noise_it_states() -> None:
    noisy, again = (protocol.noisy_scan(sample("ct_chest_slice"), 12, seed, 24) for seed in (0, 1))
    assert noisy.acquisition.volume.shape == (24, 24, 1) and noisy.acquisition.views == 12
    difference = (noisy.values - again.values).std() / 2**0.5
    assert float(difference) == pytest.approx(noisy.noise.level, rel=0.1)
    snr = 20 * torch.log10(noisy.values.square().mean().sqrt() / noisy.noise.level)
    assert float(snr) == pytest.approx(40.0, abs=0.05)


def test_every_row_and_check_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    values = sample("ct_chest_slice").values[::5, ::5, 0].numpy().astype(np.int16)
    (tmp_path / "ct").mkdir()
    np.savez(tmp_path / "ct" / "slices_512.npz", hu=np.stack([values] * 8), pixel_mm=np.full(8, 4.4))
    monkeypatch.setenv("SCANFIELD_DATA", str(tmp_path))
    for name, value in {"CASES": (("chest", 5, 10),), "PIXELS": 24, "BOOTSTRAPS": 3}.items():
        monkeypatch.setattr(protocol, name, value)
    tiny = replace(Config.tiny(), steps=5, samples=40, burn_in=2, thinning=1, members=2)
    rows = {name: replace(tiny, posterior=config.posterior) for name, config in protocol.ROWS.items()}
    monkeypatch.setattr(protocol, "ROWS", rows)
    monkeypatch.setattr(protocol.noisy_scan, "__defaults__", (24,))
    result = protocol.run(Run())
    images = [row["image"] for row in result.table]
    expected = {"dropout", "ensemble of 5", "Langevin", "constant deviation", "TV, bootstrapped", "FBP", "TV"}
    assert expected <= set(images)
    judged = [row for row in result.table if "ece" in row]
    assert len(judged) == 5
    assert all(0 <= row["ece_widened"] <= row["ece"] <= 1 for row in judged)
    assert "rank_correlation" not in next(row for row in judged if row["image"] == "constant deviation")
    assert len(result.checks) == 2 and {check.sense for check in result.checks} == {"<=", ">="}
    assert sum("beat" in note for note in result.notes) == 1
