"""OME-Zarr of both versions: place, axes, units; what other programs write; metadata that lie."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from scanfield.data.zarr import create_ome_zarr, is_zarr, open_ome_zarr
from scanfield.errors import InputError, MissingExtra
from scanfield.space.grid import Grid

zarr = pytest.importorskip("zarr")
TURN = np.array([[0.8, -0.6, 0.0, 20.0], [0.6, 0.8, 0.0, -7.0], [0.0, 0.0, -3.0, 100.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((11, 9, 6), TURN)
WHOLE = ((0, 11), (0, 9), (0, 6))


def written(path, version="0.5", frames=None, kind="uint16"):
    count = int(np.prod(list((frames or {}).values()), dtype=int))
    values = np.random.default_rng(0).integers(0, 200, (count, *GRID.shape)).astype(kind)
    with create_ome_zarr(path, GRID, kind, frames=frames, unit="HU", version=version, chunks=(4, 4, 4)) as image:
        for frame in range(count):
            image.write(frame, WHOLE, values[frame])
    return values


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("frames", [{}, {"t": 3}, {"c": 2}, {"t": 3, "c": 2}])
def test_there_and_back(tmp_path, version, frames):
    values = written(tmp_path / "a.zarr", version, frames)
    image = open_ome_zarr(tmp_path / "a.zarr")
    assert image.grid.same_as(GRID) and image.unit == "HU" and image.frames == frames and image.kind == "uint16"
    box = ((2, 10), (0, 5), (3, 4))
    for frame in range(len(values)):
        assert np.array_equal(image.read(frame, box), values[frame, 2:10, 0:5, 3:4])


def foreign(path, *, axes=None, steps=None, shape=(5, 6, 7), dtype="int16", more=None, version="0.4", place="0"):
    """What another program may have written."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    array = group.create_array("0", shape=shape, chunks=shape, dtype=dtype)
    array[...] = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    if axes is None:
        axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"[-len(shape) :]]
    steps = [{"type": "scale", "scale": [2.0, 0.5, 0.25]}] if steps is None else steps
    image = {"axes": axes, "datasets": [{"path": place, "coordinateTransformations": steps}]} | (more or {})
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_microns_scales_and_translations(tmp_path, version):
    steps = [{"type": "scale", "scale": [2.0, 0.5, 0.25]}, {"type": "translation", "translation": [10.0, 20.0, 30.0]}]
    more = {"coordinateTransformations": [{"type": "scale", "scale": [3.0, 1.0, 1.0]}]}
    image = open_ome_zarr(foreign(tmp_path / "a.zarr", steps=steps, more=more, version=version))
    assert image.grid.shape == (7, 6, 5) and image.frames == {}
    assert np.allclose(image.grid.spacing_mm, (0.25e-3, 0.5e-3, 6e-3))
    assert np.allclose(image.grid.affine[:3, 3], (30e-3, 20e-3, 30e-3))
    assert image.read(0, ((1, 2), (2, 3), (3, 4))).item() == 3 * 42 + 2 * 7 + 1


def test_a_slice_and_doubles(tmp_path):
    steps = [{"type": "scale", "scale": [1.0, 1.0]}]
    image = open_ome_zarr(foreign(tmp_path / "a.zarr", shape=(6, 7), steps=steps, dtype="float64"))
    assert image.grid.shape == (7, 6, 1) and image.kind == "float32"
    assert image.read(0, ((0, 7), (0, 6), (0, 1))).dtype == np.float32


SPACE = [{"name": name, "type": "space"} for name in "zyx"]
LIES = {
    "no axes": {"more": {"axes": None}},
    "odd order": {"axes": SPACE[::-1]},
    "axes of another number": {"axes": SPACE[1:]},
    "doubled": {"axes": [SPACE[0], SPACE[2], SPACE[2]]},
    "odd unit": {"axes": [*SPACE[:2], SPACE[2] | {"unit": "parsec"}]},
    "scale 0": {"steps": [{"type": "scale", "scale": [0.0, 1.0, 1.0]}]},
    "scale nan": {"steps": [{"type": "scale", "scale": [float("nan"), 1.0, 1.0]}]},
    "scale short": {"steps": [{"type": "scale", "scale": [1.0]}]},
    "scale text": {"steps": [{"type": "scale", "scale": "abc"}]},
    "rotation": {"steps": [{"type": "rotation", "rotation": [1.0, 1.0, 1.0]}]},
    "steps no list": {"steps": 7},
    "outside": {"place": "../../etc"},
    "no such array": {"place": "9"},
    "place no text": {"place": 3},
    "complex": {"dtype": "complex64"},
    "64 bits": {"dtype": "int64"},
    "no datasets": {"more": {"datasets": []}},
}


@pytest.mark.parametrize("name", LIES)
def test_metadata_that_lie_are_one_error(tmp_path, name):
    with pytest.raises(InputError, match=str(tmp_path)):
        open_ome_zarr(foreign(tmp_path / "a.zarr", **LIES[name]))


def test_chunks_larger_than_memory_are_refused_before_they_are_made(tmp_path):
    path = foreign(tmp_path / "a.zarr")
    facts = json.loads((path / "0" / ".zarray").read_text()) | {"shape": [10**7] * 3, "chunks": [10**7] * 3}
    (path / "0" / ".zarray").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="memory"):
        open_ome_zarr(path)


def test_damaged_folders(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    assert not is_zarr(tmp_path / "empty.zarr")
    with pytest.raises(InputError, match="no OME-Zarr"):
        open_ome_zarr(tmp_path / "empty.zarr")
    (tmp_path / "text.zarr").mkdir()
    (tmp_path / "text.zarr" / "zarr.json").write_text("{ no json")
    with pytest.raises(InputError):
        open_ome_zarr(tmp_path / "text.zarr")
    written(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"levels 0\.\.0"):
        open_ome_zarr(tmp_path / "a.zarr", level=1)
    chunk = next(p for p in (tmp_path / "a.zarr" / "0").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(b"damaged")
    with pytest.raises(InputError, match="chunk"):
        open_ome_zarr(tmp_path / "a.zarr").read(0, WHOLE)


def test_our_affine_is_believed_only_while_it_fits(tmp_path):
    written(tmp_path / "a.zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r+")
    ome = group.attrs["ome"]
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = [1.0, 1.0, 1.5]
    group.attrs["ome"] = ome
    with pytest.raises(InputError, match="different voxel sizes"):
        open_ome_zarr(tmp_path / "a.zarr")


def test_nothing_is_left_of_an_image_that_failed(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), create_ome_zarr(tmp_path / "a.zarr", GRID, "uint8"):
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())
    written(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="exists already"):
        written(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="does not exist"):
        written(tmp_path / "missing" / "a.zarr")
    with pytest.raises(ValueError, match="in this order"):
        written(tmp_path / "b.zarr", frames={"c": 1, "t": 1})


def test_the_extra_is_named(tmp_path, monkeypatch):
    written(tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingExtra, match=r"scanfield\[zarr\]"):
        open_ome_zarr(tmp_path / "a.zarr")
