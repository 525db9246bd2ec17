"""The cut into bricks, what their headers leave out, and outer headers that lie."""

from __future__ import annotations

import numpy as np
import pytest

from scanfield.codec.bricks import BRICK, Bricks, is_brick_file, merged, open_bricks, outer_header, without
from scanfield.codec.container import Section, pack, write_container
from scanfield.errors import InputError
from scanfield.space.grid import Grid

FACTS = {"type": "int16", "low": -5, "high": 90}
SHARED = {"method": "sci", "config": {"layers": 5}, "facts": FACTS}


@pytest.mark.parametrize(("shape", "most"), [((40, 30, 20), 16), ((129, 5, 1), 64), ((7, 7, 7), 100)])
def test_bricks_tile_every_frame_once(shape, most):
    bricks = Bricks.of(Grid.centred(shape, 1.0), {"t": 2, "c": 3}, most)
    painted = np.zeros((6, *shape), dtype=int)
    for number in range(bricks.total):
        box = bricks.box(number)
        assert all(0 < stop - start <= most for start, stop in box)
        painted[bricks.frame(number)][tuple(slice(*part) for part in box)] += 1
        assert bricks.part(number).shape == tuple(stop - start for start, stop in box)
    assert (painted == 1).all() and bricks.voxels == painted.size


def test_touching_is_what_overlaps():
    bricks = Bricks.of(Grid.centred((40, 30, 20), 1.0), {"t": 2}, 16)
    rng = np.random.default_rng(0)
    for _ in range(40):
        first = [int(rng.integers(0, n)) for n in (40, 30, 20)]
        box = tuple((a, int(rng.integers(a + 1, n + 1))) for a, n in zip(first, (40, 30, 20), strict=True))
        wanted = [
            number
            for number in range(bricks.per_frame, bricks.total)
            if all(a < d and c < b for (a, b), (c, d) in zip(box, bricks.box(number), strict=True))
        ]
        assert bricks.touching(box, 1) == wanted


def test_headers_leave_out_what_is_shared():
    shared = {"a": 1, "b": {"c": 2.0, "d": [1, 2]}, "e": {}}
    for header in (
        {"a": 1, "b": {"c": 2.0, "d": [1, 2]}, "e": {}},
        {"a": 1.0, "b": {"c": 3.0, "d": [1, 2], "x": 5}, "e": {"f": True}, "g": {"h": None}},
        {"a": {"n": 1}, "b": {"c": 2.0, "d": []}, "e": 0},
    ):
        own = without(header, shared)
        assert repr(merged(shared, own)) == repr(header)
    assert without({"a": 1, "b": {"c": 2.0, "d": [1, 2], "z": 1}, "e": {}}, shared) == {"b": {"z": 1}}
    with pytest.raises(ValueError, match="lacks"):
        without({"a": 1}, shared)


def brick_file(path, change=None, count=8):
    bricks = Bricks.of(Grid.centred((20, 20, 20), 1.0), {"t": 2}, 16)
    header = outer_header(bricks, SHARED, unit="HU")
    if change is not None:
        part, entries = change
        header[part] = header[part] | entries
    write_container(path, header, [Section(str(n), BRICK, pack({"constant": n}, [])) for n in range(count)])
    return path


def test_a_file_of_bricks(tmp_path):
    path = brick_file(tmp_path / "a.sfz", count=16)
    assert is_brick_file(path)
    file = open_bricks(path)
    assert file.bricks.total == 16 and file.kind == "int16" and file.unit == "HU"
    assert [file.brick(n).header["constant"] for n in (0, 7, 15)] == [0, 7, 15]


@pytest.mark.parametrize(
    "change",
    [
        ("volume", {"shape": [10**6, 10**6, 10**6]}),
        ("volume", {"edge": [10**9, 10**9, 10**9]}),
        ("volume", {"edge": [0, 1, 1]}),
        ("volume", {"edge": [1, 1]}),
        ("volume", {"edge": None}),
        ("volume", {"frames": {"t": 10**12}}),
        ("volume", {"frames": {"t": -2}}),
        ("volume", {"frames": {"q": 2}}),
        ("volume", {"frames": [2]}),
        ("volume", {"affine": [[0.0] * 4] * 4}),
        ("facts", {"type": "complex64"}),
        ("facts", {"low": 100}),
        ("facts", {"high": -1e308}),
        ("facts", {"low": "x"}),
    ],
)
def test_outer_headers_that_lie(tmp_path, change):
    with pytest.raises(InputError):
        open_bricks(brick_file(tmp_path / "a.sfz", change, count=16))


def test_missing_bricks(tmp_path):
    with pytest.raises(InputError, match="promises 16 bricks, it has 8"):
        open_bricks(brick_file(tmp_path / "a.sfz"))


def test_a_brick_that_describes_no_field(tmp_path):
    bricks = Bricks.of(Grid.centred((8, 8, 8), 1.0), {}, 8)
    for header in ({}, {"spec": 3}):
        write_container(
            tmp_path / "a.sfz", outer_header(bricks, SHARED, unit="HU"), [Section("0", BRICK, pack(header, []))]
        )
        with pytest.raises(InputError, match="describes no field"):
            open_bricks(tmp_path / "a.sfz").brick(0)
