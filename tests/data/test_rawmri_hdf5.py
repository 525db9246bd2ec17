"""Files are written by h5py and by ismrmrd's own package, which our reader does not use."""

import numpy as np
import pytest
import torch

from scanfield.data.rawmri_hdf5 import read_hdf5
from scanfield.errors import InputError
from scanfield.operators.fourier import centred_ifft

h5py = pytest.importorskip("h5py")
ismrmrd = pytest.importorskip("ismrmrd")

XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>
<H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions><encoding><encodedSpace><matrixSize>
<x>8</x><y>6</y><z>1</z></matrixSize><fieldOfView_mm><x>16</x><y>18</y><z>5</z></fieldOfView_mm></encodedSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>5</maximum><center>3</center>
</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""


def noise(*shape):
    generator = np.random.default_rng(0)
    return (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(np.complex64)


def write_ismrmrd(path, readouts, xml=XML):
    """`readouts`: (values (coils, samples), fields of the head, trajectory or None) each."""
    dataset = ismrmrd.Dataset(str(path), "dataset", True)
    dataset.write_xml_header(xml.encode())
    for values, fields, points in readouts:
        acquisition = ismrmrd.Acquisition.from_array(values, points)
        for name, value in fields.items():
            target = acquisition.idx if name in ("slice", "repetition", "kspace_encode_step_1", "contrast") else None
            if name == "flag":
                acquisition.set_flag(value)
            elif name.endswith("_dir") or name == "position":
                getattr(acquisition, name)[:] = value
            else:
                setattr(target if target is not None else acquisition, name, value)
        dataset.append_acquisition(acquisition)
    dataset.close()
    return path


def lines(values, **common):
    """All lines of (coils, 8, 6) k-space."""
    fields = {"center_sample": 4, "sample_time_us": 10.0, **common}
    each = [{"kspace_encode_step_1": j, "acquisition_time_stamp": 100 + 2 * j} for j in range(6)]
    return [(np.ascontiguousarray(values[:, :, j]), each[j] | fields, None) for j in range(6)]


def test_cartesian(tmp_path):
    data = noise(2, 8, 6)
    extra = [(noise(2, 8), {"flag": ismrmrd.ACQ_IS_NOISE_MEASUREMENT}, None)]
    scan = read_hdf5(write_ismrmrd(tmp_path / "a.h5", extra + lines(data)))
    geometry = scan.acquisition
    assert geometry.shape == (6, 2, 8) and geometry.volume.shape == (8, 6, 1)
    assert geometry.volume.spacing_mm == pytest.approx((2, 3, 5))
    assert np.array_equal(scan.values.numpy(), data.transpose(2, 0, 1))
    np.testing.assert_allclose(geometry.trajectory[:, 0, 1] * 18, np.arange(-3, 3), atol=1e-12)
    np.testing.assert_allclose(geometry.trajectory[0, :, 0] * 16, np.arange(-4, 4), atol=1e-12)
    np.testing.assert_allclose(geometry.time_s, np.arange(6) * 0.005)
    assert geometry.dwell_s == pytest.approx(1e-5)


def test_orientation_is_turned_from_lps_to_ras(tmp_path):
    where = {"read_dir": (0, 1, 0), "phase_dir": (1, 0, 0), "slice_dir": (0, 0, -1), "position": (10, 20, 30)}
    volume = read_hdf5(write_ismrmrd(tmp_path / "a.h5", lines(noise(1, 8, 6), **where))).acquisition.volume
    np.testing.assert_allclose(volume.affine[:3, :3], [[0, -3, 0], [-2, 0, 0], [0, 0, -5]], atol=1e-9)
    np.testing.assert_allclose((volume.affine @ [4, 3, 0, 1])[:3], [-10, -20, 30], atol=1e-9)


def test_reversed_readouts_are_turned_round(tmp_path):
    data = noise(2, 8, 6)
    found = lines(data)
    for j in (1, 3, 5):
        values, fields, _ = found[j]
        found[j] = (np.ascontiguousarray(values[:, ::-1]), fields | {"flag": ismrmrd.ACQ_IS_REVERSE}, None)
    scan = read_hdf5(write_ismrmrd(tmp_path / "a.h5", found))
    assert np.array_equal(scan.values.numpy(), data.transpose(2, 0, 1))


def test_own_trajectory_and_frames(tmp_path):
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 7, 2)).astype(np.float32)
    data = noise(4, 3, 7)
    readouts = [(data[v], {"repetition": v // 2}, points[v]) for v in range(4)]
    scan = read_hdf5(write_ismrmrd(tmp_path / "a.h5", readouts))
    assert scan.acquisition.frame_of_view.tolist() == [0, 0, 1, 1] and scan.acquisition.time_s is None
    np.testing.assert_allclose(scan.acquisition.trajectory[..., :2], points / [2.0, 3.0], rtol=1e-6)
    assert np.array_equal(scan.values.numpy(), data)


def test_slices_are_chosen(tmp_path):
    data = noise(2, 1, 8, 6)
    path = write_ismrmrd(tmp_path / "a.h5", lines(data[0], slice=0) + lines(data[1], slice=1))
    with pytest.raises(InputError, match="2 slices, 0 to 1"):
        read_hdf5(path)
    assert np.array_equal(read_hdf5(path, slice_index=1).values.numpy(), data[1].transpose(2, 0, 1))
    with pytest.raises(InputError, match="no slice 2"):
        read_hdf5(path, slice_index=2)


def test_what_ismrmrd_files_are_refused_for(tmp_path):
    good = lines(noise(2, 8, 6))
    cases = {
        "no imaging readout": ([(noise(2, 8), {"flag": ismrmrd.ACQ_IS_NOISE_MEASUREMENT}, None)], XML),
        "no dimensions": (good, XML.replace("<x>16</x>", "")),
        "encoded space is empty": (good, XML.replace("<x>16</x>", "<x>0</x>")),
        "is no XML": (good, XML[:-20]),
        "several values of 'contrast'": (good + lines(noise(2, 8, 6), contrast=1), XML),
        "differ in their number of samples": ([*good, (noise(2, 9), {}, None)], XML),
        "differ in their number of coils": ([*good, (noise(3, 8), {}, None)], XML),
        "beyond the Nyquist frequency": ([(noise(2, 8), {}, np.full((8, 2), 0.7, np.float32))], XML),
    }
    for k, (message, (readouts, xml)) in enumerate(cases.items()):
        with pytest.raises(InputError, match=message):
            read_hdf5(write_ismrmrd(tmp_path / f"{k}.h5", readouts, xml))


def fastmri(path, kspace, header=XML):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if header is not None:
            file["ismrmrd_header"] = header.encode()
    return path


def test_fastmri(tmp_path):
    data = noise(2, 3, 8, 6)
    data[..., 1] = 0
    path = fastmri(tmp_path / "a.h5", data)
    with pytest.raises(InputError, match="2 slices"):
        read_hdf5(path)
    scan = read_hdf5(path, slice_index=1)
    assert scan.acquisition.shape == (5, 3, 8) and scan.acquisition.volume.spacing_mm == pytest.approx((2, 3, 5))
    lattice = torch.zeros(3, 8, 6, 1, dtype=torch.complex64)
    for view, k in zip(scan.values, scan.acquisition.trajectory, strict=True):
        lattice[:, :, round(float(k[0, 1]) * 18) + 3, 0] = view
    expected = centred_ifft(torch.from_numpy(data[1])[..., None])
    torch.testing.assert_close(centred_ifft(lattice), expected)
    single = read_hdf5(fastmri(tmp_path / "b.h5", noise(1, 8, 6)))
    assert single.acquisition.shape == (6, 1, 8)


def test_what_fastmri_files_are_refused_for(tmp_path):
    for k, (kspace, header, message) in enumerate(
        [
            (noise(1, 2, 8, 6), None, "no dimensions"),
            (noise(1, 2, 8, 6).real, XML, "complex k-space"),
            (noise(1, 0, 8, 6), XML, "complex k-space"),
            (0 * noise(1, 2, 8, 6), XML, "every line of k-space is zero"),
            (np.nan * noise(1, 2, 8, 6), XML, "NaN or infinite"),
        ]
    ):
        with pytest.raises(InputError, match=message):
            read_hdf5(fastmri(tmp_path / f"{k}.h5", kspace, header))


def test_damaged_files(tmp_path):
    path = fastmri(tmp_path / "a.h5", noise(1, 2, 8, 6))
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "text.h5").write_text("no HDF5")
    for name in ("cut.h5", "text.h5"):
        with pytest.raises(InputError, match="truncated, damaged or no HDF5"):
            read_hdf5(tmp_path / name)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = np.ones(3)
        file.create_group("kspace")
    with pytest.raises(InputError, match="holds neither ISMRMRD"):
        read_hdf5(tmp_path / "other.h5")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["dataset/xml"] = np.zeros(0)
        file["dataset/data"] = np.zeros(0)
    with pytest.raises(InputError, match="truncated, damaged or no HDF5"):
        read_hdf5(tmp_path / "empty.h5")
