"""RTK's geometry against the matrix its documentation prints, and against its published formula for all parameters."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.cli.main import main
from scanfield.data.files import load
from scanfield.data.rtk import projection_matrix, read_rtk
from scanfield.errors import InputError
from scanfield.operators.fdk import feldkamp
from scanfield.operators.pixels import detector_pixels

ZERO = dict.fromkeys(("OutOfPlaneAngle", "InPlaneAngle", "SourceOffsetX", "SourceOffsetY"), 0.0)
PUBLISHED = ZERO | {
    "GantryAngle": 271.847274780273,
    "SourceToIsocenterDistance": 1000.0,
    "SourceToDetectorDistance": 1536.0,
    "ProjectionOffsetX": -117.056503295898,
    "ProjectionOffsetY": -1.01195001602173,
    "RadiusCylindricalDetector": 0.0,
}
PUBLISHED_MATRIX = [
    [-166.5093078829, 0.0, -1531.42837748039, -117056.503295898],
    [-1.01142410874151, -1536.0, 0.0326206557691505, -1011.95001602173],
    [-0.999480303105996, 0.0, 0.0322354417240802, -1000.0],
]


def general_view(number: int) -> dict[str, float]:
    """All parameters at work, different in every view."""
    draw = np.random.default_rng(number)
    small = draw.uniform(-1, 1, 7).tolist()
    return {
        "GantryAngle": float(draw.uniform(0, 360)),
        "OutOfPlaneAngle": 3 * small[0],
        "InPlaneAngle": 4 * small[1],
        "SourceToIsocenterDistance": 1000 + 5 * small[2],
        "SourceToDetectorDistance": 1500 + 5 * small[3],
        "SourceOffsetX": 6 * small[4],
        "SourceOffsetY": 7 * small[5],
        "ProjectionOffsetX": 20 * small[6],
        "ProjectionOffsetY": -15.0,
        "RadiusCylindricalDetector": 0.0,
    }


def circular_view(angle: float, radius: float = 0.0) -> dict[str, float]:
    return PUBLISHED | {
        "GantryAngle": angle,
        "ProjectionOffsetX": 9.0,
        "ProjectionOffsetY": -4.0,
        "RadiusCylindricalDetector": radius,
    }


def write_xml(path: Path, views: list[dict[str, float]], *, matrix: bool = True, extra: str = "") -> Path:
    lines = ['<?xml version="1.0"?>', "<!DOCTYPE RTKGEOMETRY>", '<RTKThreeDCircularGeometry version="3">', extra]
    for view in views:
        rows = "\n".join(" ".join(repr(float(v)) for v in row) for row in projection_matrix(view))
        parts = [f"<{name}>{value!r}</{name}>" for name, value in view.items()]
        lines += ["<Projection>", *parts, f"<Matrix>\n{rows}\n</Matrix>" if matrix else "", "</Projection>"]
    path.write_text("\n".join([*lines, "</RTKThreeDCircularGeometry>"]))
    return path


def write_mha(path: Path, values: np.ndarray, kind: str = "MET_FLOAT", *, compress: bool = False) -> Path:
    views, rows, columns = values.shape
    raw = values.tobytes()
    raw = zlib.compress(raw) if compress else raw
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"CompressedData = {compress}\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -40 -21 0\nElementSpacing = 2 3 1\n"
        f"DimSize = {columns} {rows} {views}\nElementType = {kind}\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + raw)
    return path


def scan_files(folder: Path, views: list[dict[str, float]]) -> tuple[Path, Path]:
    values = np.random.default_rng(0).random((len(views), 15, 41)).astype(np.float32)
    return write_mha(folder / "p.mha", values), write_xml(folder / "g.xml", views)


def test_the_matrix_is_the_one_rtk_documents():
    np.testing.assert_allclose(projection_matrix(PUBLISHED), PUBLISHED_MATRIX, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("circular", [True, False])
def test_points_are_seen_where_rtks_matrix_says(tmp_path, circular):
    """World points (RAS) are RTK's with x and y reversed; (u, v) mm become pixels by offset and spacing."""
    views = [circular_view(30.0 * k) if circular else general_view(k) for k in range(6)]
    scan = read_rtk(*scan_files(tmp_path, views))
    geometry = scan.acquisition
    assert (geometry.vectors is None) == circular and geometry.shape == (6, 15, 41)
    points = np.random.default_rng(1).uniform(-80, 80, (50, 3))
    seen = detector_pixels(geometry, torch.tensor(points))
    for k, view in enumerate(views):
        fixed = points * [-1, -1, 1]
        image = projection_matrix(view) @ np.vstack([fixed.T, np.ones(50)])
        u, v = image[:2] / image[2]
        np.testing.assert_allclose(seen.column[k], (u + 40) / 2, atol=1e-9)
        np.testing.assert_allclose(seen.row[k], (v + 21) / 3, atol=1e-9)


