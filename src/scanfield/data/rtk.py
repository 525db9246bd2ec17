"""Cone-beam scans of the Reconstruction Toolkit (RTK): geometry in XML, projections in a MetaImage.

Notation (RTK, "3D circular projection geometry"): nine numbers place source and detector of a view, angles in degrees,
lengths in mm. A point x of the fixed frame is seen by the projection matrix

    P = T(sx - px, sy - py) M T(-sx, -sy, 0) R,    R = Rz(-InPlane) Rx(-OutOfPlane) Ry(-Gantry),
    M = [[-SDD, 0, 0, 0], [0, -SDD, 0, 0], [0, 0, 1, -SID]]

at (u, v) mm of the projection image, s being the source's and p the projection's offsets. So in the frame turned by R
the source is at (sx, sy, SID), and the point (u, v) of the detector at (u + px, v + py, SID - SDD). A cylindrical
detector about the source measures u along its arc.

RTK turns about the y axis of its fixed frame, which is taken for the frame of ITK images (LPS): a volume that RTK
reconstructs and one of this library lie in the same place. Our gantry turns about z: (x, y, z) of RTK is (x, -z, y)
there, and (-x, -y, z) in the world (RAS).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.guard import existing_file, located
from scanfield.data.measurement import Measurement
from scanfield.data.mha import MetaImage, read_mha
from scanfield.data.transmission import line_integrals
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry, ViewVectors

_XML_BYTES = 2**26
_PARAMETERS = {
    "GantryAngle": 0.0, "OutOfPlaneAngle": 0.0, "InPlaneAngle": 0.0, "SourceToIsocenterDistance": 0.0,
    "SourceOffsetX": 0.0, "SourceOffsetY": 0.0, "SourceToDetectorDistance": 0.0, "ProjectionOffsetX": 0.0,
    "ProjectionOffsetY": 0.0, "RadiusCylindricalDetector": 0.0,
}  # fmt: skip
_LARGEST_SIDE = 256  # voxels of the default volume
GANTRY_OF_FIXED = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
FRAME = np.array([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Gantry mm -> world mm (RAS)."""


def read_rtk(
    projections: str | Path,
    geometry: str | Path,
    *,
    air: float | None = None,
    spacing_mm: float | None = None,
) -> Measurement[ProjectionGeometry]:
    """Reads a scan of RTK.

    Args:
        projections: MetaImage (columns, rows, views): line integrals, or with `air`, intensities.
        geometry: XML file, one `Projection` a view.
        air: intensity without an object; then p = -log(I / air).
        spacing_mm: of the volume to reconstruct, the box around all that is measured (None: a detector pixel at the
            axis, at most 256 voxels a side).

    Raises:
        InputError: a file is missing or damaged, both do not have the same number of views, the geometry has something
            that is not supported, or pixels are saturated or without transmission.
    """
    image = read_mha(projections)
    with located(projections):
        if image.values.ndim != 3:
            raise InputError(f"projections have three axes (columns, rows, views), got {image.values.ndim}")
        if not np.allclose(image.direction, np.eye(3), atol=1e-5):
            raise InputError("the projections' axes are turned or mirrored, which is not supported")
        if air is None and image.values.dtype.kind != "f":
            raise InputError(
                f"these are intensities ({image.values.dtype}), not line integrals", fix="give the intensity in air"
            )
        raw = image.values if air is None else line_integrals(image.values, air)
    with located(geometry):
        views = _read_views(existing_file(geometry))
        if len(views) != len(image.values):
            raise InputError(f"the geometry describes {len(views)} views, the projections hold {len(image.values)}")
        scan = _geometry(views, image, spacing_mm)
    return Measurement(torch.from_numpy(raw.astype(np.float32)), scan, unit="1", source=str(projections))


def projection_matrix(view: dict[str, float]) -> np.ndarray:
    """P of the module, (3, 4): fixed frame mm -> (u, v) mm, homogeneous."""
    s, p = [[view[f"{who}Offset{axis}"] for axis in "XY"] for who in ("Source", "Projection")]
    shift = np.array([[1.0, 0, s[0] - p[0]], [0, 1, s[1] - p[1]], [0, 0, 1]])
    sid, sdd = view["SourceToIsocenterDistance"], view["SourceToDetectorDistance"]
    magnify = np.array([[-sdd, 0, 0, 0], [0, -sdd, 0, 0], [0, 0, 1, -sid]])
    source = np.eye(4)
    source[:2, 3] = -s[0], -s[1]
    turn = np.eye(4)
    turn[:3, :3] = _rotation(view)
    return np.asarray(shift @ magnify @ source @ turn)


def _rotation(view: dict[str, float]) -> np.ndarray:
    angles = [-view[name] for name in ("InPlaneAngle", "OutOfPlaneAngle", "GantryAngle")]
    return np.asarray(Rotation.from_euler("ZXY", angles, degrees=True).as_matrix())


