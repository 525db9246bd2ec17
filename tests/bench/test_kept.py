"""Kept results: what a rerun would compute is taken, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from scanfield.bench import kept as module
from scanfield.bench.kept import Kept, described
from scanfield.errors import InputError
from scanfield.fitting.log import FitLog
from scanfield.methods.synthesis.cell_shapes import Config
from scanfield.run import Run
from scanfield.tasks.model import Model

MACHINE = {"torch": "2", "device": "cpu"}
ROWS = {"a row": {"psnr_db": 0.1 + 0.2, "seconds": None, "names": ["x"]}}


@dataclass(frozen=True, eq=False)
class Job:
    name: str
    values: torch.Tensor
    rates: dict[int, float]


JOB = Job("head", torch.arange(6.0).reshape(2, 3), {3: 1e-3})


def fit(job, run):
    return ROWS


def other_fit(job, run):
    return ROWS


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path / "kept", MACHINE)


def model() -> Model:
    return Model(
        "cell_shapes", Config.tiny(), {"codes": torch.randn(3, 2)}, {"unit_mm": 2.5}, logs=[FitLog("shapes", 7)]
    )


def test_a_result_comes_back_as_it_was_with_its_seconds(kept):
    place = kept.place(fit, JOB, Run())
    assert kept.take(place) is None
    assert kept.save(place, ROWS, 12.5)
    assert kept.take(place) == (ROWS, 12.5)
    assert Kept(kept.folder, MACHINE).take(place) == (ROWS, 12.5)


def test_so_does_a_model(kept):
    place, made = kept.place(fit, JOB, Run()), model()
    kept.save(place, made, 3.0)
    found, seconds = kept.take(place)
    assert seconds == 3 and found.key == made.key and found.config == made.config and found.logs == made.logs
    assert torch.equal(found.tensors["codes"], made.tensors["codes"])


def test_whatever_changes_the_result_changes_its_place(kept):
    places = [
        kept.place(fit, JOB, Run()),
        kept.place(other_fit, JOB, Run()),
        kept.place(fit, replace(JOB, values=JOB.values + 1e-6), Run()),
        kept.place(fit, replace(JOB, rates={3: 2e-3}), Run()),
        kept.place(fit, JOB, Run(seed=1)),
        kept.place(fit, JOB, Run(backend="reference")),
        Kept(kept.folder, MACHINE | {"torch": "3"}).place(fit, JOB, Run()),
        Kept(kept.folder, MACHINE | {"device": "a GPU"}).place(fit, JOB, Run()),
    ]
    assert len(set(places)) == len(places)
    assert kept.place(fit, replace(JOB, values=JOB.values.clone(), rates={3: 1e-3}), Run()) == places[0]


def test_jobs_are_described_by_content():
    values = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert described(values) == described(torch.from_numpy(values)) == described(np.asfortranarray(values))
    assert len({str(described(v)) for v in (values, values.T.copy(), values.astype(np.int32), values[::-1])}) == 4
    assert described([np.float32(0.5), None, ("x", True)]) == [0.5, None, ["x", True]]
    one = model()
    assert described(one) == described(replace(one, logs=[])), "how long it took is no matter"
    assert described(one) != described(replace(one, tensors={"codes": one.tensors["codes"] + 1}))
    with pytest.raises(TypeError, match="not a function"):
        described({"loss": fit})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two protocols and a compiled kernel, of which one protocol is loaded."""
    folder = tmp_path / "package"
    for name, text in {
        "bench/one.py": "x = 1\ny = 2\n",
        "bench/two.py": "",
        "kernels/lib/fast.so": "machine code",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    spec = importlib.util.spec_from_file_location("one", folder / "bench" / "one.py")
    monkeypatch.setitem(sys.modules, "one", importlib.util.module_from_spec(spec))
    monkeypatch.setattr(module, "PACKAGE", folder)
    return folder


@pytest.mark.parametrize(
    ("name", "text", "taken"),
    [
        ("bench/one.py", "x = 1\ny = 3\n", False),
        ("bench/one.py", "x = 1\r\ny = 2\r\n", True),  # line endings
        ("bench/two.py", "z = 1\n", True),  # not loaded
        ("kernels/lib/fast.so", "other code", False),
        ("kernels/lib/fast.so", None, False),
    ],
)
def test_results_of_edited_sources_are_not_taken(package, tmp_path, name, text, taken):
    kept = Kept(tmp_path / "kept", MACHINE)
    place = kept.place(fit, JOB, Run())
    assert kept.save(place, ROWS, 1.0)
    if text is None:
        (package / name).unlink()
    else:
        (package / name).write_bytes(text.encode())
    assert (Kept(tmp_path / "kept", MACHINE).take(place) is not None) == taken


def test_what_was_made_while_sources_were_edited_is_not_kept(package, tmp_path):
    kept = Kept(tmp_path / "kept", MACHINE)
    place = kept.place(fit, JOB, Run())
    (package / "bench" / "two.py").write_text("z = 1\n")
    assert kept.save(place, ROWS, 1.0)
    place.unlink()
    (package / "bench" / "one.py").write_text("x = 2\n")
    assert not kept.save(place, ROWS, 1.0) and not place.exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
@pytest.mark.parametrize("made", [ROWS, "model"])
def test_a_damaged_file_is_not_taken(kept, damage, made):
    place = kept.place(fit, JOB, Run())
    kept.save(place, model() if made == "model" else made, 1.0)
    for path in kept.folder.iterdir():
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[-3 if made == "model" and "model" in path.name else whole.index(b"seconds") + 12] ^= 1
        path.write_bytes({"cut": whole[:-2], "flip": bytes(flipped), "empty": b"", "foreign": b"pickle" * 20}[damage])
        assert kept.take(place) is None
        path.write_bytes(whole)
        assert kept.take(place) is not None


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(InputError, match="this is a file"):
        Kept(tmp_path / "kept", MACHINE)
