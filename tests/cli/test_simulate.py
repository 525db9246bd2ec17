"""`scanfield simulate ct`, as typed."""

import json
import shlex

import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import write_nifti
from scanfield.data.projections import read_facts, read_projections
from scanfield.operators.siddon import project_voxels
from scanfield.space.grid import Grid


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """A small CT volume (HU) in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    values = torch.full((16, 12, 3), -1000.0)
    values[4:12, 4:8] = 40.0
    affine = np.diag([-2.0, 2.0, 5.0, 1.0])
    affine[:3, 3] = [100.0, -50.0, 7.0]
    write_nifti(tmp_path / "ct.nii.gz", values, Grid((16, 12, 3), affine), unit="HU")
    return tmp_path


def simulate(*arguments):
    return main(["simulate", "ct", "ct.nii.gz", *arguments])


def test_the_scan_is_that_of_the_volume_in_its_place(volume, capsys):
    assert simulate("-o", "scan.npz", "--views", "5") == 0
    scan = read_projections(volume / "scan.npz")
    assert scan.values.shape == (5, 3, 20) and scan.kind == "projections:parallel"
    assert np.allclose(scan.acquisition.volume.affine[:3, 3], [100, -50, 7])
    image = torch.zeros(16, 12, 3)
    image[4:12, 4:8] = 0.01929 * 1.04
    expected = project_voxels(image, scan.acquisition.volume, scan.acquisition, subsamples=(1, 4))
    assert torch.allclose(scan.values, expected, atol=1e-6)
    facts = read_facts(volume / "scan.npz")
    assert facts.mu_water_per_mm == 0.01929
    assert shlex.split(facts.provenance["command"])[:4] == ["scanfield", "simulate", "ct", "ct.nii.gz"]
    text = capsys.readouterr().out
    assert "parallel beam, 5 views from 0 to 144 deg" in text and "mu = 0.01929 (1 + HU / 1000) per mm" in text
    assert "3 x 20 bins of 2 mm" in text and "16 x 12 x 3 voxels of 2 x 2 x 5 mm" in text


def test_the_same_command_gives_the_same_bytes(volume):
    for name in ("a.npz", "b.npz"):
        assert simulate("-o", name, "--views", "3", "--photons", "1e4", "--seed", "7") == 0
    a, b = (read_projections(volume / name).values for name in ("a.npz", "b.npz"))
    assert torch.equal(a, b)


def test_a_cone_beam_on_another_grid(volume, capsys):
    options = ("-o", "cone.npz", "--geometry", "cone", "--views", "6", "--arc-deg", "210", "--spacing-mm", "2.5")
    assert simulate(*options, "--detector-offset-mm", "0", "4") == 0
    scan = read_projections(volume / "cone.npz")
    assert scan.kind == "projections:cone" and scan.acquisition.detector.offset == (0.0, 4.0)
    assert scan.acquisition.volume.spacing_mm == pytest.approx((2.5, 2.5, 2.5))
    assert np.allclose(scan.acquisition.volume.centre_mm, [85, -39, 12])
    text = capsys.readouterr().out
    assert "cone beam, flat detector, 6 views from 0 to 175 deg" in text and "541 mm to the axis" in text
    assert "warning" not in text
    assert simulate("-o", "low.npz", "--geometry", "cone", "--views", "2", "--detector-rows", "2") == 0
    assert "its top and bottom are missing in some views" in " ".join(capsys.readouterr().out.split())


def test_a_fan_of_one_slice_on_another_grid_as_json(volume, capsys):
    code = simulate(
        *("-o", "fan.npz", "--geometry", "fan", "--detector", "arc", "--views", "8", "--slice-index", "1"),
        *("--detector-bins", "33", "--spacing-mm", "1", "--noise-percent", "2", "--json"),
    )
    assert code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == 1 and facts["bins"] == 33 and facts["bin_unit"] == "deg"
    assert facts["reconstruct_shape"] == [32, 24, 1] and facts["noise"]["kind"] == "gaussian"
    assert read_projections(volume / "fan.npz").kind == "projections:fan"


def test_the_reconstruction_shape_keeps_the_box(volume):
    assert simulate("-o", "s.npz", "--views", "2", "--reconstruction-shape", "8", "24") == 0
    grid = read_projections(volume / "s.npz").acquisition.volume
    assert grid.shape == (8, 24, 3) and grid.spacing_mm == pytest.approx((4, 1, 5))


def test_truncation_and_starvation_are_warned_of(volume, capsys):
    assert simulate("-o", "s.npz", "--views", "2", "--detector-bins", "6", "--bin-mm", "1", "--photons", "1") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "sees a circle of 6 mm" in text and "received no photon or one" in text


def test_quiet_says_nothing(volume, capsys):
    assert simulate("-o", "s.npz", "--views", "2", "--quiet") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--views 0", "--views: must be at least 1, got 0"),
        ("--views many", "--views: expected a whole number, got 'many'"),
        ("--bin-mm -1", "--bin-mm: must be greater than 0"),
        ("--spacing-mm 0", "--spacing-mm: must be greater than 0"),
        ("--spacing-mm nan", "--spacing-mm: expected a finite number"),
        ("--arc-deg 400", "--arc-deg: must be at most 360"),
        ("--photons 1e4 --noise-percent 1", "not from both"),
        ("--spacing-mm 1 --reconstruction-shape 4 4", "not from both"),
        ("--geometry parralel", "'parralel' is not one of parallel, fan, cone (did you mean 'parallel'?)"),
        ("--detector arc", "a parallel beam has no arc detector"),
        ("--slice-index 3", "slice 3 does not exist: the volume has slices 0..2"),
        ("--unit 1/m", "--unit: '1/m' is not one of auto, HU, 1/mm (did you mean '1/mm'?)"),
        ("--photon 1e4", "unknown option '--photon' (did you mean '--photons'?)"),
        ("--geometry fan --source-to-axis-mm 10", "do not clear the volume"),
        ("--series 1", "only a DICOM folder has several series"),
    ],
)
def test_wrong_options_are_one_message_and_no_file(volume, arguments, message, capsys):
    assert simulate("-o", "scan.npz", *arguments.split()) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield:") == 1 and captured.out == ""
    assert [path.name for path in volume.iterdir()] == ["ct.nii.gz"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["simulate", "ct", "nowhere.nii", "-o", "s.npz"], "there is no such file or folder"),
        (["simulate", "ct", "sample:ct_chest_slce", "-o", "s.npz"], "did you mean 'ct_chest_slice'?"),
        (["simulate", "ct", "sample:mr_head_volume", "-o", "s.npz"], "cannot tell the unit"),
        (["simulate", "ct", "ct.nii.gz", "-o", "scan.nii"], "ends in .npz"),
        (["simulate", "ct", "ct.nii.gz", "-o", "missing/scan.npz"], "does not exist"),
        (["simulate", "ct", "ct.nii.gz"], "the following arguments are required: -o/--output"),
        (["simulate", "mri", "ct.nii.gz"], "unknown kind of measurement 'mri'"),
        (["simulate", "ct", "cut.nii.gz", "-o", "s.npz"], "truncated"),
        (["simulate", "ct", "text.nii", "-o", "s.npz"], "not a NIfTI file"),
        (["simulate", "ct", ".", "-o", "s.npz"], "where: ."),
    ],
)
def test_wrong_files_are_one_message_and_no_file(volume, argv, message, capsys):
    (volume / "cut.nii.gz").write_bytes((volume / "ct.nii.gz").read_bytes()[:-40])
    (volume / "text.nii").write_text("not an image")
    before = sorted(volume.iterdir())
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield:") == 1 and "Traceback" not in captured.err
    assert sorted(volume.iterdir()) == before
