"""`scanfield warp`, as typed: points and images, both ways, from the field alone."""

import json
import shutil

import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.data.points import read_points
from scanfield.shortcuts import open_result
from scanfield.tasks.warp import map_points, mapping


def warp(*arguments):
    return main(["warp", *arguments])


@pytest.fixture
def field(pair):
    """The field alone; the run is gone."""
    shutil.copy(pair / "run" / "field.safetensors", pair / "field.safetensors")
    expected = (pair / "run" / "warped.nii.gz").rename(pair / "expected.nii.gz")
    shutil.rmtree(pair / "run")
    return expected


def test_points_go_to_the_moving_image_and_back(field, capsys):
    assert warp("field.safetensors", "fixed.csv", "-o", "there.csv") == 0
    assert "6 points of the fixed image, at their places in the moving image" in capsys.readouterr().out
    before, there = read_points("fixed.csv"), read_points("there.csv")
    assert there.columns == before.columns
    assert torch.allclose(there.x, map_points(mapping(open_result("field.safetensors")), before.x), atol=1e-5)
    moving = read_points("moving.csv")
    assert (there.x - moving.x).norm(dim=-1).mean() < (before.x - moving.x).norm(dim=-1).mean()
    assert warp("field.safetensors", "there.csv", "-o", "back.csv", "--inverse", "--json") == 0
    assert json.loads(capsys.readouterr().out)["residual_mm"] <= 0.0101
    assert (read_points("back.csv").x - before.x).norm(dim=-1).max() < 0.05


def test_an_image_comes_onto_the_fixed_grid(field, pair, capsys):
    assert warp("field.safetensors", "moving.nii.gz", "-o", "warped.nii.gz") == 0
    warped, expected = read_nifti("warped.nii.gz"), read_nifti(field)
    assert warped.grid.same_as(read_nifti("fixed.nii.gz").grid) and torch.equal(warped.values, expected.values)
    assert warp("field.safetensors", "moving.nii.gz", "-o", "like.nii.gz", "--like", "moving.nii.gz") == 0
    assert read_nifti("like.nii.gz").grid.same_as(read_nifti("moving.nii.gz").grid)


def test_the_fixed_image_comes_onto_the_moving_grid(field):
    assert warp("field.safetensors", "fixed.nii.gz", "-o", "inverse.nii.gz", "--inverse", "--quiet") == 0
    back, moving, fixed = (read_nifti(name) for name in ("inverse.nii.gz", "moving.nii.gz", "fixed.nii.gz"))
    assert back.grid.same_as(moving.grid)
    inner = (slice(4, -4),) * 2 + (slice(2, -2),)
    after = (back.values - moving.values)[inner].abs().mean()
    from scanfield.operators.resample import resample

    before = (resample(fixed.values, fixed.grid, moving.grid) - moving.values)[inner].abs().mean()
    assert after < before


def test_labels_keep_their_values(field, capsys):
    image = read_nifti("moving_labels.nii.gz")
    write_nifti("organs.nii.gz", image.values.to(torch.int16) * 1035, image.grid)
    assert warp("field.safetensors", "organs.nii.gz", "-o", "organs_warped.nii.gz", "--labels") == 0
    assert set(read_nifti("organs_warped.nii.gz").values.unique().tolist()) == {0, 1035}
    assert warp("field.safetensors", "moving.nii.gz", "-o", "x.nii.gz", "--labels") == 2
    assert "labels are whole numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fixed.csv", "-o", "out.csv", "--labels"), "--labels and --like are for images"),
        (("fixed.csv", "-o", "out.nii.gz"), "points are written to a file that ends in .csv"),
        (("moving.nii.gz", "-o", "out.csv"), "ends in .nii or .nii.gz"),
        (("voxels.csv", "-o", "out.csv"), "voxel indices of the fixed image"),
        (("away.csv", "-o", "out.csv"), "lie outside the fixed image"),
        (("far.nii.gz", "-o", "out.nii.gz"), "no voxel of the fixed grid is mapped into this image"),
        (("nowhere.nii.gz", "-o", "out.nii.gz"), "there is no such file"),
    ],
)
def test_bad_input_is_one_message(field, pair, arguments, message, capsys):
    (pair / "voxels.csv").write_text("x,y,z\n3,4,5\n10,11,6\n7,2,3\n1,1,1\n12,8,4\n3,3,3\n")
    (pair / "away.csv").write_text("x,y,z\n300,-500,27\n")
    image = read_nifti("fixed.nii.gz")
    affine = image.grid.affine.copy()
    affine[0, 3] += 500
    write_nifti("far.nii.gz", image.values, type(image.grid)(image.grid.shape, affine))
    assert warp("field.safetensors", *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("scanfield:") == 1
    assert not (pair / "out.csv").exists() and not (pair / "out.nii.gz").exists()


def test_points_beside_the_image_are_mapped_with_a_warning(field, pair, capsys):
    (pair / "some.csv").write_text("x,y,z\n11.5,-5.5,27.5\n300,-500,27\n")
    assert warp("field.safetensors", "some.csv", "-o", "out.csv") == 0
    assert "warning: 1 of 2 points lie outside the fixed image" in capsys.readouterr().err
    assert len(read_points("out.csv").x) == 2


def test_a_reconstruction_is_no_map(made, tmp_path, capsys):
    assert warp(str(made / "run"), str(made / "ct.nii.gz"), "-o", str(tmp_path / "out.nii.gz")) == 2
    assert "holds no map between two images" in capsys.readouterr().err
