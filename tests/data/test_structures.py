import math

import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

from scanfield.data.dose import PlanFacts
from scanfield.data.structures import Structure, StructureSet, read_rtstruct, write_rtstruct
from scanfield.errors import InputError
from scanfield.space.grid import Grid

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
GRID = Grid((30, 26, 12), np.array([[-2.0, 0, 0, 29], [0, 2.0, 0, -25], [0, 0, 3.0, -16], [0, 0, 0, 1]]))


def masks() -> dict[str, torch.Tensor]:
    x = GRID.points().double().reshape(*GRID.shape, 3)
    body = (x[..., 0] / 26) ** 2 + (x[..., 1] / 22) ** 2 < 1
    shell = body & ((x[..., :2].norm(dim=-1)) > 9)
    ball = (x - torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64)).norm(dim=-1) < 10
    return {"BODY": body, "PTV": ball, "Shell, with a hole": shell}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "rs.dcm"
    write_rtstruct(path, masks(), GRID, plan=PlanFacts("1.2.3"))
    return path


def test_masks_come_back_exactly_on_their_own_grid(written):
    found = read_rtstruct(written)
    assert found.frame_of_reference == "1.2.3" and found.skipped == ()
    assert [s.name for s in found.structures] == list(masks())
    for structure in found.structures:
        assert torch.equal(structure.on(GRID), masks()[structure.name])
        assert structure.share_on(GRID) == 1.0


def test_another_reader_sees_the_contours_where_the_mask_is(written):
    """pydicom alone: the area of every contour by the shoelace formula, holes negative by the even-odd rule."""
    data = pydicom.dcmread(written)
    names = [item.ROIName for item in data.StructureSetROISequence]
    assert names == list(masks())
    area = {}
    for name, item in zip(names, data.ROIContourSequence, strict=True):
        by_plane: dict[float, list[float]] = {}
        for contour in item.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            p = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            assert len(p) == contour.NumberOfContourPoints and np.ptp(p[:, 2]) == 0
            nxt = np.roll(p, -1, axis=0)
            by_plane.setdefault(p[0, 2], []).append(abs(float((p[:, 0] * nxt[:, 1] - nxt[:, 0] * p[:, 1]).sum())) / 2)
        area[name] = sum(max(a) - sum(sorted(a)[:-1]) for a in by_plane.values())
    for name, mask in masks().items():
        assert area[name] == pytest.approx(float(mask.sum()) * 4, rel=0.06)


def test_on_a_finer_grid_the_volume_stays(written):
    fine = GRID.resampled((1.0, 1.0, 1.0))
    for structure in read_rtstruct(written).structures:
        volume = float(structure.on(fine).sum()) * fine.voxel_volume_mm3
        assert volume == pytest.approx(float(masks()[structure.name].sum()) * GRID.voxel_volume_mm3, rel=0.08)


def test_outside_the_grid_is_an_error_with_its_name(written):
    ptv = read_rtstruct(written).chosen(["PTV"]).structures[0]
    away = Grid((10, 10, 5), GRID.affine + np.array([[0, 0, 0, 500.0], *[[0] * 4] * 3]))
    with pytest.raises(InputError, match="'PTV' lies outside the dose grid"):
        ptv.on(away)
    affine = GRID.affine.copy()
    half = Grid((15, 26, 12), affine)
    body = read_rtstruct(written).structures[0]
    assert 0.2 < body.share_on(half) < 0.8


def test_structures_are_chosen_by_name(written):
    found = read_rtstruct(written)
    assert found.chosen([]) is found
    assert [s.name for s in found.chosen(["PTV", "BODY"]).structures] == ["PTV", "BODY"]
    with pytest.raises(InputError, match=r"no structure 'PTv' \(did you mean 'PTV'"):
        found.chosen(["PTv"])


def test_a_mask_is_read_at_its_nearest_voxels_elsewhere():
    mask = masks()["PTV"]
    structure = Structure("PTV", (mask, GRID))
    assert torch.equal(structure.on(GRID), mask)
    fine = GRID.resampled((1.0, 1.0, 1.5))
    assert int(structure.on(fine).sum()) == 8 * int(mask.sum())
    larger = Grid((40, 40, 20), GRID.affine)
    assert int(structure.on(larger).sum()) == int(mask.sum())
    assert structure.share_on(Grid((30, 26, 6), GRID.affine)) < 1.0


def test_pydicom_s_own_structures():
    found = read_rtstruct(get_testdata_file("rtstruct.dcm"))
    assert [s.name for s in found.structures] == ["patient"] and found.skipped == ("Isocenter 1", "Isocenter 2")
    grid = Grid.centred((400, 400, 300), 2.0)
    shares = found.structures[0].share_on(grid)
    assert 0 <= shares <= 1


def changed(path, change):
    data = pydicom.dcmread(path)
    change(data)
    data.save_as(path)
    return path


def odd(data):
    data.ROIContourSequence[0].ContourSequence[0].ContourData = [1, 2, 3, 4]


def frames(data):
    data.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "7.7"


def open_lines(data):
    for item in data.ROIContourSequence:
        for contour in item.ContourSequence:
            contour.ContourGeometricType = "OPEN_PLANAR"


def tilted(data):
    contour = data.ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
    points[:, 2] += np.linspace(0, 9, len(points))
    contour.ContourData = [f"{v:.6f}" for v in points.ravel()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (odd, "no triples"),
        (frames, "2 frames of reference"),
        (open_lines, "no structure with closed contours"),
        (tilted, "leaves its plane"),
        (lambda data: setattr(data, "SOPClassUID", "1.2.3"), "no RTSTRUCT"),
    ],
)
def test_what_is_wrong_is_named(written, change, message):
    with pytest.raises(InputError, match=message):
        read_rtstruct(changed(written, change))


def test_a_structure_without_contours_is_skipped(tmp_path):
    empty = masks() | {"nothing": torch.zeros(GRID.shape, dtype=torch.bool)}
    write_rtstruct(tmp_path / "rs.dcm", empty, GRID)
    found = read_rtstruct(tmp_path / "rs.dcm")
    assert found.skipped == ("nothing",) and len(found.structures) == 3
    assert isinstance(found, StructureSet) and found.frame_of_reference


def test_a_structure_drawn_in_one_plane_is_as_thick_as_the_others_planes_are_apart(tmp_path):
    one = torch.zeros(GRID.shape, dtype=torch.bool)
    one[8:20, 8:20, 5] = True
    write_rtstruct(tmp_path / "rs.dcm", masks() | {"thin": one}, GRID)
    thin = read_rtstruct(tmp_path / "rs.dcm").chosen(["thin"]).structures[0]
    fine = GRID.resampled((2.0, 2.0, 0.5))
    thickness = float(thin.on(fine).any(dim=0).any(dim=0).sum()) * 0.5
    assert math.isclose(thickness, 3.0, abs_tol=0.6)
