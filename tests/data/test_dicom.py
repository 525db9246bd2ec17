"""DICOM series, written here slice by slice from a real CT volume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless  # noqa: E402

from scanfield.data.dicom import read_dicom_series  # noqa: E402
from scanfield.data.samples import sample  # noqa: E402
from scanfield.errors import InputError, MissingExtra  # noqa: E402

Change = Callable[[Dataset], None]
AXIAL = np.array([[1.0, 0, 0], [0, 1, 0]])
OBLIQUE = Rotation.from_euler("xyz", [20, -15, 35], degrees=True).as_matrix()[:2]
CORNER = np.array([-120.5, -80.25, 33.0])  # LPS, mm
DY, DX, STEP = 3.0, 2.0, 5.0
COUNT = 8


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """(slices, rows, columns) in HU, no two axes alike."""
    values = sample("ct_abdomen_volume").values.numpy()[20:60, 10:84:2, 4 : 4 + COUNT]
    return np.ascontiguousarray(values.transpose(2, 1, 0)).astype(np.int16)


def dataset(hu: np.ndarray, k: int, orientation: np.ndarray = AXIAL, slope: float = 1.0) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{k + 1}"
    data.SeriesInstanceUID, data.StudyInstanceUID = "1.2.3", "1.2"
    data.Modality, data.SeriesDescription = "CT", "Abdomen 3 mm"
    data.InstanceNumber = 1  # wrong on purpose: the position decides
    data.Rows, data.Columns = hu.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelSpacing, data.SliceThickness = [DY, DX], STEP
    data.ImageOrientationPatient = [round(float(v), 8) for v in orientation.ravel()]
    data.ImagePositionPatient = [round(float(v), 4) for v in CORNER + k * STEP * np.cross(*orientation)]
    data.RescaleSlope, data.RescaleIntercept = slope, -1100
    data.PixelData = np.round((hu.astype(float) + 1100) / slope).astype("<u2").tobytes()
    return data


def save(data: Dataset, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def series(folder: Path, volume: np.ndarray, changes: dict[int, Change] | None = None, **more: Any) -> Path:
    """One file per slice, named against their order; `changes` alters single slices before they are saved."""
    for k, hu in enumerate(volume):
        data = dataset(hu, k, **more)
        if changes and k in changes:
            changes[k](data)
        save(data, folder / f"{97 * (k + 3) % 101:03d}.dcm")
    return folder


def every(change: Change) -> dict[int, Change]:
    return dict.fromkeys(range(COUNT), change)


def setting(**attributes: Any) -> Change:
    def change(data: Dataset) -> None:
        for key, value in attributes.items():
            setattr(data, key, value)

    return change


def without(name: str) -> Change:
    return lambda data: data.__delattr__(name)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, -AXIAL], ids=["axial", "oblique", "feet first"])
def test_values_and_places(tmp_path: Path, volume: np.ndarray, orientation: np.ndarray) -> None:
    scan = read_dicom_series(series(tmp_path / "a", volume, orientation=orientation))
    assert scan.unit == "HU" and scan.grid.shape == (volume.shape[2], volume.shape[1], COUNT)
    for k, row, column in [(0, 0, 0), (7, 36, 39), (2, 11, 30), (5, 30, 4)]:
        lps = CORNER + column * DX * orientation[0] + row * DY * orientation[1] + k * STEP * np.cross(*orientation)
        np.testing.assert_allclose(scan.grid.affine[:3] @ [column, row, k, 1], lps * [-1, -1, 1], atol=2e-4)
        assert scan.values[column, row, k] == volume[k, row, column]
    np.testing.assert_array_equal(scan.values.numpy(), volume.transpose(2, 1, 0))
    np.testing.assert_allclose(scan.grid.spacing_mm, (DX, DY, STEP), rtol=1e-6)


def test_simpleitk_reads_the_same_volume(tmp_path: Path, volume: np.ndarray) -> None:
    sitk = pytest.importorskip("SimpleITK")
    folder = series(tmp_path / "a", volume, orientation=OBLIQUE)
    scan = read_dicom_series(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    for index in [(0, 0, 0), (39, 36, 7), (5, 20, 3)]:
        lps = np.asarray(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(scan.grid.affine[:3] @ [*index, 1], lps * [-1, -1, 1], atol=2e-3)
        assert image.GetPixel(index) == scan.values[index]


def test_rescale_of_each_slice(tmp_path: Path, volume: np.ndarray) -> None:
    for k, hu in enumerate(volume):
        save(dataset(hu, k, slope=0.5 + k / 4), tmp_path / "a" / f"{k}.dcm")
    values = read_dicom_series(tmp_path / "a").values.numpy().transpose(2, 1, 0)
    for k in range(COUNT):
        assert np.abs(values[k] - volume[k]).max() <= (0.5 + k / 4) / 2


def test_a_missing_rescale_is_no_hounsfield_unit(tmp_path: Path, volume: np.ndarray) -> None:
    scan = read_dicom_series(series(tmp_path / "a", volume, every(without("RescaleSlope"))))
    assert scan.unit == "arbitrary"
    np.testing.assert_array_equal(scan.values.numpy(), volume.transpose(2, 1, 0) + 1100)
    with pytest.raises(InputError, match="differ in rescale"):
        read_dicom_series(series(tmp_path / "b", volume, {3: without("RescaleIntercept")}))


def test_signed_pixels_and_other_modalities(tmp_path: Path, volume: np.ndarray) -> None:
    def change(data: Dataset) -> None:
        data.PixelRepresentation, data.Modality = 1, "MR"
        data.PixelData = (np.frombuffer(data.PixelData, "<u2").astype(int) - 1100).astype("<i2").tobytes()
        del data.RescaleSlope, data.RescaleIntercept

    scan = read_dicom_series(series(tmp_path / "a", volume, every(change)))
    assert scan.unit == "arbitrary"
    np.testing.assert_array_equal(scan.values.numpy(), volume.transpose(2, 1, 0))


def test_positions_rounded_to_a_tenth_of_a_millimetre(tmp_path: Path, volume: np.ndarray) -> None:
    changes = {k: setting(ImagePositionPatient=[-120.5, -80.2, round(33.0 + 0.625 * k, 1)]) for k in range(COUNT)}
    spacing = read_dicom_series(series(tmp_path / "a", volume, changes)).grid.spacing_mm
    assert spacing[2] == pytest.approx(0.625, abs=0.1 / (COUNT - 1))


def test_a_single_slice_has_its_thickness(tmp_path: Path, volume: np.ndarray) -> None:
    scan = read_dicom_series(series(tmp_path / "a", volume[:1]))
    assert scan.grid.shape == (40, 37, 1) and scan.grid.spacing_mm == (DX, DY, STEP)


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path, volume: np.ndarray) -> None:
    folder = series(tmp_path / "a", volume)
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty").write_bytes(b"")
    report = dataset(volume[0], 99)
    report.SeriesInstanceUID = "1.2.9"
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    save(report, folder / "report.dcm")
    screenshot = dataset(volume[0], 98)
    screenshot.SeriesInstanceUID, screenshot.SamplesPerPixel = "1.2.8", 3
    del screenshot.ImagePositionPatient
    save(screenshot, folder / "screenshot.dcm")
    assert read_dicom_series(folder).grid.shape[2] == COUNT


def test_enhanced_ct_with_many_frames(tmp_path: Path, volume: np.ndarray) -> None:
    data = dataset(volume[0], 0)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = EnhancedCTImageStorage
    order = [3, 0, 6, 1, 7, 2, 5, 4]
    data.NumberOfFrames = COUNT
    data.PixelData = (volume[order].astype(int) + 1100).astype("<u2").tobytes()
    for name in ("PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient"):
        delattr(data, name)
    del data.RescaleSlope, data.RescaleIntercept

    def group(sequence: str, **attributes: Any) -> Dataset:
        inner, outer = Dataset(), Dataset()
        setting(**attributes)(inner)
        setattr(outer, sequence, Sequence([inner]))
        return outer

    shared = group("PixelMeasuresSequence", PixelSpacing=[DY, DX], SliceThickness=STEP)
    shared.update(group("PlaneOrientationSequence", ImageOrientationPatient=AXIAL.ravel().tolist()))
    shared.update(group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1100))
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = Sequence(
        group("PlanePositionSequence", ImagePositionPatient=(CORNER + np.array([0, 0, STEP * k])).tolist())
        for k in order
    )
    save(data, tmp_path / "a" / "all.dcm")
    scan = read_dicom_series(tmp_path / "a")
    assert scan.unit == "HU"
    np.testing.assert_array_equal(scan.values.numpy(), volume.transpose(2, 1, 0))
    np.testing.assert_allclose(scan.grid.affine[:3, 3], CORNER * [-1, -1, 1])

    data.NumberOfFrames = 2_000_000_000
    save(data, tmp_path / "b" / "all.dcm")
    with pytest.raises(InputError, match="without a position for each"):
        read_dicom_series(tmp_path / "b")


def test_several_series_are_listed_and_chosen(tmp_path: Path, volume: np.ndarray) -> None:
    series(tmp_path / "a", volume)
    for k in range(3):
        data = dataset(volume[k] * 0, k)
        data.SeriesInstanceUID, data.SeriesDescription = "1.2.4", "Scout"
        save(data, tmp_path / "a" / f"scout{k}.dcm")
    with pytest.raises(InputError) as caught:
        read_dicom_series(tmp_path / "a")
    message = str(caught.value)
    assert "2 series" in message and "series=0" in message and str(tmp_path / "a") in message
    assert "0: 8 files, CT Abdomen 3 mm, 1.2.3" in message and "1: 3 files, CT Scout, 1.2.4" in message
    assert read_dicom_series(tmp_path / "a", series=0).grid.shape[2] == 8
    assert read_dicom_series(tmp_path / "a", series="1").grid.shape[2] == 3
    assert read_dicom_series(tmp_path / "a", series="1.2.4").grid.shape[2] == 3
    for wrong in (2, -1, "1.2.5"):
        with pytest.raises(InputError, match="there is no series"):
            read_dicom_series(tmp_path / "a", series=wrong)


def test_missing_slices(tmp_path: Path, volume: np.ndarray) -> None:
    folder = series(tmp_path / "a", volume)
    for k in (3, 4, 6):
        (folder / f"{97 * (k + 3) % 101:03d}.dcm").unlink()
    with pytest.raises(InputError) as caught:
        read_dicom_series(folder)
    assert "slices are missing (3); the usual step is 5 mm" in caught.value.what
    assert "43.00 to 58.00 mm: 2 missing" in caught.value.what and "58.00 to 68.00 mm: 1 missing" in caught.value.what


def move(**by: float) -> Change:
    def change(data: Dataset) -> None:
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x + by.get("x", 0), y + by.get("y", 0), z + by.get("z", 0)]

    return change


def tilted(angle_deg: float) -> dict[int, Change]:
    return {k: move(y=k * STEP * np.tan(np.deg2rad(angle_deg))) for k in range(COUNT)}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({4: move(z=-STEP)}, r"share their position \(1 repeated\), the first at 48.00 mm: '\d+.dcm' and '\d+.dcm'"),
        ({4: move(z=1.5)}, "unevenly spaced"),
        (tilted(12.0), "tilted: slices are displaced at 12.00 degrees"),
        (tilted(0.5), "tilted"),
        ({2: setting(PixelSpacing=[3.0, 2.2])}, "differ in pixel spacing"),
        ({2: setting(ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6])}, "differ in orientation"),
        ({2: setting(Modality="PT")}, "differ in modality"),
        ({2: setting(Rows=36)}, "differ in size"),
        (every(without("ImagePositionPatient")), "no DICOM image with a position"),
        ({2: without("ImagePositionPatient")}, "ImagePositionPatient must hold 3 finite numbers, got None"),
        ({2: without("ImageOrientationPatient")}, "ImageOrientationPatient must hold 6"),
        ({2: without("PixelSpacing")}, "PixelSpacing must hold 2"),
        (every(setting(PixelSpacing=[3.0, 0.0])), "spacing must be positive"),
        (every(setting(PixelSpacing=[3.0, -2.0])), "spacing must be positive"),
        (every(setting(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])), "no orthogonal unit vectors"),
        (every(setting(RescaleSlope=0)), "rescale slope"),
        (every(setting(SamplesPerPixel=3)), "colour"),
        ({2: without("PixelData")}, "no pixel data"),
        ({2: setting(PixelData=bytes(100))}, "truncated or damaged"),
        (every(setting(Rows=65535, Columns=65535)), "truncated or damaged|GiB of memory"),
    ],
)
def test_what_is_no_regular_volume(tmp_path: Path, volume: np.ndarray, changes: dict[int, Change], word: str) -> None:
    folder = series(tmp_path / "a", volume, changes)
    with pytest.raises(InputError, match=word) as caught:
        read_dicom_series(folder)
    assert str(folder) in caught.value.where and caught.value.exit_code == 2


def test_a_small_tilt_from_rounding_is_accepted(tmp_path: Path, volume: np.ndarray) -> None:
    assert read_dicom_series(series(tmp_path / "a", volume, tilted(0.05))).grid.shape[2] == COUNT


@pytest.mark.parametrize("part", [0.25, 0.9])
def test_truncated_file(tmp_path: Path, volume: np.ndarray, part: float) -> None:
    folder = series(tmp_path / "a", volume)
    path = sorted(folder.iterdir())[2]
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(InputError, match="truncated or damaged") as caught:
        read_dicom_series(folder)
    assert path.name in caught.value.where


def test_compressed_without_a_decoder_or_damaged(tmp_path: Path, volume: np.ndarray) -> None:
    def change(data: Dataset) -> None:
        data.file_meta.TransferSyntaxUID = JPEG2000Lossless
        data.PixelData = encapsulate([b"\xff\x4f\xff\x51no codestream!"])
        data["PixelData"].VR = "OB"

    with pytest.raises(InputError, match="JPEG 2000 Image Compression") as caught:
        read_dicom_series(series(tmp_path / "a", volume, every(change)))
    assert "pylibjpeg" in caught.value.fix


def test_no_folder_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="read from its folder"):
        read_dicom_series(tmp_path / "no")
    with pytest.raises(InputError, match="no DICOM image"):
        read_dicom_series(tmp_path)


def test_pydicom_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(MissingExtra, match=r"scanfield\[dicom\]"):
        read_dicom_series(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_random_damage_gives_a_volume_or_an_input_error(tmp_path: Path, volume: np.ndarray) -> None:
    folder = series(tmp_path / "a", volume[:3])
    path = sorted(folder.iterdir())[1]
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        raw = bytearray(whole)
        raw[rng.integers(132, len(raw) - volume[0].nbytes)] = rng.integers(256)
        path.write_bytes(bytes(raw))
        try:
            read_dicom_series(folder)
        except InputError as error:
            assert str(error).replace("\n", "").isprintable()
            refused += 1
    assert 0 < refused < 100
