"""RTDOSE against two other readers: pydicom's pixel data, and SimpleITK's idea of where they lie."""

import math
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from pydicom.data import get_testdata_file

from scanfield.data.dicomrt import read_rtdose, write_rtdose
from scanfield.data.dose import PlanFacts
from scanfield.errors import InputError
from scanfield.space.grid import Grid

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LEFT_HANDED = Grid((5, 6, 7), np.array([[-2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]]))
PLAN = PlanFacts("1.2.3", ("1.2.4",), "PLAN", "PHYSICAL", ("A^B", "7", "", "O"), ("1.2.5", "20260101", "", "S", ""))


def turned(grid: Grid, degrees: float, axis: int) -> Grid:
    a, b = (k for k in range(3) if k != axis)
    turn = np.eye(4)
    angle = math.radians(degrees)
    turn[a, a] = turn[b, b] = math.cos(angle)
    turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
    return grid.moved(turn)


GRIDS = {
    "left-handed": LEFT_HANDED,
    "right-handed": LEFT_HANDED.moved(np.diag([-1.0, 1.0, 1.0, 1.0])),
    "turned": turned(LEFT_HANDED, 17, 2),
    "coronal": turned(LEFT_HANDED, 90, 0),
    "oblique": turned(turned(LEFT_HANDED, 17, 2), 31, 0),
    "one frame": Grid((5, 6, 1), LEFT_HANDED.affine),
}


def doses(grid: Grid) -> torch.Tensor:
    return 70 * torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))


def at(values: torch.Tensor, grid: Grid, x: np.ndarray) -> float:
    i, j, k = grid.to_voxel(torch.from_numpy(x)).round().long().tolist()
    return float(values[i, j, k])


@pytest.mark.parametrize("name", GRIDS)
def test_written_and_read_back_every_voxel_lies_where_it_was(name, tmp_path):
    grid, values = GRIDS[name], doses(GRIDS[name])
    write_rtdose(tmp_path / "d.dcm", values, grid, plan=PLAN)
    back = read_rtdose(tmp_path / "d.dcm")
    assert back.plan == PLAN
    for x in grid.points().double().numpy()[::17]:
        assert at(back.values, back.grid, x) == pytest.approx(at(values, grid, x), abs=1e-5)
    assert back.highest_gy == pytest.approx(float(values.max()), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "one frame"])
def test_simpleitk_finds_the_same_dose_at_the_same_place(name, tmp_path):
    grid, values, path = GRIDS[name], doses(GRIDS[name]), tmp_path / "d.dcm"
    write_rtdose(path, values, grid)
    image, scale = sitk.ReadImage(str(path)), float(pydicom.dcmread(path).DoseGridScaling)
    for x in grid.points().double().numpy()[::23]:
        index = image.TransformPhysicalPointToIndex((x * [-1, -1, 1]).tolist())
        assert scale * image.GetPixel(index) == pytest.approx(at(values, grid, x), abs=1e-5)


def test_pydicom_reads_a_valid_object_with_increasing_offsets(tmp_path):
    write_rtdose(tmp_path / "d.dcm", doses(LEFT_HANDED), LEFT_HANDED, plan=PLAN, description="x" * 80)
    data = pydicom.dcmread(tmp_path / "d.dcm")
    assert data.SOPClassUID.name == "RT Dose Storage" and data.Modality == "RTDOSE"
    assert data.FrameOfReferenceUID == "1.2.3" and data.StudyInstanceUID == "1.2.5"
    assert data.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == "1.2.4"
    assert data.pixel_array.shape == (7, 6, 5) and data.BitsAllocated == 32
    offsets = np.array(data.GridFrameOffsetVector, dtype=float)
    assert offsets[0] == 0 and (np.diff(offsets) > 0).all()
    assert len(data.SeriesDescription) == 64 and len(str(data.DoseGridScaling)) <= 16


def test_negative_values_of_a_model_are_written_as_zero(tmp_path):
    values = doses(LEFT_HANDED)
    values[0, 0, 0] = -1.0
    write_rtdose(tmp_path / "d.dcm", values, LEFT_HANDED)
    assert read_rtdose(tmp_path / "d.dcm").values.min() == 0


def test_a_sheared_grid_has_no_place_in_dicom(tmp_path):
    affine = LEFT_HANDED.affine.copy()
    affine[0, 2] = 0.5
    with pytest.raises(InputError, match="sheared"):
        write_rtdose(tmp_path / "d.dcm", doses(LEFT_HANDED), Grid(LEFT_HANDED.shape, affine))
    with pytest.raises(InputError, match="finite"):
        write_rtdose(tmp_path / "d.dcm", doses(LEFT_HANDED) * math.nan, LEFT_HANDED)
    assert not list(tmp_path.iterdir())


# pydicom's own file, and files that are wrong ------------------------------------------------------------------------


