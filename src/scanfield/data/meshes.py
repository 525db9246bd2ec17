"""Triangle meshes on disk: PLY, STL and GIFTI, in world millimetres.

PLY and STL say nothing about their coordinate system; here they hold RAS+ millimetres like everything else. GIFTI
files say it (scanner coordinates). Readers check every announced count against the file's size before taking memory.
"""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from scanfield.data.guard import existing_file, located
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.space.mesh import Mesh

FORMATS = (".ply", ".stl", ".gii")

_PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_STL_FACE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_GIFTI_TYPES = {
    "NIFTI_TYPE_FLOAT32": "f4",
    "NIFTI_TYPE_INT32": "i4",
    "NIFTI_TYPE_UINT8": "u1",
    "NIFTI_TYPE_FLOAT64": "f8",
}


def write_mesh(path: str | Path, mesh: Mesh) -> None:
    """Writes a mesh atomically; the name's ending chooses the format (.ply, .stl, .surf.gii or .gii).

    Coordinates are stored as float32.

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    writers = {".ply": _write_ply, ".stl": _write_stl, ".gii": _write_gifti}
    writer = writers[_ending(path)]
    with write_atomically(path) as temporary:
        writer(temporary, mesh)


def read_mesh(path: str | Path) -> Mesh:
    """Reads a triangle mesh; the name's ending chooses the format.

    PLY: text or binary, any vertex properties besides x, y, z; faces of more than three corners are cut into fans.
    STL: binary; corners at equal places become one vertex. GIFTI: text, base64 or compressed, one point set and one
    triangle array, coordinates as stored.

    Raises:
        InputError: another ending, or the file is missing, truncated, damaged, or not a triangle mesh.
    """
    readers = {".ply": _read_ply, ".stl": _read_stl, ".gii": _read_gifti}
    reader = readers[_ending(path)]
    path = existing_file(path)
    with located(path):
        return reader(path.read_bytes())


def _ending(path: str | Path) -> str:
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise InputError(f"'{ending}' is not a mesh format", where=str(path), fix=f"use one of {', '.join(FORMATS)}")
    return ending


# PLY (Turk 1994) ---------------------------------------------------------------------------------------------------


def _write_ply(path: Path, mesh: Mesh) -> None:
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment world coordinates in mm, RAS+\n"
        f"element vertex {len(mesh.vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(mesh.faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    faces = np.empty(len(mesh.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    path.write_bytes(header.encode() + mesh.vertices.astype("<f4").tobytes() + faces.tobytes())


def _read_ply(raw: bytes) -> Mesh:
    end = raw.find(b"end_header")
    if not raw.startswith(b"ply") or end < 0:
        raise InputError("this is not a PLY file, or it is cut off inside its header")
    newline = raw.find(b"\n", end)
    body = raw[newline + 1 :]
    order, elements = _ply_header(raw[:end].decode("ascii", "replace").splitlines())
    vertices, faces = None, None
    words = body.split() if order is None else []
    position = 0
    for name, count, properties in elements:
        lists = [p for p in properties if p[1] is not None]
        if name == "face" or lists:
            if len(properties) != 1 or not lists:
                raise InputError(f"PLY element '{name}' mixes lists and other properties", fix="export plain triangles")
            _, kind, item = properties[0]
            assert kind is not None
            rows, position = _ply_lists(body, words, position, count, order, kind, item)
            if name == "face":
                faces = rows
        else:
            fields = [p[0] for p in properties]
            if order is None:
                table, position = _ply_text(words, position, count, len(fields))
            else:
                layout = np.dtype([(field, order + item) for field, _, item in properties])
                _enough(count * layout.itemsize, len(body) - position)
                records = np.frombuffer(body, layout, count, position)
                table = np.stack([records[field].astype(np.float64) for field in fields], axis=-1)
                position += count * layout.itemsize
            if name == "vertex":
                missing = [axis for axis in "xyz" if axis not in fields]
                if missing:
                    raise InputError(f"PLY vertices have no property {', '.join(missing)}")
                vertices = table[:, [fields.index(axis) for axis in "xyz"]]
    if vertices is None or faces is None:
        raise InputError("the PLY file has no vertices or no faces: a triangle mesh is expected")
    return Mesh(vertices, faces)


def _ply_header(lines: list[str]) -> tuple[str | None, list[tuple[str, int, list[tuple[str, str | None, str]]]]]:
    """(byte order, or None for text; elements as (name, count, [(property, type of a list's length, type)]))."""
    order: str | None = ""
    elements: list[tuple[str, int, list[tuple[str, str | None, str]]]] = []
    try:
        for words in map(str.split, lines[1:]):
            match words:
                case ["format", kind, *_]:
                    order = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}[kind]
                case ["element", name, count]:
                    elements.append((name, int(count), []))
                case ["property", "list", length, item, name]:
                    elements[-1][2].append((name, _PLY_TYPES[length], _PLY_TYPES[item]))
                case ["property", item, name]:
                    elements[-1][2].append((name, None, _PLY_TYPES[item]))
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"the PLY header is damaged: {error}") from None
    names = [[p[0] for p in properties] for _, _, properties in elements]
    if (
        order == ""
        or any(count < 0 or not properties for _, count, properties in elements)
        or any(len(set(n)) != len(n) for n in names)
    ):
        raise InputError("the PLY header is damaged: format, a count or property names are wrong")
    return order, elements


def _ply_text(words: list[bytes], position: int, count: int, width: int) -> tuple[np.ndarray, int]:
    _enough(count * width, len(words) - position)
    try:
        table = np.array(words[position : position + count * width], dtype=np.float64)
    except ValueError as error:
        raise InputError(f"the PLY file holds something that is not a number: {error}") from None
    return table.reshape(count, width), position + count * width


def _ply_lists(
    body: bytes, words: list[bytes], position: int, count: int, order: str | None, length: str, item: str
) -> tuple[np.ndarray, int]:
    """Faces as triangles, (f, 3): all of one size at once, mixed sizes one by one."""
    if order is not None:
        size, each = np.dtype(length).itemsize, np.dtype(item).itemsize
        triangles = np.dtype([("count", order + length), ("corners", order + item, 3)])
        if count * triangles.itemsize <= len(body) - position:
            records = np.frombuffer(body, triangles, count, position)
            if (records["count"] == 3).all():
                return records["corners"].astype(np.int64), position + count * triangles.itemsize
    _enough(count, len(body))
    faces: list[np.ndarray] = []
    for _ in range(count):
        if order is None:
            head, position = _ply_text(words, position, 1, 1)
            corners, position = _ply_text(words, position, 1, _face_size(float(head[0, 0])))
            corners = corners[0].astype(np.int64)
        else:
            _enough(size, len(body) - position)
            n = _face_size(float(np.frombuffer(body, order + length, 1, position)[0]))
            _enough(n * each, len(body) - position - size)
            corners = np.frombuffer(body, order + item, n, position + size).astype(np.int64)
            position += size + n * each
        fan = np.arange(1, len(corners) - 1)
        faces.append(np.stack([np.full_like(fan, corners[0]), corners[fan], corners[fan + 1]], axis=-1))
    return (np.concatenate(faces) if faces else np.zeros((0, 3), dtype=np.int64)), position


def _face_size(value: float) -> int:
    if not 3 <= value <= 255:
        raise InputError(f"a PLY face with {value:g} corners is no polygon")
    return int(value)


# STL ---------------------------------------------------------------------------------------------------------------


def _write_stl(path: Path, mesh: Mesh) -> None:
    vectors = mesh.face_vectors_mm2
    records = np.zeros(len(mesh.faces), dtype=_STL_FACE)
    records["normal"] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    records["corners"] = mesh.vertices[mesh.faces]
    header = b"scanfield: world coordinates in mm, RAS+".ljust(80)
    path.write_bytes(header + struct.pack("<I", len(mesh.faces)) + records.tobytes())


def _read_stl(raw: bytes) -> Mesh:
    if len(raw) < 84:
        raise InputError("the STL file is cut off inside its header")
    (count,) = struct.unpack_from("<I", raw, 80)
    if raw[:5].lower() == b"solid" and len(raw) != 84 + count * _STL_FACE.itemsize:
        raise InputError("text STL files are not supported", fix="save it as binary STL or PLY")
    _enough(count * _STL_FACE.itemsize, len(raw) - 84)
    corners = np.frombuffer(raw, _STL_FACE, count, 84)["corners"].reshape(-1, 3)
    vertices, index = np.unique(corners, axis=0, return_inverse=True)
    return Mesh(vertices, index.reshape(-1, 3))


# GIFTI 1.0 ---------------------------------------------------------------------------------------------------------


def _write_gifti(path: Path, mesh: Mesh) -> None:
    from nibabel import gifti

    scanner = gifti.GiftiCoordSystem(dataspace="NIFTI_XFORM_SCANNER_ANAT", xformspace="NIFTI_XFORM_SCANNER_ANAT")
    arrays = [
        gifti.GiftiDataArray(mesh.vertices.astype(np.float32), intent="NIFTI_INTENT_POINTSET", coordsys=scanner),
        gifti.GiftiDataArray(mesh.faces.astype(np.int32), intent="NIFTI_INTENT_TRIANGLE"),
    ]
    path.write_bytes(gifti.GiftiImage(darrays=arrays).to_xml())


def _read_gifti(raw: bytes) -> Mesh:
    # Not nibabel's reader: it inflates compressed arrays without a limit and opens files that the XML names.
    if b"<!ENTITY" in raw:
        raise InputError("a GIFTI file with XML entities is refused", fix="export the surface again")
    try:
        root = ElementTree.fromstring(raw)
    except ElementTree.ParseError as error:
        raise InputError(f"this is not a GIFTI file, or it is truncated: {error}") from None
    found = {array.get("Intent"): array for array in root.iter("DataArray")}
    try:
        points, triangles = found["NIFTI_INTENT_POINTSET"], found["NIFTI_INTENT_TRIANGLE"]
    except KeyError as error:
        raise InputError(f"the GIFTI file holds no {error.args[0]}: a surface is expected") from None
    return Mesh(_gifti_array(points), _gifti_array(triangles))


def _gifti_array(array: ElementTree.Element) -> np.ndarray:
    """One data array, (rows, 3)."""
    try:
        rows, columns = int(array.attrib["Dim0"]), int(array.attrib["Dim1"])
        dtype = np.dtype(_GIFTI_TYPES[array.attrib["DataType"]])
        encoding, text = array.attrib["Encoding"], array.findtext("Data", "")
        if rows < 0 or columns != 3:
            raise ValueError(f"an array of {rows} x {columns} is no list of points or triangles")
        size = rows * 3 * dtype.itemsize
        if encoding == "ASCII":
            data = np.array(text.split(), dtype=dtype).tobytes()
        elif encoding in ("Base64Binary", "GZipBase64Binary"):
            data = base64.b64decode("".join(text.split()), validate=True)
            if encoding == "GZipBase64Binary":
                data = zlib.decompressobj().decompress(data, size + 1)
        else:
            raise ValueError(f"the encoding {encoding} is not supported")
        if len(data) != size:
            raise ValueError(f"an array of {rows} x 3 needs {size} bytes, the file holds {len(data)}")
    except KeyError as error:
        raise InputError(f"the GIFTI file is damaged: no or unknown {error.args[0]}") from None
    except (ValueError, zlib.error) as error:
        raise InputError(f"the GIFTI file is damaged: {error}") from None
    if encoding != "ASCII":
        dtype = dtype.newbyteorder("<" if array.get("Endian") == "LittleEndian" else ">")
    values = np.frombuffer(data, dtype)
    by_columns = array.get("ArrayIndexingOrder") == "ColumnMajorOrder"
    return values.reshape(3, rows).T if by_columns else values.reshape(rows, 3)


def _enough(needed: int, available: int) -> None:
    if needed > available:
        raise InputError(
            f"the file is truncated: its header announces {needed} more items or bytes, it holds {max(available, 0)}",
            fix="copy or export it again",
        )
