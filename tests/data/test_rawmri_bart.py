import numpy as np
import pytest

from scanfield.data.rawmri_bart import read_bart, read_cfl
from scanfield.errors import InputError


def write_pair(stem, array, header=None):
    sizes = " ".join(map(str, array.shape))
    stem.with_name(stem.name + ".hdr").write_text(header if header is not None else f"# Dimensions\n{sizes} \n")
    stem.with_name(stem.name + ".cfl").write_bytes(array.astype("<c8").tobytes(order="F"))
    return stem


def noise(*shape):
    generator = np.random.default_rng(0)
    return (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(np.complex64)


def test_the_axes_are_column_major(tmp_path):
    array = noise(4, 3, 1, 2)
    for name in ("x", "x.cfl", "x.hdr"):
        write_pair(tmp_path / "x", array)
        assert np.array_equal(read_cfl(tmp_path / name)[..., *[0] * 12], array)


def test_cartesian_leaves_out_lines_that_were_not_sampled(tmp_path):
    data = noise(8, 6, 1, 2)
    data[:, [1, 4]] = 0
    scan = read_bart(write_pair(tmp_path / "k", data), field_of_view_mm=(16, 15))
    geometry = scan.acquisition
    assert geometry.shape == (4, 2, 8) and geometry.volume.shape == (8, 6, 1)
    assert geometry.volume.spacing_mm == pytest.approx((2, 2.5, 1))
    np.testing.assert_allclose(geometry.trajectory[:, 0, 1] * 15, [-3, -1, 0, 2], atol=1e-12)
    np.testing.assert_allclose(geometry.trajectory[0, :, 0] * 16, np.arange(-4, 4), atol=1e-12)
    assert np.array_equal(scan.values[2].numpy(), data[:, 3, 0].T)


def test_cartesian_frames_and_sensitivities(tmp_path):
    data = noise(4, 3, 1, 2, 1, 1, 1, 1, 1, 1, 5)
    maps = noise(4, 3, 1, 2)
    scan = read_bart(
        write_pair(tmp_path / "k.x", data), field_of_view_mm=(8, 6), sensitivities=write_pair(tmp_path / "s", maps)
    )
    assert scan.acquisition.frame_of_view.tolist() == np.repeat(np.arange(5), 3).tolist()
    assert np.array_equal(scan.values[3 * 4 + 1].numpy(), data[:, 1, 0, :, 0, 0, 0, 0, 0, 0, 4].T)
    assert np.array_equal(scan.sensitivities[1, :, :, 0].numpy(), maps[:, :, 0, 1])


def test_non_cartesian_with_one_trajectory_for_all_frames(tmp_path):
    data = noise(1, 6, 4, 3, 1, 1, 1, 1, 1, 1, 2)
    points = np.random.default_rng(1).uniform(-7.9, 7.9, (3, 6, 4))
    points[2] = 0
    points[0, 0, 0] = 8
    scan = read_bart(
        write_pair(tmp_path / "k", data), field_of_view_mm=(32, 32), trajectory=write_pair(tmp_path / "t", points)
    )
    assert scan.acquisition.volume.shape == (16, 16, 1) and scan.acquisition.shape == (8, 3, 6)
    np.testing.assert_allclose(scan.acquisition.trajectory[5], points[:, :, 1].T / [32, 32, 1], rtol=1e-6)
    assert np.array_equal(scan.values[5].numpy(), data[0, :, 1, :, 0, 0, 0, 0, 0, 0, 1].T)
    with pytest.raises(InputError, match="k-space has 4 of 6 in 2"):
        other = write_pair(tmp_path / "t5", points[:, :5])
        read_bart(tmp_path / "k", field_of_view_mm=(32, 32), trajectory=other)


def test_truncated_and_too_long(tmp_path):
    stem = write_pair(tmp_path / "k", noise(4, 4, 1, 2))
    whole = (tmp_path / "k.cfl").read_bytes()
    cut = "truncated: 248 bytes, its header describes 256"
    for content, message in [(whole[:-8], cut), (whole + b"0", "too long")]:
        (tmp_path / "k.cfl").write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            read_bart(stem, field_of_view_mm=(8, 8))
        assert "k.cfl" in caught.value.where


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_wrong_byte_order(tmp_path, scale):
    data = noise(16, 8, 1, 2) * np.float32(scale)
    stem = write_pair(tmp_path / "k", data)
    assert np.array_equal(read_cfl(stem)[..., *[0] * 12], data)
    (tmp_path / "k.cfl").write_bytes(data.astype(">c8").tobytes(order="F"))
    with pytest.raises(InputError, match="opposite byte order"):
        read_cfl(stem)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "does not list its dimensions"),
        ("# Dimensions\n", "does not list its dimensions"),
        ("# Dimensions\n4 x 1 2\n", "does not list its dimensions"),
        ("# Dimensions\n4 4 1 0\n", "zero coils"),
        ("# Dimensions\n0 4 1 2\n", "an empty axis"),
        ("# Dimensions\n2 2 2 2 1 2\n", "axis 5 has 2 entries"),
    ],
)
def test_bad_headers(tmp_path, header, message):
    stem = write_pair(tmp_path / "k", noise(4, 4, 1, 2), header)
    with pytest.raises(InputError, match=message):
        read_bart(stem, field_of_view_mm=(8, 8))


def test_other_bad_input(tmp_path):
    stem = write_pair(tmp_path / "k", noise(4, 4, 1, 2))
    with pytest.raises(InputError, match="no dimensions"):
        read_bart(stem, field_of_view_mm=None)
    with pytest.raises(InputError, match="no such file"):
        read_bart(tmp_path / "none", field_of_view_mm=(8, 8))
    with pytest.raises(InputError, match="every line of k-space is zero"):
        read_bart(write_pair(tmp_path / "z", np.zeros((4, 4, 1, 2))), field_of_view_mm=(8, 8))
    with pytest.raises(InputError, match="NaN, infinite or beyond any signal"):
        read_cfl(write_pair(tmp_path / "n", np.full((4, 4), np.nan)))
