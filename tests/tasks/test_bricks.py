"""A volume in bricks: budget, bound, jobs, interruption, and how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scanfield.data.cohort import read_cohort
from scanfield.data.nifti import write_nifti
from scanfield.errors import InputError
from scanfield.methods.compression import coinpp, sci
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.brick_decoding import read_bricks
from scanfield.tasks.bricks import compress_bricks, memory_bound

TURN = np.array([[0.8, -0.6, 0.0, 20.0], [0.6, 0.8, 0.0, -7.0], [0.0, 0.0, -3.0, 100.0], [0.0, 0.0, 0.0, 1.0]])
GRID = Grid((32, 16, 12), TURN)
CONFIG = replace(sci.Config.tiny(), steps=30, tuning_steps=5, restarts=0)
HOW = {"edge": 16, "bits_per_voxel": 4.0, "baselines": False}


def volume(path):
    """Two time points; the first half of the first one is empty."""
    i, j, k = np.meshgrid(*map(np.arange, GRID.shape), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 4, GRID.shape)
    frames = [300 * np.sin(i / 7 + t) * np.cos(j / 5) + 10 * k + noise for t in range(2)]
    values = np.stack(frames, -1).round().astype(np.int16)
    values[:16, :, :, 0] = -7
    write_nifti(path, values, GRID, unit="HU")
    return values


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "a.nii.gz"
    return path, volume(path)


def made(source, path, run=None, config=CONFIG, **options):
    return compress_bricks(source[0], "sci", config, run or Run(seed=0), path, **(HOW | options))


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "a.sfz"
    return path, made(source, path)


def test_the_file_keeps_the_budget_and_the_table_speaks_of_it(source, plain):
    path, found = plain
    values = source[1]
    assert found.total == path.stat().st_size <= values.size * 4 / 8
    assert found.bricks.total == 4 and found.constants == 1 and found.kind == "int16"
    error = np.stack([read_bricks(path, frame=t).values for t in range(2)], -1).astype(float) - values
    row = found.table.rows[0].values
    assert row["max_error"] == np.abs(error).max()
    assert row["psnr_db"] == pytest.approx(10 * np.log10(np.ptp(values.astype(float)) ** 2 / np.mean(error**2)))
    assert not path.with_name("a.sfz.work").exists()
    assert (error[:16, :, :, 0] == 0).all(), "a brick of one value is exact"


@pytest.mark.parametrize("bound", [0.0, 2.0])
def test_no_voxel_errs_by_more_than_the_bound(source, tmp_path, bound):
    found = made(source, tmp_path / "a.sfz", max_error=bound)
    back = np.stack([read_bricks(tmp_path / "a.sfz", frame=t).values for t in range(2)], -1)
    assert np.abs(back.astype(int) - source[1]).max() == bound == found.table.rows[0].values["max_error"]


def test_bricks_without_bytes_become_their_mean_and_still_keep_the_bound(source, tmp_path):
    found = made(source, tmp_path / "a.sfz", bits_per_voxel=0.6, max_error=1.0)
    assert found.constants > 1
    back = np.stack([read_bricks(tmp_path / "a.sfz", frame=t).values for t in range(2)], -1)
    assert np.abs(back.astype(int) - source[1]).max() <= 1


def test_jobs_and_interruptions_do_not_change_the_file(source, plain, tmp_path):
    run = Run(seed=0)
    run.observers = (lambda event: run.stop.set() if event.get("stage") == "bricks" and event["step"] == 1 else None,)
    path = tmp_path / "a.sfz"
    assert made(source, path, run) is None and not path.exists()
    work = tmp_path / "a.sfz.work"
    done = sorted(work.glob("*.brick"))
    assert len(done) == 1
    with pytest.raises(InputError, match="earlier run"):
        made(source, path)
    with pytest.raises(InputError, match="other settings"):
        made(source, path, resume=True, bits_per_voxel=5.0, edge=12)
    again = Run(seed=0)
    found = made(source, path, again, resume=True, jobs=2)
    assert "1 of 3 bricks were there already" in again.notes and found.total == plain[1].total
    assert path.read_bytes() == plain[0].read_bytes() and not work.exists()


def test_damaged_bricks_are_fitted_again(source, plain, tmp_path):
    run = Run(seed=0)
    run.observers = (lambda event: run.stop.set() if event.get("stage") == "bricks" and event["step"] == 2 else None,)
    path = tmp_path / "a.sfz"
    made(source, path, run)
    first, second = sorted((tmp_path / "a.sfz.work").glob("*.brick"))
    first.write_bytes(first.read_bytes()[:-3] + b"xyz")
    second.with_suffix(".json").write_text("{")
    again = Run(seed=0)
    made(source, path, again, resume=True)
    assert not again.notes and path.read_bytes() == plain[0].read_bytes()


def test_a_volume_that_changed_is_noticed(tmp_path):
    source = tmp_path / "a.nii.gz", volume(tmp_path / "a.nii.gz")
    run = Run(seed=0)
    run.observers = (lambda event: run.stop.set() if event.get("stage") == "bricks" else None,)
    made(source, tmp_path / "a.sfz", run)
    values = source[1].copy()
    values[20, 3, 4, 0] += 1
    write_nifti(source[0], values, GRID, unit="HU")
    with pytest.raises(InputError, match="another volume"):
        made(source, tmp_path / "a.sfz", resume=True)


def test_rivals_have_the_same_bytes(source, tmp_path):
    pytest.importorskip("imagecodecs")
    found = made(source, tmp_path / "a.sfz", baselines=True)
    names = [row.name for row in found.table.rows]
    assert names[:2] == ["sci", "sperr"]
    assert all(row.values["bytes"] <= found.total for row in found.table.rows)


def test_impossible_requests(source, tmp_path):
    path = tmp_path / "a.sfz"
    for options, match in (({"bits_per_voxel": 0.01}, "head"), ({"max_error": -1.0}, "cannot be -1")):
        with pytest.raises(InputError, match=match):
            made(source, path, **options)
        for part in (tmp_path / "a.sfz.work").iterdir():
            part.unlink()
        (tmp_path / "a.sfz.work").rmdir()
    with pytest.raises(InputError, match="nothing to resume"):
        made(source, path, resume=True)
    with pytest.raises(InputError, match="does not compress"):
        compress_bricks(source[0], "siren", None, Run(), path)
    with pytest.raises(ValueError, match="from one of"):
        made(source, path, max_bytes=900)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from scanfield.data.zarr import create_ome_zarr
from scanfield.methods.compression import coinpp, sci
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.brick_decoding import decompress_bricks
from scanfield.tasks.bricks import compress_bricks

folder, shape, edge = Path(sys.argv[1]), (768, 768, 576), 96
box = tuple((5 * edge, 6 * edge) for _ in range(3))
with create_ome_zarr(folder / "a.zarr", Grid.centred(shape, 0.01), "float32", chunks=(edge, edge, edge)) as image:
    image.write(0, box, np.random.default_rng(0).normal(size=(edge, edge, edge)).astype(np.float32))
config = replace(sci.Config.tiny(), blocks=1, steps=10, tuning_steps=2, restarts=0)
found = compress_bricks(folder / "a.zarr", "sci", config, Run(), folder / "a.sfz", edge=edge, max_error=0.1,
                        max_bytes=21_000, baselines=False)
decompress_bricks(folder / "a.sfz", folder / "b.zarr", Run())
# Not ru_maxrss: that begins with what the process that started this one had taken.
status = Path("/proc/self/status").read_text()
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(json.dumps([peak, found.original_bytes, found.constants, found.bricks.total]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
def test_memory_stays_below_its_bound_however_large_the_volume(tmp_path):
    """1.3 GiB of voxels through a process that may take 0.8 GiB: one brick of noise with a residual, the others 0."""
    pytest.importorskip("zarr")
    out = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, capture_output=True, text=True)
    peak, original, constants, total = json.loads(out.stdout)
    assert peak < memory_bound(96) < original / 1.5
    assert constants == total - 1 == 383


def test_every_brick_reaches_the_psnr_that_was_asked_for(source, tmp_path):
    how = {"config": replace(CONFIG, steps=250), "bits_per_voxel": None}
    found = made(source, tmp_path / "a.sfz", **how, psnr_db=30.0)
    values = source[1].astype(float)
    error = np.stack([read_bricks(tmp_path / "a.sfz", frame=t).values for t in range(2)], -1) - values
    worst = max(np.mean(error[half, :, :, t] ** 2) for half in (slice(0, 16), slice(16, 32)) for t in range(2))
    assert 10 * np.log10(np.ptp(values) ** 2 / worst) >= 30.0
    assert made(source, tmp_path / "b.sfz", **how, psnr_db=3.0).total < found.total / 4, "constants are enough"
    with pytest.raises(InputError, match="lower --psnr"):
        made(source, tmp_path / "c.sfz", **how, psnr_db=90.0)
    assert not (tmp_path / "c.sfz").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    lines = ["path,subject,split"]
    for person in range(3):
        grid = Grid.centred((16, 16, 12), 1.0)
        values = 200 * np.sin(grid.points()[:, 0].numpy() / 4 + person).reshape(grid.shape)
        write_nifti(folder / f"{person}.nii", values.round().astype(np.int16), grid, unit="HU")
        lines.append(f"{person}.nii,p{person},{'train' if person else 'validation'}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    config = replace(coinpp.Config.tiny(), patch=8, latent=4, steps=30)
    model = coinpp.train(config, read_cohort(folder / "cohort.csv"), Run(seed=0))
    model.save(folder / "model.safetensors")
    return folder / "model.safetensors", model


def test_bricks_of_a_trained_method_need_its_model(source, trained, tmp_path):
    file, model = trained
    path = tmp_path / "a.sfz"
    found = compress_bricks(source[0], "coinpp", model.config, Run(seed=0), path, model=file, jobs=2, **HOW)
    assert found.total == path.stat().st_size <= source[1].size * 4 / 8
    back = np.stack([read_bricks(path, frame=t, model=model).values for t in range(2)], -1).astype(float)
    mean = np.mean((back - source[1]) ** 2)
    assert found.table.rows[0].values["psnr_db"] == pytest.approx(
        10 * np.log10(np.ptp(source[1].astype(float)) ** 2 / mean)
    )
    with pytest.raises(InputError, match="needs the model"):
        read_bricks(path)
    other = replace(model, tensors={name: value + 1 for name, value in model.tensors.items()})
    with pytest.raises(InputError, match="this one is"):
        read_bricks(path, model=other)
    with pytest.raises(InputError, match="needs a trained model"):
        compress_bricks(source[0], "coinpp", model.config, Run(seed=0), tmp_path / "b.sfz", **HOW)