def test_rays_start_at_rtks_source_and_values_keep_their_order(tmp_path):
    views = [general_view(k) for k in range(3)]
    projections, xml = scan_files(tmp_path, views)
    scan = read_rtk(projections, xml)
    rays = scan.acquisition.rays(torch.arange(scan.acquisition.count), dtype=torch.float64)
    origin = rays.origin.reshape(3, -1, 3)[:, 0].numpy() * [-1, -1, 1]
    for k, view in enumerate(views):
        at_source = projection_matrix(view) @ [*origin[k], 1.0]
        np.testing.assert_allclose(at_source, 0, atol=1e-8)
    raw = np.frombuffer(projections.read_bytes()[-3 * 15 * 41 * 4 :], np.float32).reshape(3, 15, 41)
    np.testing.assert_array_equal(scan.values.numpy(), raw)


def test_a_cylindrical_detector_measures_along_its_arc(tmp_path):
    views = [circular_view(30.0 * k, radius=1536.0) for k in range(4)]
    geometry = read_rtk(*scan_files(tmp_path, views)).acquisition
    assert geometry.detector.kind == "arc"
    step = np.rad2deg(2 / 1536)
    assert geometry.detector.spacing == pytest.approx((3.0, step))
    assert geometry.detector.offset == pytest.approx((-4.0, 9.0 / 2 * step))
    with pytest.raises(InputError, match="centred on the source"):
        read_rtk(*scan_files(tmp_path, [circular_view(0.0, radius=800.0)]))


def test_the_volume_surrounds_what_is_measured_and_can_be_reconstructed(tmp_path):
    views = [circular_view(4.0 * k) for k in range(90)]
    scan = read_rtk(*scan_files(tmp_path, views), spacing_mm=4.0)
    volume = scan.acquisition.volume
    assert volume.spacing_mm == pytest.approx((4.0, 4.0, 4.0))
    np.testing.assert_allclose(volume.centre_mm, 0, atol=1e-9)
    radius = 1000 * np.sin(np.arctan((9 + 41) / 1536))
    assert 2 * radius <= volume.shape[0] * 4.0 < 2 * radius + 4
    assert torch.isfinite(feldkamp(scan.values, scan.acquisition, volume)).all()


def test_parameters_of_all_views_come_first_and_compressed_intensities_need_air(tmp_path):
    common = "<SourceToIsocenterDistance>1000</SourceToIsocenterDistance>"
    common += "<SourceToDetectorDistance>1500</SourceToDetectorDistance>"
    xml = tmp_path / "g.xml"
    turns = "".join(f"<Projection><GantryAngle>{k}</GantryAngle></Projection>" for k in (0, 5))
    xml.write_text(f'<RTKThreeDCircularGeometry version="3">{common}{turns}</RTKThreeDCircularGeometry>')
    counts = np.full((2, 15, 41), 1000, dtype=np.uint16)
    counts[1] = 500
    mha = write_mha(tmp_path / "p.mha", counts, "MET_USHORT", compress=True)
    with pytest.raises(InputError, match="intensities"):
        read_rtk(mha, xml)
    scan = read_rtk(mha, xml, air=2000.0)
    assert scan.acquisition.source_to_detector_mm == 1500
    assert torch.allclose(scan.values[0], torch.tensor(2.0).log())
    assert torch.allclose(scan.values[1], torch.tensor(4.0).log())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("<GantryAngle>", "<GantryAngel>"), "no complete XML"),
        (("RTKThreeDCircularGeometry", "Geometry"), "outermost element"),
        (("</Projection>", "<Collimation>1</Collimation></Projection>"), "'Collimation' is not supported"),
        (("<SourceOffsetX>0.0", "<SourceOffsetX>nan"), "finite number"),
        (("<SourceOffsetX>0.0", "<SourceOffsetX>3.0"), "not that of the parameters"),
        (("<Matrix>", "<Matrix>1 "), "three rows of four"),
        (("<SourceToIsocenterDistance>1000.0", "<SourceToIsocenterDistance>2000.0"), "0 < SourceToIso"),
        (("<!DOCTYPE RTKGEOMETRY>", '<!DOCTYPE a [<!ENTITY b "c">]>'), "defines entities"),
        (("<Projection>", "<!-- <Projection>"), "no complete XML"),
    ],
)
def test_damaged_geometries_are_one_clear_error(tmp_path, change, words):
    projections, xml = scan_files(tmp_path, [PUBLISHED])
    xml.write_text(xml.read_text().replace(*change))
    with pytest.raises(InputError, match=words) as caught:
        read_rtk(projections, xml)
    assert "g.xml" in caught.value.where


def test_numbers_of_views_must_agree(tmp_path):
    projections, _ = scan_files(tmp_path, [PUBLISHED])
    with pytest.raises(InputError, match="2 views, the projections hold 1"):
        read_rtk(projections, write_xml(tmp_path / "two.xml", [PUBLISHED, PUBLISHED]))


def test_on_the_command_line(tmp_path, capsys):
    projections, xml = scan_files(tmp_path, [general_view(k) for k in range(3)])
    out = tmp_path / "scan.npz"
    assert main(["convert", str(projections), str(xml), "-o", str(out), "--spacing-mm", "5", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["views"] == 3 and facts["calibrated"] and facts["reconstruct_spacing_mm"] == pytest.approx([5, 5, 5])
    back = load(out)
    direct = read_rtk(projections, xml, spacing_mm=5.0)
    assert torch.equal(back.values, direct.values)
    np.testing.assert_allclose(back.acquisition.view_vectors().source, direct.acquisition.view_vectors().source)
    assert main(["convert", str(projections), str(xml), "-o", str(tmp_path / "scan.nii")]) == 2