def _read_views(path: Path) -> list[dict[str, float]]:
    """The parameters of every view: those of all views first, then their own.

    Raises:
        InputError: no such file, or entries that are unknown, no numbers, or contradict the matrix beside them.
    """
    if path.stat().st_size > _XML_BYTES:
        raise InputError("a geometry file is not larger than 64 MiB")
    try:
        text = path.read_text(encoding="utf-8")
        if "<!ENTITY" in text:
            raise InputError("the XML defines entities, which a geometry has no use for; they are not read")
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"this is no complete XML file: {error}", fix="copy the file again") from None
    if root.tag != "RTKThreeDCircularGeometry":
        raise InputError(f"a geometry's outermost element is RTKThreeDCircularGeometry, got {root.tag}")
    common = dict(_PARAMETERS)
    views: list[dict[str, float]] = []
    for entry in root:
        if entry.tag != "Projection":
            common[_known(entry.tag)] = _number(entry)
            continue
        view, matrix = dict(common), None
        for part in entry:
            if part.tag == "Matrix":
                matrix = _matrix(part)
            else:
                view[_known(part.tag)] = _number(part)
        where = f"projection {len(views)}"
        sid, sdd = view["SourceToIsocenterDistance"], view["SourceToDetectorDistance"]
        if not 0 < sid < sdd:
            raise InputError(
                f"a cone beam needs 0 < SourceToIsocenterDistance < SourceToDetectorDistance, got {sid:g} and {sdd:g}",
                where=where,
            )
        if matrix is not None and not np.allclose(matrix, projection_matrix(view), rtol=1e-5, atol=1e-3 * sdd):
            raise InputError("the matrix is not that of the parameters beside it", where=where, fix="correct either")
        views.append(view)
    if not views:
        raise InputError("the geometry holds no Projection")
    return views


def _known(tag: str) -> str:
    if tag not in _PARAMETERS:
        raise InputError(f"the geometry's entry '{tag}' is not supported", fix=f"known are {', '.join(_PARAMETERS)}")
    return tag


def _number(entry: ElementTree.Element) -> float:
    try:
        value = float(entry.text or "")
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"'{entry.tag}' must be a finite number, got '{(entry.text or '').strip()[:40]}'")
    return value


def _matrix(entry: ElementTree.Element) -> np.ndarray:
    try:
        return np.array([float(part) for part in (entry.text or "").split()]).reshape(3, 4)
    except ValueError:
        raise InputError("a projection's Matrix has three rows of four numbers") from None


def _geometry(views: list[dict[str, float]], image: MetaImage, spacing_mm: float | None) -> ProjectionGeometry:
    _, rows, columns = image.values.shape
    (du, dv), (u0, v0) = image.spacing[:2], image.origin[:2]
    middle = np.array([u0 + du * (columns - 1) / 2, v0 + dv * (rows - 1) / 2])

    def each(name: str) -> np.ndarray:
        return np.array([view[name] for view in views])

    sid, sdd = each("SourceToIsocenterDistance"), each("SourceToDetectorDistance")
    turned = np.stack([each(f"ProjectionOffset{axis}") for axis in "XY"], axis=1) + middle
    angles = each("GantryAngle")
    own = ["OutOfPlaneAngle", "InPlaneAngle", "SourceOffsetX", "SourceOffsetY"]
    circular = not any(each(name).any() for name in own) and not any(np.ptp(x) for x in (sid, sdd, *turned.T))
    radius = each("RadiusCylindricalDetector")
    if radius.any():
        if not circular or not np.allclose(radius, sdd, rtol=1e-3):
            raise InputError(
                "a cylindrical detector must be centred on the source (radius = SourceToDetectorDistance), at rest",
                where="RadiusCylindricalDetector",
            )
        scale = np.rad2deg(1 / sdd[0])
        detector = Detector("arc", (rows, columns), (dv, du * scale), (turned[0, 1], turned[0, 0] * scale))
    else:
        offset = (turned[0, 1], turned[0, 0]) if circular else (0.0, 0.0)
        detector = Detector("flat", (rows, columns), (dv, du), offset)
    vectors = None
    if not circular:
        back = np.stack([_rotation(view).T for view in views])  # the turned frame -> the fixed frame
        source = np.stack([each("SourceOffsetX"), each("SourceOffsetY"), sid], axis=1)
        centre = np.column_stack([turned, sid - sdd])
        turn = GANTRY_OF_FIXED @ back
        place, towards = np.einsum("vij,vj->vi", turn, source), np.einsum("vij,vj->vi", turn, centre)
        vectors = ViewVectors(place, towards, du * turn[:, :, 0], dv * turn[:, :, 1])
    half_u = float(np.abs(turned[:, 0]).max() + columns * du / 2)
    half_v = float(np.abs(turned[:, 1]).max() + rows * dv / 2)
    angle = half_u / sdd.min() if radius.any() else np.arctan(half_u / sdd.min())
    radius_mm, half_height = float(sid.max() * np.sin(angle)), half_v * float((sid / sdd).max())
    pixel_mm = du * float((sid / sdd).mean())
    volume = _volume(radius_mm, half_height, spacing_mm or max(pixel_mm, 2 * radius_mm / _LARGEST_SIDE))
    return ProjectionGeometry(
        "cone",
        angles,
        detector,
        volume,
        source_to_axis_mm=float(sid[0]),
        source_to_detector_mm=float(sdd[0]),
        frame=FRAME,
        vectors=vectors,
    )


def _volume(radius_mm: float, half_height_mm: float, spacing_mm: float) -> Grid:
    """The box around the measured cylinder, axial slices across the rotation axis, centred on the isocentre."""
    if not 0 < spacing_mm < np.inf:
        raise InputError(f"the voxel size must be positive, got {spacing_mm} mm")
    side, height = (max(1, int(np.ceil(2 * mm / spacing_mm - 1e-6))) for mm in (radius_mm, half_height_mm))
    lattice = np.diag([spacing_mm] * 3 + [1.0])
    lattice[:3, 3] = -spacing_mm * (np.array([side, side, height]) - 1) / 2
    return Grid((side, side, height), FRAME @ lattice)
