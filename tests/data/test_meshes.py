"""Mesh files: round trips, other programs' files, and files that lie."""

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel import gifti

from scanfield.data.meshes import read_mesh, write_mesh
from scanfield.errors import InputError
from scanfield.space.mesh import Mesh

TETRAHEDRON = Mesh(
    np.array([[0.5, 0, 0], [10.25, 0, 0], [0, -7.5, 0], [0, 0, 3.125]]),
    np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]]),
)


def shapes(mesh: Mesh) -> set[tuple[tuple[float, ...], ...]]:
    """Faces as cycles of corner positions, wherever a cycle starts and however vertices are numbered."""
    cycles = set()
    for face in mesh.vertices[mesh.faces]:
        rolls = [tuple(tuple(map(float, corner)) for corner in np.roll(face, k, axis=0)) for k in range(3)]
        cycles.add(min(rolls))
    return cycles


@pytest.mark.parametrize("name", ["m.ply", "m.stl", "m.surf.gii", "M.PLY"])
def test_round_trip_keeps_places_and_outer_sides(tmp_path: Path, name: str) -> None:
    write_mesh(tmp_path / name, TETRAHEDRON)
    found = read_mesh(tmp_path / name)
    assert shapes(found) == shapes(TETRAHEDRON)
    assert found.closed == TETRAHEDRON.closed and found.volume_mm3 == pytest.approx(TETRAHEDRON.volume_mm3)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_gifti_is_what_nibabel_reads_in_scanner_coordinates(tmp_path: Path) -> None:
    write_mesh(tmp_path / "m.gii", TETRAHEDRON)
    image = nib.load(tmp_path / "m.gii")
    points, faces = image.agg_data(("pointset", "triangle"))
    np.testing.assert_array_equal(points, TETRAHEDRON.vertices.astype(np.float32))
    np.testing.assert_array_equal(faces, TETRAHEDRON.faces)
    system = image.get_arrays_from_intent("NIFTI_INTENT_POINTSET")[0].coordsys
    assert system.dataspace == nib.nifti1.xform_codes["NIFTI_XFORM_SCANNER_ANAT"]
    np.testing.assert_array_equal(system.xform, np.eye(4))


@pytest.mark.parametrize("encoding", ["ASCII", "B64BIN", "B64GZ"])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_giftis_of_nibabel_are_read(tmp_path: Path, encoding: str, endian: str) -> None:
    arrays = [
        gifti.GiftiDataArray(values, intent=intent, encoding=f"GIFTI_ENCODING_{encoding}", datatype=kind, endian=endian)
        for values, intent, kind in (
            (TETRAHEDRON.faces.astype(np.int32), "NIFTI_INTENT_TRIANGLE", "NIFTI_TYPE_INT32"),
            (TETRAHEDRON.vertices.astype(np.float32), "NIFTI_INTENT_POINTSET", "NIFTI_TYPE_FLOAT32"),
        )
    ]
    nib.save(gifti.GiftiImage(darrays=arrays), tmp_path / "m.surf.gii")
    truth = nib.load(tmp_path / "m.surf.gii").agg_data(("pointset", "triangle"))
    found = read_mesh(tmp_path / "m.surf.gii")
    np.testing.assert_array_equal(found.vertices.astype(np.float32), truth[0])
    np.testing.assert_array_equal(found.faces, truth[1])


ASCII_PLY = """ply
format ascii 1.0
comment two triangles' worth of a square, with colours and an element nobody needs
element vertex 4
property float x
property float y
property double z
property uchar red
element face 1
property list uchar int vertex_index
element edge 1
property int vertex1
property int vertex2
end_header
0 0 1.5 255
1 0 1.5 0
1 1 1.5 0
0 1 1.5 7
4 0 1 2 3
0 1
"""


def test_text_ply_with_other_properties_and_quadrilaterals(tmp_path: Path) -> None:
    (tmp_path / "m.ply").write_text(ASCII_PLY)
    mesh = read_mesh(tmp_path / "m.ply")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.vertices[:, 2].tolist() == [1.5] * 4 and mesh.area_mm2 == pytest.approx(1.0)


