"""A file of bricks read in part: only what is asked for is touched."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from scanfield.codec.bricks import open_bricks
from scanfield.data.nifti import write_nifti
from scanfield.data.volumes import open_volume
from scanfield.errors import InputError
from scanfield.methods.compression import sci
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.brick_decoding import brick_rates, decompress_bricks, read_bricks
from scanfield.tasks.bricks import compress_bricks

TURN = np.array([[0.8, -0.6, 0.0, 20.0], [0.6, 0.8, 0.0, -7.0], [0.0, 0.0, -3.0, 100.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((32, 16, 12), TURN)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Two time points with an error of 1 at most, one brick of them empty."""
    folder = tmp_path_factory.mktemp("file")
    x = GRID.points().reshape(*GRID.shape, 3).numpy()
    values = np.stack([200 * np.sin(x[..., 0] / 9 + t) + 3 * x[..., 2] for t in range(2)], -1).round().astype(np.int16)
    values[16:, :, :, 1] = 0
    write_nifti(folder / "a.nii", values, GRID, unit="HU")
    config = replace(sci.Config.tiny(), steps=150, tuning_steps=10, restarts=0)
    how = {"edge": 16, "bits_per_voxel": 4.0, "max_error": 1.0, "baselines": False}
    compress_bricks(folder / "a.nii", "sci", config, Run(), folder / "a.sfz", **how)
    return folder / "a.sfz", values


@pytest.mark.parametrize("name", ["b.nii", "b.nii.gz", "b.zarr"])
def test_the_whole_volume(file, tmp_path, name):
    facts = decompress_bricks(file[0], tmp_path / name, Run())
    assert facts["shape"] == [32, 16, 12] and facts["frames"] == {"t": 2} and facts["type"] == "int16"
    volume = open_volume(tmp_path / name, expanded=tmp_path / "expanded.nii")
    assert volume.grid.same_as(GRID) and volume.unit == "HU"
    for frame in range(2):
        back = volume.read(frame, ((0, 32), (0, 16), (0, 12)))
        assert np.abs(back.astype(int) - file[1][..., frame]).max() <= 1
        assert np.array_equal(read_bricks(file[0], frame=frame).values, back)


def test_a_frame_and_a_box(file, tmp_path):
    box = ((10, 25), (3, 16), (2, 5))
    whole = read_bricks(file[0], frame=1).values
    part = read_bricks(file[0], frame=1, box=box)
    assert np.array_equal(part.values, whole[10:25, 3:16, 2:5])
    assert np.allclose(part.grid.affine[:3, 3], GRID.to_world(torch.tensor([10.0, 3.0, 2.0])).numpy(), atol=1e-4)
    decompress_bricks(file[0], tmp_path / "b.nii", Run(), frame=1, box=box)
    found = nib.load(tmp_path / "b.nii")
    assert np.array_equal(found.dataobj, part.values) and np.allclose(found.affine, part.grid.affine)


def test_only_the_bricks_of_the_box_are_read(file, tmp_path):
    damaged = bytearray(file[0].read_bytes())
    entry = open_bricks(file[0]).head.entries[1]
    damaged[entry.start + 5] ^= 1
    (tmp_path / "a.sfz").write_bytes(damaged)
    assert np.array_equal(
        read_bricks(tmp_path / "a.sfz", box=((0, 16), (0, 16), (0, 12))).values, read_bricks(file[0]).values[:16]
    )
    with pytest.raises(InputError, match="altered"):
        read_bricks(tmp_path / "a.sfz", box=((0, 17), (0, 16), (0, 12)))
    with pytest.raises(InputError, match="altered"):
        decompress_bricks(tmp_path / "a.sfz", tmp_path / "b.nii", Run())
    assert [path.name for path in tmp_path.iterdir()] == ["a.sfz"]


def test_another_grid_shows_the_fields(file, tmp_path):
    """At the voxels themselves the fields are what the residual corrects; outside there is nothing."""
    decompress_bricks(file[0], tmp_path / "same.nii", Run(), frame=0, grid=GRID)
    same = np.asarray(nib.load(tmp_path / "same.nii").dataobj).astype(int)
    assert np.abs(same - file[1][..., 0]).mean() < 40
    wider = GRID.part((-4, -4, -4), (40, 24, 20))
    decompress_bricks(file[0], tmp_path / "wide.nii", Run(), frame=0, grid=wider)
    wide = np.asarray(nib.load(tmp_path / "wide.nii").dataobj)
    assert np.abs(wide[4:-4, 4:-4, 4:-4] - same).max() <= 1
    assert not wide[:3].any() and not wide[:, :, -3:].any()
    decompress_bricks(file[0], tmp_path / "fine.zarr", Run(), grid=GRID.resampled(0.8))
    assert open_volume(tmp_path / "fine.zarr").frames == {"t": 2}


def test_the_parts_add_up(file):
    rates = brick_rates(file[0])
    assert rates.total == file[0].stat().st_size and rates.voxels == 2 * GRID.size
    assert {"header", "headers of bricks", "weights", "residual"} <= set(dict(rates.parts))


def test_what_is_not_there(file, tmp_path):
    with pytest.raises(InputError, match=r"frames 0\.\.1"):
        read_bricks(file[0], frame=2)
    with pytest.raises(InputError, match="box"):
        decompress_bricks(file[0], tmp_path / "a.nii", Run(), box=((0, 33), (0, 1), (0, 1)))
    with pytest.raises(ValueError, match="a grid or a box"):
        decompress_bricks(file[0], tmp_path / "a.nii", Run(), grid=GRID, box=((0, 1), (0, 1), (0, 1)))
