"""The library in one call."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import scanfield
from scanfield.data.projections import ProjectionFacts

TINY = {"preset": "tiny", "settings": {"steps": 10}, "device": "cpu"}


@pytest.fixture(scope="module")
def scan():
    """16 views of a block of water in air, and the block itself (HU)."""
    values = torch.full((16, 16, 1), -1000.0)
    values[4:12, 4:12] = 0.0
    image = scanfield.Scan(values, scanfield.Grid.centred((16, 16, 1), 4.0), unit="HU")
    return scanfield.simulate_ct(image, scanfield.CtScanOptions(views=16), mu_water_per_mm=0.02), image


def test_objects_in_and_an_outcome_out(scan):
    outcome = scanfield.reconstruct(scan[0], **TINY, baselines="fast", reference=scan[1])
    assert outcome.folder is None and outcome.result.config.steps == 10
    names = [row.name for row in outcome.table.rows]
    assert names[:3] == ["scope", "scope-field", "fbp"]
    assert any(key.startswith("psnr") for key in outcome.table.rows[0].values)
    assert outcome.result.render(spacing_mm=2.0).shape == (32, 32, 1)


def test_names_in_and_a_folder_out(scan, tmp_path):
    path = tmp_path / "scan.npz"
    scanfield.write_projections(path, scan[0], ProjectionFacts(mu_water_per_mm=0.02))
    scanfield.write_nifti(tmp_path / "truth.nii.gz", scan[1].values, scan[1].grid, unit="HU")
    outcome = scanfield.reconstruct(path, **TINY, folder=tmp_path / "run", reference=tmp_path / "truth.nii.gz")
    truth = next(picture for picture in outcome.pictures if picture.kind == "reference" and picture.name == "reference")
    assert float(truth.values.max()) == pytest.approx(0.02)  # HU read with the file's water
    again = scanfield.open_result(tmp_path / "run")
    assert np.allclose(again.render(), outcome.result.render(), atol=1e-6)
    with pytest.raises(scanfield.InputError, match="already holds a run"):
        scanfield.reconstruct(path, **TINY, folder=tmp_path / "run")


def test_metal_and_a_spectrum_bring_their_rivals(scan):
    pytest.importorskip("xraydb")
    metal = torch.zeros(16, 16, 1)
    metal[7:9, 7:9] = 1.0
    mask = scanfield.Scan(metal, scan[1].grid)
    outcome = scanfield.reconstruct(
        scan[0], "polyner", **TINY, metal_mask=mask, spectrum="120kVp", baselines="fast", reference=scan[1]
    )
    assert {"li", "nmar"} & {row.name for row in outcome.table.rows}
    with pytest.raises(scanfield.InputError, match="no such file"):
        scanfield.reconstruct(scan[0], "polyner", **TINY, metal_mask=mask, spectrum="a lot")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "scpe"}, "did you mean 'scope'"),
        ({"preset": "quick"}, "unknown preset 'quick'"),
        ({"settings": {"stepz": 1}}, "did you mean 'steps'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_mistakes_are_named(scan, change, message):
    with pytest.raises(scanfield.InputError, match=message):
        scanfield.reconstruct(scan[0], **(TINY | change))


def test_images_are_refused_by_a_method_for_projections(scan, tmp_path):
    scanfield.write_nifti(tmp_path / "image.nii.gz", scan[1].values, scan[1].grid)
    with pytest.raises(scanfield.InputError, match="does not take data of kind 'image'"):
        scanfield.reconstruct(tmp_path / "image.nii.gz", **TINY)


def test_open_result_names_what_is_missing(tmp_path):
    with pytest.raises(scanfield.InputError, match="there is no field file"):
        scanfield.open_result(tmp_path)


def test_two_images_in_and_a_map_out(tmp_path):
    from scanfield.tasks.warp import mapping

    grid = scanfield.Grid.centred((20, 18, 12), 3.0)
    x = grid.points()
    fixed, moving = (
        scanfield.Scan((-(y**2).sum(-1) / 300).exp().reshape(grid.shape), grid)
        for y in (x + torch.tensor([3.0, 0, 0]), x)
    )
    scanfield.write_nifti(tmp_path / "moving.nii.gz", moving.values, grid)
    settings = {"steps": 40, "start": "identity"}
    how = {"preset": "tiny", "settings": settings, "device": "cpu", "baselines": "none"}
    outcome = scanfield.register(fixed, tmp_path / "moving.nii.gz", **how, folder=tmp_path / "run")
    assert [row.name for row in outcome.table.rows] == ["identity", "idir"]
    again = mapping(scanfield.open_result(tmp_path / "run"))
    with torch.no_grad():
        assert torch.allclose(again(x), mapping(outcome.result)(x), atol=1e-5)
        assert float((again(x[:1] * 0) - torch.tensor([3.0, 0, 0])).norm()) < 1.5
    with pytest.raises(scanfield.InputError, match="constant"):
        scanfield.register(fixed, scanfield.Scan(torch.ones(20, 18, 12), grid), **how)


def test_a_model_in_and_new_shapes_out(tmp_path):
    from scanfield.data.cohort import read_cohort
    from scanfield.data.sequences import MaskSequence, write_sequence
    from scanfield.methods.synthesis import cell_shapes

    grid, lines = scanfield.Grid.centred((12, 12, 12), 1.0), ["path,subject,split"]
    for k in range(3):
        length = grid.points().norm(dim=1).reshape(grid.shape)
        frames = torch.stack([length < 2.3 + 0.4 * k + 0.3 * t for t in range(3)])
        write_sequence(tmp_path / f"{k}.nii.gz", MaskSequence(frames, grid, 2.0))
        lines.append(f"{k}.nii.gz,{k},train")
    (tmp_path / "cohort.csv").write_text("\n".join(lines))
    config = replace(cell_shapes.Config.tiny(), epochs=60)
    model = cell_shapes.train(config, read_cohort(tmp_path / "cohort.csv"), scanfield.Run())
    model.save(tmp_path / "model.safetensors")
    out = {"count": 2, "spread": 0.5, "meshes": False, "device": "cpu"}
    found = scanfield.generate(tmp_path, **out, folder=tmp_path / "new")
    assert found.frames.shape[:2] == (2, 3) and (tmp_path / "new" / "report.html").is_file()
    again = scanfield.generate(tmp_path / "model.safetensors", **out)
    assert torch.equal(again.frames, found.frames) and again.folder is None
    assert not torch.equal(scanfield.generate(tmp_path, **out, seed=1).frames, found.frames)
