"""MetaImages by hand and by SimpleITK, and headers that lie."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from scanfield.data.mha import read_mha
from scanfield.errors import InputError

HEADER = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "Offset = 1 -2 3.5\nElementSpacing = 0.5 2 3\nDimSize = 4 3 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)
VALUES = np.arange(24, dtype="<i2").reshape(2, 3, 4)


STORED = VALUES.tobytes()


def write(path, header=HEADER, raw=STORED):
    path.write_bytes(header.encode() + raw)
    return path


def test_values_spacing_and_origin(tmp_path):
    image = read_mha(write(tmp_path / "a.mha"))
    np.testing.assert_array_equal(image.values, VALUES)
    assert image.values.dtype == np.int16
    assert image.spacing == (0.5, 2.0, 3.0) and image.origin == (1.0, -2.0, 3.5)
    np.testing.assert_array_equal(image.direction, np.eye(3))


def test_big_endian_compressed_and_beside_the_header(tmp_path):
    big = HEADER.replace("OrderMSB = False", "OrderMSB = True")
    np.testing.assert_array_equal(
        read_mha(write(tmp_path / "a.mha", big, VALUES.astype(">i2").tobytes())).values, VALUES
    )
    packed = HEADER.replace("Offset", "CompressedData = True\nOffset")
    np.testing.assert_array_equal(
        read_mha(write(tmp_path / "b.mha", packed, zlib.compress(VALUES.tobytes()))).values, VALUES
    )
    (tmp_path / "c.raw").write_bytes(b"skip" + VALUES.tobytes())
    for skip in ("4", "-1"):
        beside = HEADER.replace("LOCAL", "c.raw").replace("Offset", f"HeaderSize = {skip}\nOffset")
        np.testing.assert_array_equal(read_mha(write(tmp_path / "c.mhd", beside, b"")).values, VALUES)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_reads_what_simpleitk_writes(tmp_path, dtype, compress):
    sitk = pytest.importorskip("SimpleITK")
    values = (np.random.default_rng(0).random((2, 3, 5)) * 100).astype(dtype)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 1.5, 2.0))
    image.SetOrigin((-3.0, 4.0, 5.0))
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    image.SetDirection(turn.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "a.mha"), compress)
    ours = read_mha(tmp_path / "a.mha")
    np.testing.assert_array_equal(ours.values, values)
    assert ours.spacing == pytest.approx((0.7, 1.5, 2.0)) and ours.origin == pytest.approx((-3, 4, 5))
    np.testing.assert_allclose(ours.direction, turn)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("ElementDataFile = LOCAL\n", ""), "no MetaImage header|names no ElementDataFile"),
        (("NDims = 3", "nonsense"), "no MetaImage header"),
        (("DimSize = 4 3 2\n", ""), "lacks DimSize"),
        (("DimSize = 4 3 2", "DimSize = 4 3"), "disagree"),
        (("DimSize = 4 3 2", "DimSize = 4 -3 2"), "fitting numbers"),
        (("DimSize = 4 3 2", "DimSize = 4 3 3"), "promises 72 bytes"),
        (("DimSize = 4 3 2", "DimSize = 999999999 999999999 999999999"), "promises"),
        (("MET_SHORT", "MET_OTHER"), "MET_OTHER is not supported"),
        (("NDims", "ElementNumberOfChannels = 3\nNDims"), "several channels"),
        (("BinaryData = True", "BinaryData = False"), "as text"),
        (("BinaryData = True", "BinaryData = maybe"), "neither True nor False"),
        (("ElementSpacing = 0.5 2 3", "ElementSpacing = 0 2 3"), "spacing above 0"),
        (("ElementSpacing = 0.5 2 3", "ElementSpacing = a b c"), "fitting numbers"),
        (("LOCAL", "../other.raw"), "only LOCAL"),
        (("LOCAL", "LIST"), "only LOCAL"),
        (("LOCAL", "gone.raw"), "no such file"),
        (("Offset", "CompressedData = True\nOffset"), "damaged"),
    ],
)
def test_headers_that_lie_are_one_clear_error(tmp_path, change, words):
    with pytest.raises(InputError, match=words) as caught:
        read_mha(write(tmp_path / "a.mha", HEADER.replace(*change)))
    assert "a.mha" in caught.value.where


def test_a_compressed_bomb_is_not_unpacked(tmp_path):
    packed = HEADER.replace("Offset", "CompressedData = True\nOffset")
    with pytest.raises(InputError, match="holds more"):
        read_mha(write(tmp_path / "a.mha", packed, zlib.compress(bytes(2**24))))


def test_other_files_are_refused(tmp_path):
    for raw in (b"", b"\x1f\x8b\x08\x00" * 9, bytes(range(256)) * 400):
        (tmp_path / "a.mha").write_bytes(raw)
        with pytest.raises(InputError):
            read_mha(tmp_path / "a.mha")