def test_big_endian_ply_with_mixed_faces(tmp_path: Path) -> None:
    header = (
        "ply\nformat binary_big_endian 1.0\nelement vertex 4\nproperty double x\nproperty double y\nproperty double z\n"
        "element face 2\nproperty list uchar uint vertex_indices\nend_header\n"
    )
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=">f8").tobytes()
    faces = struct.pack(">B4I", 4, 0, 1, 2, 3) + struct.pack(">B3I", 3, 0, 1, 2)
    (tmp_path / "m.ply").write_bytes(header.encode() + vertices + faces)
    assert read_mesh(tmp_path / "m.ply").faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]


@pytest.mark.parametrize("name", ["m.ply", "m.stl", "m.surf.gii"])
def test_every_truncation_is_refused(tmp_path: Path, name: str) -> None:
    write_mesh(tmp_path / name, TETRAHEDRON)
    raw = (tmp_path / name).read_bytes()
    for length in {0, 3, 40, 90, len(raw) // 2, len(raw) - 12}:
        (tmp_path / name).write_bytes(raw[:length])
        with pytest.raises(InputError) as caught:
            read_mesh(tmp_path / name)
        assert name in caught.value.where


def test_counts_beyond_the_file_take_no_memory(tmp_path: Path) -> None:
    write_mesh(tmp_path / "m.stl", TETRAHEDRON)
    raw = bytearray((tmp_path / "m.stl").read_bytes())
    raw[80:84] = struct.pack("<I", 2**32 - 1)
    (tmp_path / "m.stl").write_bytes(raw)
    with pytest.raises(InputError, match="truncated"):
        read_mesh(tmp_path / "m.stl")
    for huge in ("element vertex 4", "element face 1", "element edge 1"):
        (tmp_path / "m.ply").write_text(ASCII_PLY.replace(huge, huge[:-1] + "9" * 18))
        with pytest.raises(InputError, match="truncated"):
            read_mesh(tmp_path / "m.ply")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("4 0 1 2 3", "4 0 1 2 9", "refer to vertices"),
        ("4 0 1 2 3", "2 0 1 2 3", "no polygon"),
        ("1 1 1.5 0", "1 x 1.5 0", "not a number"),
        ("1 1 1.5 0", "1 nan 1.5 0", "NaN"),
        ("property double z", "property double q", "no property z"),
        ("property double z", "property string z", "header is damaged"),
        ("format ascii 1.0", "format morse 1.0", "header is damaged"),
        ("element face 1", "element strip 1", "no vertices or no faces"),
        ("property uchar red", "property float x", "header is damaged"),
    ],
)
def test_damaged_plys_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "m.ply").write_text(ASCII_PLY.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_mesh(tmp_path / "m.ply")


def test_hostile_giftis_are_refused(tmp_path: Path) -> None:
    write_mesh(tmp_path / "m.gii", TETRAHEDRON)
    text = (tmp_path / "m.gii").read_text()
    cases = {
        "entities": text.replace("<GIFTI", '<!DOCTYPE x [<!ENTITY a "b">]><GIFTI', 1),
        "not supported": text.replace("GZipBase64Binary", "ExternalFileBinary"),
        "needs .* bytes": text.replace('Dim0="4"', 'Dim0="3"'),
        "is damaged": text.replace('Dim0="4"', 'Dim0="-4"'),
        "holds no NIFTI_INTENT_TRIANGLE": text.replace("NIFTI_INTENT_TRIANGLE", "NIFTI_INTENT_LABEL"),
    }
    for message, changed in cases.items():
        assert changed != text
        (tmp_path / "m.gii").write_text(changed)
        with pytest.raises(InputError, match=message):
            read_mesh(tmp_path / "m.gii")


def test_unknown_endings_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a mesh format"):
        write_mesh(tmp_path / "m.obj", TETRAHEDRON)
    with pytest.raises(InputError, match="no such file"):
        read_mesh(tmp_path / "m.ply")
    (tmp_path / "text.stl").write_text("solid x\n" + "facet normal 0 0 1\n" * 20)
    with pytest.raises(InputError, match="text STL"):
        read_mesh(tmp_path / "text.stl")
