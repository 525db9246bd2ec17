"""Projection files: round trip, the documented layout, and what damaged or hostile files get."""

import io
import json
import os
import pickle
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scanfield.data.measurement import Measurement, Noise
from scanfield.data.projections import ProjectionFacts, read_facts, read_projections, write_projections
from scanfield.data.spectra import Spectrum
from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry, ViewVectors

VOLUME = Grid.centred((16, 16, 4), (2.0, 2.0, 3.0))
ANGLES = np.arange(5) * 36.0


def geometry(beam: str = "parallel", **more: Any) -> ProjectionGeometry:
    flat = Detector("flat", (4, 6), (3.0, 5.0), (0.5, -1.0))
    distances = {} if beam == "parallel" else {"source_to_axis_mm": 500.0, "source_to_detector_mm": 900.0}
    return ProjectionGeometry(beam, ANGLES, more.pop("detector", flat), VOLUME, **distances, **more)


def measurement(of: ProjectionGeometry | None = None, noise: Noise | None = None) -> Measurement[ProjectionGeometry]:
    of = of or geometry()
    values = torch.linspace(0, 3, of.count).reshape(of.shape)
    return Measurement(values, of, noise or Noise())


def arrays(**changes: Any) -> dict[str, Any]:
    """The content of a correct file, as a user would write it with numpy; None removes a key."""
    content: dict[str, Any] = {
        "projections": measurement().values.numpy(),
        "geometry": json.dumps(geometry().to_json()),
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def written(path: Path, **changes: Any) -> Path:
    np.savez(path, **arrays(**changes))
    return path


@pytest.mark.parametrize(
    "of",
    [
        geometry(),
        geometry("fan", time_s=np.arange(5) * 0.1),
        geometry("fan", detector=Detector("arc", (4, 6), (3.0, 0.5), (0.0, 0.25))),
        geometry("cone", frame=np.array([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])),
        geometry(
            "cone",
            vectors=ViewVectors(*(np.random.default_rng(k).normal(size=(5, 3)) for k in range(4))),
        ),
    ],
    ids=["parallel", "fan with times", "fan with arc", "cone in a frame", "cone by vectors"],
)
def test_round_trip(tmp_path: Path, of: ProjectionGeometry) -> None:
    original = measurement(of, Noise("poisson", 1e5))
    write_projections(tmp_path / "a.npz", original)
    read = read_projections(tmp_path / "a.npz")
    assert torch.equal(read.values, original.values)
    assert read.noise == Noise("poisson", 1e5)
    assert read.unit == "1" and read.source == str(tmp_path / "a.npz")
    assert read.acquisition.volume.same_as(of.volume)
    index = torch.arange(of.count)
    torch.testing.assert_close(read.acquisition.rays(index).origin, of.rays(index).origin)
    torch.testing.assert_close(read.acquisition.rays(index).direction, of.rays(index).direction)
    if of.time_s is not None:
        np.testing.assert_array_equal(read.acquisition.time_s, of.time_s)


def test_facts(tmp_path: Path) -> None:
    facts = ProjectionFacts(mu_water_per_mm=0.0206, provenance={"command": "scanfield simulate ct", "seed": 3})
    write_projections(tmp_path / "a.npz", measurement(), facts)
    assert read_facts(tmp_path / "a.npz") == facts
    write_projections(tmp_path / "b.npz", measurement())
    assert read_facts(tmp_path / "b.npz") == ProjectionFacts(None, None)


def test_the_file_is_plain_numpy_and_json(tmp_path: Path) -> None:
    write_projections(tmp_path / "a.npz", measurement(noise=Noise("gaussian", 0.02)), ProjectionFacts(0.02))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["projections"].dtype == np.float32 and file["projections"].shape == (5, 4, 6)
        facts = json.loads(str(file["geometry"]))
        assert facts["type"] == "parallel" and facts["angles_deg"] == ANGLES.tolist()
        assert facts["detector"]["shape"] == [4, 6] and facts["detector"]["spacing_mm"] == [3.0, 5.0]
        assert json.loads(str(file["noise"])) == {"kind": "gaussian", "level": 0.02}
        assert float(file["mu_water_per_mm"]) == 0.02


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_projections(tmp_path / name, measurement())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("kind", ["float64", "float16", "int16", ">f4"])
def test_other_number_types_become_float32(tmp_path: Path, kind: str) -> None:
    values = np.arange(120).reshape(5, 4, 6).astype(kind)
    read = read_projections(written(tmp_path / "a.npz", projections=values))
    np.testing.assert_array_equal(read.values.numpy(), np.arange(120, dtype=np.float32).reshape(5, 4, 6))


def test_fortran_order_and_json_as_bytes(tmp_path: Path) -> None:
    values = np.asfortranarray(measurement().values.numpy())
    text = np.array(json.dumps(geometry().to_json()).encode())
    read = read_projections(written(tmp_path / "a.npz", projections=values, geometry=text))
    np.testing.assert_array_equal(read.values.numpy(), values)


def changed_geometry(**changes: Any) -> str:
    facts = geometry().to_json() | changes
    return json.dumps({key: value for key, value in facts.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"projections": None, "sinogram": np.zeros(3)}, "lacks 'projections'; it holds geometry, sinogram"),
        ({"geometry": None}, "lacks 'geometry'"),
        ({"geometry": np.zeros(3)}, "must be one JSON text"),
        ({"geometry": "{not json"}, "not valid JSON"),
        ({"geometry": "[" * 100_000}, "not valid JSON"),
        ({"geometry": "[1, 2]"}, "must be a JSON object"),
        ({"geometry": changed_geometry(angles_deg=None)}, "lacks 'angles_deg'"),
        ({"geometry": changed_geometry(angles_deg=[])}, "at least one view angle"),
        ({"geometry": changed_geometry(angles_deg=[0, 1, 2, 3, float("nan")])}, "finite"),
        ({"geometry": changed_geometry(angles_deg=ANGLES[:4].tolist())}, r"\(5, 4, 6\).*\(4, 4, 6\)"),
        ({"geometry": changed_geometry(type="spiral")}, "spiral"),
        ({"geometry": changed_geometry(type=["fan"])}, "got \\['fan'\\]"),
        ({"geometry": changed_geometry(detector={"kind": "ring", "shape": [4, 6], "spacing_mm": [3, 5]})}, "ring"),
        ({"geometry": changed_geometry(detector={"shape": [1e400, 6], "spacing_mm": [3, 5]})}, "infinity"),
        ({"geometry": changed_geometry(detector={"shape": [4, 6]})}, "spacing_mm"),
        ({"geometry": changed_geometry(detector={"shape": [4], "spacing_mm": [3, 5]})}, "wrong type or length"),
        ({"geometry": changed_geometry(volume={"shape": [1e400, 1, 1], "affine": np.eye(4).tolist()})}, "infinity"),
        ({"geometry": changed_geometry(volume={"shape": [10**6] * 3, "affine": np.eye(4).tolist()})}, "too large"),
        ({"geometry": changed_geometry(volume={"shape": [4, 4, 1], "affine": np.zeros((4, 4)).tolist()})}, "last row"),
        ({"geometry": changed_geometry(detector={"shape": [4, 6], "spacing_mm": [3, 0]})}, "must be positive"),
        ({"geometry": changed_geometry(detector={"shape": [4, 6], "spacing_mm": [3, -1]})}, "must be positive"),
        ({"projections": np.zeros((5, 6, 4), np.float32)}, r"\(5, 6, 4\).*\(5, 4, 6\)"),
        ({"projections": np.zeros((5, 24), np.float32)}, r"\(5, 24\)"),
        ({"projections": np.full((5, 4, 6), np.nan)}, "120 of 120 measurements are NaN or infinite"),
        ({"projections": np.full((5, 4, 6), 1e300)}, "NaN or infinite"),
        ({"projections": np.zeros((5, 4, 6), complex)}, "complex128"),
        ({"noise": '{"kind": "uniform"}'}, "uniform"),
        ({"noise": '{"kind": "gaussian", "level": -1}'}, "at least 0"),
        ({"noise": '{"kind": "gaussian", "level": "high"}'}, "high"),
    ],
)
def test_wrong_content(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    path = written(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError, match=word) as caught:
        read_projections(path)
    assert str(path) in caught.value.where


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, "much", [1.0, 2.0]])
def test_wrong_water(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match="one positive number"):
        read_facts(written(tmp_path / "a.npz", mu_water_per_mm=value))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.99])