def test_pydicom_s_own_dose_is_relative_and_reads_with_its_reference():
    path = get_testdata_file("rtdose.dcm")
    with pytest.raises(InputError, match="RELATIVE") as caught:
        read_rtdose(path)
    assert "--relative-to-gy" in caught.value.fix
    dose, data = read_rtdose(path, relative_to_gy=2.0), pydicom.dcmread(path)
    assert dose.grid.shape == (10, 10, 15) and dose.grid.spacing_mm == pytest.approx((10, 10, 5))
    assert dose.plan is not None and dose.plan.summation == "BEAM"
    scale = 2 * float(data.DoseGridScaling)
    assert float(dose.values[3, 4, 5]) == pytest.approx(scale * data.pixel_array[5, 4, 3], rel=1e-6)
    x, y, z = (float(v) for v in data.ImagePositionPatient)
    assert dose.grid.affine[:3, 3] == pytest.approx([-x, -y, z])


@pytest.fixture
def written(tmp_path):
    """Rewrites an RTDOSE file after a change; returns its path."""

    def make(change=lambda data: None, name: str = "d.dcm") -> Path:
        path = tmp_path / name
        write_rtdose(path, doses(GRIDS["right-handed"]), GRIDS["right-handed"], plan=PLAN)
        data = pydicom.dcmread(path)
        change(data)
        data.save_as(path)
        return path

    return make


def absolute_offsets(data) -> None:
    data.GridFrameOffsetVector = [float(data.ImagePositionPatient[2]) + float(v) for v in data.GridFrameOffsetVector]


def test_absolute_offsets_mean_the_same_as_relative_ones(written):
    relative, absolute = read_rtdose(written()), read_rtdose(written(absolute_offsets))
    assert absolute.grid.same_as(relative.grid) and torch.equal(absolute.values, relative.values)


def test_decreasing_offsets_turn_the_order_of_the_frames(written):
    def reverse(data):
        array = data.pixel_array[::-1].copy()
        offsets = [float(v) for v in data.GridFrameOffsetVector]
        x, y, z = (float(v) for v in data.ImagePositionPatient)
        data.ImagePositionPatient = [x, y, z + offsets[-1]]
        data.GridFrameOffsetVector = [-v for v in offsets]
        data.PixelData = array.tobytes()

    one, other = read_rtdose(written()), read_rtdose(written(reverse))
    x = one.grid.points().double().numpy()[40]
    assert at(other.values, other.grid, x) == at(one.values, one.grid, x)


def set_to(name, value):
    return lambda data: setattr(data, name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.__delattr__("DoseGridScaling"), "how its numbers become dose"),
        (set_to("DoseGridScaling", "0"), "how its numbers become dose"),
        (set_to("DoseUnits", "CGY"), "not in Gy"),
        (set_to("DoseType", "ERROR"), "dose error"),
        (set_to("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "no RTDOSE"),
        (set_to("GridFrameOffsetVector", [5, 7, 9, 11, 13, 15, 17]), "neither at 0 nor"),
        (set_to("GridFrameOffsetVector", [0, 2, 4, 6, 8, 10, 20]), "not evenly spaced"),
        (set_to("GridFrameOffsetVector", [0, 2, 4]), "GridFrameOffsetVector must hold 7"),
        (set_to("FrameIncrementPointer", 0x00180063), "not counted by"),
        (set_to("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "no orthogonal"),
        (set_to("PixelSpacing", [0, 1]), "spacing must be positive"),
        (set_to("PixelRepresentation", 1), None),
    ],
)
def test_what_is_wrong_is_named(written, change, message):
    if message is None:  # signed integers are read as such
        assert read_rtdose(written(change)).highest_gy > 60
        return
    with pytest.raises(InputError, match=message):
        read_rtdose(written(change))


def test_negative_dose_is_refused(written):
    def change(data):
        data.PixelRepresentation = 1
        array = data.pixel_array.astype("<i4").copy()
        array[0, 0, 0] = -5000
        data.PixelData = array.tobytes()

    with pytest.raises(InputError, match="negative dose"):
        read_rtdose(written(change))


def test_a_cut_file_and_another_file_are_refused(written, tmp_path):
    path = written()
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_rtdose(path)
    (tmp_path / "text.dcm").write_text("no dicom at all")
    with pytest.raises(InputError):
        read_rtdose(tmp_path / "text.dcm")
    with pytest.raises(InputError, match="no such file"):
        read_rtdose(tmp_path / "missing.dcm")


def test_a_folder_with_one_dose_reads_and_mixed_plans_do_not(written, tmp_path):
    written()
    (tmp_path / "notes.txt").write_text("notes")
    assert read_rtdose(tmp_path).highest_gy > 60

    def other(data):
        data.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID = "9.9"

    written(other, "other.dcm")
    with pytest.raises(InputError, match="2 RTDOSE files of 2 plans, mixed"):
        read_rtdose(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no RTDOSE"):
        read_rtdose(empty)
