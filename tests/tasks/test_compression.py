"""A volume in a file and back: type, place, budget, bounds, parts of it, and files that lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfield.codec.container import Section, read_container, write_container
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.methods.compression import sci
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.compression import compress, decompress, part_of

TURN = np.array([[1.2, -0.9, 0.0, 20.0], [0.9, 1.2, 0.0, -7.0], [0.0, 0.0, -3.0, 100.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((24, 20, 10), TURN)
CONFIG = replace(sci.Config.tiny(), budget_bytes=1500, steps=120, tuning_steps=20)


def volume(noise: float = 6.0) -> Scan:
    x = GRID.points().reshape(*GRID.shape, 3)
    values = 200 * torch.sin(x[..., 0] / 8) * torch.cos(x[..., 1] / 11) + x[..., 2]
    values += noise * torch.randn(GRID.shape, generator=torch.Generator().manual_seed(7))
    return Scan(values.round(), GRID, "HU", source="phantom")


def made(path, scan=None, **options):
    scan = volume() if scan is None else scan
    how = {"stored_type": "int16", "baselines": False} | options
    return compress(scan, "sci", CONFIG, Run(seed=0), path, **how)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "a.sfz"
    return path, made(path)


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    path = tmp_path_factory.mktemp("bounded") / "a.sfz"
    return path, made(path, max_error=3.0)


def test_the_file_is_the_volume_in_its_type_and_place(plain):
    path, found = plain
    back = decompress(path)
    assert back.values.dtype == np.int16 and back.grid.same_as(GRID) and back.unit == "HU"
    scan = volume()
    assert scan.values.min() <= back.values.min() and back.values.max() <= scan.values.max()
    assert np.abs(back.values - scan.values.numpy()).mean() < 0.1 * float(scan.values.max() - scan.values.min())
    assert found.report.total == path.stat().st_size <= 1500


def test_the_table_speaks_of_the_file(plain):
    path, found = plain
    (row,) = found.table.rows
    back = decompress(path).values.astype(float)
    error = np.sqrt(np.mean((back - volume().values.numpy()) ** 2))
    peak = float(volume().values.max() - volume().values.min())
    assert row.values["psnr_db"] == pytest.approx(20 * np.log10(peak / error))
    assert row.values["ratio"] == pytest.approx(GRID.size * 2 / found.report.total)
    assert row.values["max_error"] == np.abs(back - volume().values.numpy()).max()


def test_a_part_is_a_part_of_the_whole(plain, bounded):
    box = ((3, 17), (0, 20), (4, 5))
    for path, _ in (plain, bounded):
        whole, part = decompress(path), decompress(path, box=box)
        assert part.values.shape == (14, 20, 1)
        assert np.abs(part.values.astype(int) - whole.values[3:17, 0:20, 4:5]).max() <= (0 if path == bounded[0] else 1)
        assert np.allclose(part.grid.affine[:3, 3], GRID.to_world(torch.tensor([3.0, 0.0, 4.0])).numpy(), atol=1e-4)
    for wrong in (((0, 25), (0, 20), (0, 10)), ((5, 5), (0, 1), (0, 1)), ((-1, 3), (0, 1), (0, 1))):
        with pytest.raises(InputError, match="box"):
            part_of(GRID, wrong)


def test_other_grids_show_the_field(plain, bounded):
    finer = GRID.resampled(0.8)
    for path, _ in (plain, bounded):
        fine = decompress(path, grid=finer)
        assert fine.values.shape == finer.shape and fine.values.dtype == np.int16
    with pytest.raises(ValueError, match="grid or a box"):
        decompress(path, grid=finer, box=((0, 1), (0, 1), (0, 1)))


@pytest.mark.parametrize("bound", [0, 1, 5])
def test_no_voxel_errs_by_more_than_the_bound(tmp_path, bound):
    found = made(tmp_path / "a.sfz", max_error=float(bound))
    back = decompress(tmp_path / "a.sfz").values.astype(int)
    assert np.abs(back - volume().values.numpy()).max() <= bound
    assert found.table.rows[0].values["max_error"] <= bound
    assert dict(found.report.parts)["residual"] > 100


def test_bounds_of_real_numbers(tmp_path):
    scan = replace(volume(), values=volume().values / 7)
    made(tmp_path / "a.sfz", scan, stored_type="float32", max_error=0.5)
    back = decompress(tmp_path / "a.sfz").values
    assert back.dtype == np.float32
    assert np.abs(back - scan.values.numpy()).max() <= 0.5 * (1 + 1e-5)


def test_looser_bounds_take_fewer_bytes(tmp_path, bounded):
    sizes = [dict(made(tmp_path / "a.sfz", max_error=b).report.parts)["residual"] for b in (0.0, 12.0)]
    assert sizes[0] > dict(bounded[1].report.parts)["residual"] > sizes[1]
    assert sizes[0] < 1.15 * GRID.size * np.log2(6 * np.sqrt(2 * np.pi * np.e)) / 8 * 1.6, (
        "noise, and what the fit misses"
    )


def test_a_field_that_comes_out_different_is_noticed(bounded, tmp_path):
    content = read_container(bounded[0])
    header = content.header | {"facts": content.header["facts"] | {"crc": 1}}
    write_container(tmp_path / "a.sfz", header, content.sections)
    with pytest.raises(InputError, match="another field"):
        decompress(tmp_path / "a.sfz")
    assert decompress(tmp_path / "a.sfz", grid=GRID.resampled(3.0)).values.size


@pytest.mark.parametrize("change", [{"type": "complex64"}, {"type": None}, {"low": "x"}, {"step": 0.0}, {"crc": None}])
def test_damaged_facts_are_one_error(bounded, tmp_path, change):
    content = read_container(bounded[0])
    header = content.header | {"facts": content.header["facts"] | change}
    write_container(tmp_path / "a.sfz", header, content.sections)
    with pytest.raises(InputError):
        decompress(tmp_path / "a.sfz")
    lost = [section for section in content.sections if section.name != "residual"]
    write_container(tmp_path / "b.sfz", content.header, [*lost, Section("other", 5, b"")])
    with pytest.raises(InputError, match="residual is missing"):
        decompress(tmp_path / "b.sfz")


def test_a_volume_of_terabytes_is_refused_before_it_is_made(plain, tmp_path):
    content = read_container(plain[0])
    content.header["spec"]["grid"]["shape"] = [10**6, 10**6, 10]
    write_container(tmp_path / "a.sfz", content.header, content.sections)
    with pytest.raises(InputError, match="memory"):
        decompress(tmp_path / "a.sfz")


def test_a_psnr_is_reached(tmp_path):
    smooth = volume(noise=0.0)
    found = made(tmp_path / "a.sfz", smooth, psnr_db=20.0)
    assert found.table.rows[0].values["psnr_db"] >= 20.0
    with pytest.raises(InputError, match="90 dB"):
        made(tmp_path / "b.sfz", smooth, psnr_db=90.0)


def test_rivals_have_no_more_bytes(tmp_path):
    pytest.importorskip("imagecodecs")
    found = made(tmp_path / "a.sfz", baselines=True)
    assert [row.name for row in found.table.rows][:2] == ["sci", "sperr"]
    assert all(row.values["bytes"] <= found.report.total for row in found.table.rows)


def test_impossible_requests_are_refused(tmp_path):
    path = tmp_path / "a.sfz"
    for bound, kind, match in ((-1.0, "int16", "cannot be -1"), (0.0, "float32", "whole numbers")):
        with pytest.raises(InputError, match=match):
            made(path, max_error=bound, stored_type=kind)
    with pytest.raises(InputError, match="whole numbers"):
        made(path, replace(volume(), values=volume().values + 0.5))
    with pytest.raises(InputError, match="does not compress"):
        compress(volume(), "siren", None, Run(), path)
    with pytest.raises(ValueError, match="not from both"):
        made(path, max_bytes=900, psnr_db=30.0)
    assert not path.exists()