def test_truncated(tmp_path: Path, part: float) -> None:
    path = written(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(InputError, match="no complete") as caught:
        read_projections(path)
    assert caught.value.where == str(path)


def test_altered_data(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_projections(path, measurement())
    raw = bytearray(path.read_bytes())
    raw[200:220] = bytes(20)  # inside the first array
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="truncated or damaged"):
        read_projections(path)


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("key", ["projections", "geometry", "noise"])
def test_pickled_objects_are_refused_and_never_run(tmp_path: Path, key: str) -> None:
    trap = tmp_path / "sprung"
    path = written(tmp_path / "a.npz", **{key: np.array(Trap(str(trap)), dtype=object)})
    with pytest.raises(InputError, match="pickled Python objects"):
        read_projections(path)
    assert not trap.exists()


def test_a_bare_pickle_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    with pytest.raises(InputError, match="no complete"):
        read_projections(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue()


def hostile(path: Path, entry: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for key, value in arrays(projections=None).items():
            np.lib.format.write_array(file.open(f"{key}.npy", "w"), np.asarray(value))
        file.writestr("projections.npy", entry)
    return path


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (npy_header((100_000, 1000, 1000)), "the header promises 400000000000 bytes, the file holds 0"),
        (npy_header((5, 4, 6)) + bytes(200_000_000), "the header promises 480 bytes, the file holds 200000000"),
        (npy_header((5, 4, 6))[:20], "header is damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 100_000_000, "header is damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70_000, "header is damaged"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "not supported"),
        (
            b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 4, 6), }".ljust(80),
            "negative",
        ),
        (b"no array at all", "header is damaged"),
        (b"", "header is damaged"),
    ],
)
def test_hostile_headers_take_no_memory(tmp_path: Path, entry: bytes, word: str) -> None:
    path = hostile(tmp_path / "a.npz", entry)
    tracemalloc.start()
    with pytest.raises(InputError, match=word):
        read_projections(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_more_than_this_machine_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.npz", projections=np.zeros((5, 1000, 1000), np.float32))
    monkeypatch.setattr("scanfield.data.guard._physical_memory", lambda: 2**25)
    with pytest.raises(InputError, match="GiB of memory"):
        read_projections(path)


def test_missing_file_and_wrong_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_projections(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"ends in \.npz"):
        write_projections(tmp_path / "a.npy", measurement())
    with pytest.raises(InputError, match="does not exist"):
        write_projections(tmp_path / "no" / "a.npz", measurement())
    assert os.listdir(tmp_path) == []


def test_random_damage_gives_a_scan_or_an_input_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        raw = bytearray(whole)
        raw[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(bytes(raw))
        try:
            read_projections(path)
        except InputError:
            refused += 1
    assert 0 < refused < 300


def test_a_spectrum_survives_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    spectrum = Spectrum(np.array([40.0, 60.0, 90.0]), np.array([1.0, 2.0, 1.0]))
    write_projections(tmp_path / "scan.npz", replace(measurement(), spectrum=spectrum))
    found = read_projections(tmp_path / "scan.npz").spectrum
    assert found is not None and np.array_equal(found.table(), spectrum.table())
    assert read_projections(written(tmp_path / "plain.npz")).spectrum is None
    for table in (np.ones(3), np.array([[60.0, 1.0], [40.0, 1.0]]), np.array([["a", "b"]])):
        with pytest.raises(InputError, match="spectrum"):
            read_projections(written(tmp_path / "bad.npz", spectrum=table))
