"""Metal in the pipeline: known to all rows, out of the numbers, in the folder and on the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement
from scanfield.data.nifti import read_nifti
from scanfield.data.scan import Scan
from scanfield.data.spectra import Spectrum
from scanfield.errors import InputError
from scanfield.methods.reconstruction.polyner import Config
from scanfield.operators.simulate import CtScanOptions
from scanfield.operators.simulate_spectrum import Insert, inserted, simulate_spectral_ct
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry
from scanfield.tasks.metal import outside
from scanfield.tasks.reconstruction import reconstruct

pytest.importorskip("xraydb")

GRID = Grid.centred((24, 24, 1), 6.0)
INSERTS = [Insert("titanium", (20.0, 12.0, 0.0), 11.0)]
MASK = inserted(INSERTS, GRID)
TRUTH = Scan(0.01929 * (GRID.points().norm(dim=-1) < 60).float().reshape(GRID.shape), GRID, "1/mm")


@pytest.fixture(scope="module")
def scan() -> Measurement[ProjectionGeometry]:
    spectrum = Spectrum(np.arange(30.0, 120, 10), np.array([1, 4, 7, 8, 6, 5, 4, 3, 1.0]))
    return simulate_spectral_ct(TRUTH, CtScanOptions(views=40, bins=36, bin_mm=5.7), spectrum, INSERTS)


CONFIG = replace(Config.tiny(), steps=30)


def test_the_folder_shows_metal_and_energies(scan: Measurement[ProjectionGeometry], tmp_path: Path) -> None:
    given = replace(scan, metal=Scan(5.0 * MASK.float(), GRID))
    outcome = reconstruct(given, "polyner", CONFIG, Run(tmp_path), baselines="fast", reference=TRUTH)
    rows = {row.name for row in outcome.table.rows}
    assert {"polyner", "fbp", "water-fbp", "li", "nmar"} <= rows
    kept = read_nifti(tmp_path / "metal.nii.gz")
    assert torch.equal(kept.values > 0, MASK)
    facts = json.loads((tmp_path / "energies.json").read_text())
    assert facts["points"][0]["label"] == "metal"
    assert all(len(point["per_mm"]) == len(facts["energies_kev"]) == 4 for point in facts["points"])
    page = (tmp_path / "report.html").read_text()
    assert "Metal and energies" in page
    assert (tmp_path / "figures" / "energies.png").is_file()
    notes = [column.note for column in outcome.table.columns if "psnr" in column.key]
    assert all("outside metal" in note for note in notes)
    assert f"({int((~MASK).sum())} voxels)" in notes[0]


def test_other_methods_know_of_a_given_mask_but_look_for_none(scan: Measurement[ProjectionGeometry]) -> None:
    from scanfield.methods.reconstruction.scope import Config as Scope

    tiny = replace(Scope.tiny(), steps=3)
    plain = reconstruct(replace(scan, spectrum=None), "scope", tiny, Run(), baselines="fast")
    given = reconstruct(replace(scan, spectrum=None, metal=Scan(MASK, GRID)), "scope", tiny, Run(), baselines="fast")
    assert {row.name for row in given.table.rows} - {row.name for row in plain.table.rows} == {"li", "nmar"}


def test_a_mask_that_does_not_fit_stops_before_the_fit(scan: Measurement[ProjectionGeometry]) -> None:
    with pytest.raises(InputError, match="metal mask is empty"):
        reconstruct(replace(scan, metal=Scan(torch.zeros(GRID.shape), GRID)), "polyner", CONFIG, Run())


def test_outside_is_everywhere_without_metal_and_follows_another_grid() -> None:
    assert outside(None, GRID).all()
    finer = GRID.resampled((3.0, 3.0, 6.0))
    share = (~outside(Scan(MASK, GRID), finer)).float().mean()
    assert share.item() == pytest.approx(MASK.float().mean().item(), rel=0.15)
