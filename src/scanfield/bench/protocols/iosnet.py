"""IOSNet on hippocampi and on brains: trained at half resolution, judged at full on other people, beside a voxel U-Net.

Data: two parts of the hippocampus in 100 people, and four tissues in slabs of 22 brains (`bench.labelled_people`).
Settings were chosen on ten of the hippocampi that are learned from, with another split; for the brains, whose crops are
32 voxels wide, nothing was chosen.

Both networks get the image at half resolution, have the same encoder, rates, crops, augmentation and number of steps,
and keep the weights of their best look at the people to watch; two seeds. Labels are those of half resolution, too; for
IOSNet, whose points lie anywhere, also those of full, and in one row also the image itself, which the encoder does not
see (`detail`). The U-Net's probabilities are interpolated to full resolution, IOSNet is asked there. Dice: the mean of
all classes, over people, in points of a hundred.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scanfield.baselines import unet
from scanfield.bench.labelled_people import People, brains, cohorts, hippocampi
from scanfield.bench.parallel import each
from scanfield.bench.protocol import BenchResult, Check
from scanfield.data.cohort import Member
from scanfield.data.nifti import read_nifti, write_nifti
from scanfield.data.scan import Scan
from scanfield.methods.segmentation import iosnet
from scanfield.metrics.segmentation import overlap
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model

Ask = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n k"]]

CONFIG = replace(iosnet.Config.fast(), steps=1500)
EARLY = 0.1  # of the steps
SEEDS = (0, 1)
FINE, COARSE = "IOSNet, labels at full resolution", "IOSNet, labels at half resolution"
DETAILED = "IOSNet, labels and the image itself at full resolution"
RIVAL, LAST, TENTH = "U-Net", "IOSNet, coarsest features alone", "first tenth of the steps"
UPSAMPLED: dict[str, unet.Upsampling] = {", trilinear": "linear", ", nearest": "nearest"}
CHUNK = 2**14  # points that are asked for at once
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives freed blocks back at once: what it keeps varies by half


@dataclass(frozen=True)
class Case:
    """Who is judged, and the settings of the training."""

    people: Callable[[], People]
    config: iosnet.Config


def cases() -> dict[str, Case]:
    """Both, by name."""
    narrow = replace(CONFIG, crops=replace(CONFIG.crops, size=32))  # four of them fit into a step's time
    return {"hippocampi": Case(hippocampi, CONFIG), "brains": Case(brains, narrow)}


@dataclass(frozen=True)
class Job:
    """A network to train and to judge.

    Args:
        case: whose images it learns from.
        name: of its row.
        network: which of the two.
        config: of the training; the U-Net has the parts of it that it shares.
        full: whether it learns from labels at full resolution. Its encoder sees half of it in any case.
        until: the part of the steps after which it is stopped.
        seed: added to the run's.
    """

    case: str
    name: str
    network: Literal["iosnet", "unet"]
    config: iosnet.Config
    full: bool = False
    until: float = 1.0
    seed: int = 0


def jobs(case: str, config: iosnet.Config) -> list[Job]:
    """All networks of a case, the long trainings first."""
    fine = replace(config, crops=replace(config.crops, spacing_mm=(2.0, 2.0, 2.0)))
    detailed = replace(fine, crops=replace(fine.crops, detail=2), displacement=config.displacement / 2)
    found = []
    for seed in SEEDS:
        found += [
            Job(case, FINE, "iosnet", fine, full=True, seed=seed),
            Job(case, COARSE, "iosnet", config, seed=seed),
            Job(case, DETAILED, "iosnet", detailed, full=True, seed=seed),
            Job(case, RIVAL, "unet", config, seed=seed),
        ]
    found.append(Job(case, LAST, "iosnet", replace(config, levels="last")))
    for seed in SEEDS:
        found += [
            Job(case, f"{COARSE}, {TENTH}", "iosnet", config, until=EARLY, seed=seed),
            Job(case, f"{RIVAL}, {TENTH}", "unet", config, until=EARLY, seed=seed),
        ]
    return found


def run(run: Run) -> BenchResult:
    """Trains every network, judges it on the same people, measures memory."""
    result = BenchResult()
    todo = [job for name, case in cases().items() for job in jobs(name, case.config)]
    run.tell({"case": f"{len(todo)} trainings of up to {CONFIG.steps} steps"})
    found = each(judged, todo, run)
    for name, case in cases().items():
        rows: dict[str, list[dict[str, float]]] = {}
        for job, own in zip(todo, found, strict=True):
            for row, numbers in own.items() if job.case == name else ():
                rows.setdefault(row, []).append(numbers)
        _case(name, f"dice_{case.people().smallest}".replace(" ", "_"), rows, result)
    run.tell({"case": "memory"})
    growth = memory(run, result)
    result.checks.append(
        Check("peak memory on a grid of half the spacing over that on the image's", growth, 1.05, "<=")
    )
    result.notes.append(
        f"Dice is the mean over the people held out, and over {len(SEEDS)} seeds where there are so many numbers. The "
        "U-Net's better way of upsampling counts. Trainings ran side by side: their seconds are no measure of speed."
    )
    return result


def _case(name: str, smallest: str, rows: dict[str, list[dict[str, float]]], result: BenchResult) -> None:
    """Rows of the table, seeds averaged, and checks of a case."""
    mean = {row: {key: float(np.mean([line[key] for line in own])) for key in own[0]} for row, own in rows.items()}
    for row, own in rows.items():
        shown = {key: round(value, 2 if key.startswith("dice") else None) for key, value in mean[row].items()}
        each_seed = ", ".join(f"{line['dice']:.2f}" for line in own)
        result.table.append({"case": name, "row": row, **shown, "dice_of_seeds": each_seed})
    rival = max(mean[f"{RIVAL}{how}"]["dice"] for how in UPSAMPLED)
    early = max(mean[f"{RIVAL}, {TENTH}{how}"][smallest] for how in UPSAMPLED)
    gains = {
        "over the U-Net upsampled, labels at half resolution": (mean[COARSE]["dice"] - rival, 1.0),
        "over the U-Net upsampled, points of full labels": (mean[FINE]["dice"] - rival, 1.0),
        "over the U-Net upsampled, full labels and image": (mean[DETAILED]["dice"] - rival, 1.0),
        "a tenth of the steps: smallest structure over the U-Net's": (
            mean[f"{COARSE}, {TENTH}"][smallest] - early,
            0.01,  # neither may have seen it yet
        ),
        "all levels over the coarsest features alone": (mean[COARSE]["dice"] - mean[LAST]["dice"], 0.0),
    }
    result.checks += [Check(f"{name}: {what}", gain, asked, unit="points") for what, (gain, asked) in gains.items()]


def judged(job: Job, run: Run) -> dict[str, dict[str, float]]:
    """Rows of one network: Dice of the people held out, in points of a hundred, seconds, numbers of weights."""
    run = replace(run.again(), seed=run.seed + job.seed)
    people = cases()[job.case].people()
    with tempfile.TemporaryDirectory() as name:
        full, half = cohorts(people, Path(name))
        own, stopping = (full if job.full else half), _stopping(run, job.config.steps, job.until)
        start = time.perf_counter()
        asks: dict[str, Callable[[Scan], Ask]] = {}
        if job.network == "iosnet":
            model = iosnet.train(job.config, own, stopping)
            count = sum(tensor.numel() for tensor in model.tensors.values())
            asks[job.name] = lambda scan: iosnet.classifier(model, scan, run.device)
        else:
            trained = unet.train(rival_config(job.config), own, stopping)
            count = sum(p.numel() for p in trained.network.parameters())
            for name, how in UPSAMPLED.items():
                asks[job.name + name] = partial(_asked, trained, run.device, how)
        seconds = time.perf_counter() - start
        classes = range(1, len(people.table))
        keys = [f"dice_{people.table.names[k]}".replace(" ", "_") for k in classes]
        rows = {}
        for row, ask in asks.items():
            dice = []
            for seen, reference in zip(own.part("test"), full.part("test"), strict=True):
                label = read_nifti(_label(reference))
                found = _classes(ask(read_nifti(seen.path)), label.grid, run.device)
                dice.append(
                    [overlap(found == k, label.values == people.table.values[k], label.grid).dice for k in classes]
                )
            parts = 100 * np.mean(dice, axis=0)
            rows[row] = {"dice": float(parts.mean())} | dict(zip(keys, parts.tolist(), strict=True))
            rows[row] |= {"train_s": seconds, "parameters": count}
        return rows


def _asked(trained: unet.TrainedUNet, device: torch.device, how: unet.Upsampling, scan: Scan) -> Ask:
    return unet.classifier(trained, scan, device, upsampling=how)


def memory(run: Run, result: BenchResult) -> float:
    """Peak memory of asking IOSNet on a grid of half the spacing over that on the image's own; rows for the table."""
    with tempfile.TemporaryDirectory() as name:
        full, half = cohorts(hippocampi(), Path(name))
        model = iosnet.train(replace(CONFIG, steps=1), half, run.again(quiet=True))  # weights do not matter here
        scan, grid = read_nifti(half.part("test")[0].path), read_nifti(full.part("test")[0].path).grid
        peaks = []
        for own in (grid, grid.resampled(0.5 * float(np.mean(grid.spacing_mm)))):
            if run.device.type == "cuda":
                ask = iosnet.classifier(model, scan, run.device)
                peaks.append(_peak_on_gpu(partial(_classes, ask, own, run.device), run.device))
            else:
                peaks.append(_peak_alone(model, scan, own))
            result.table.append(
                {"case": "hippocampi", "row": "peak memory", "voxels": own.size, "mib": round(peaks[-1] / 2**20, 2)}
            )
        return peaks[1] / peaks[0]


def _label(member: Member) -> Path:
    assert member.label is not None
    return member.label


def rival_config(config: iosnet.Config) -> unet.Config:
    """The U-Net's settings: IOSNet's, as far as they have the same name, and half of the loss Dice."""
    shared = {setting.name for setting in fields(unet.Config)} - {"dice"}
    return unet.Config(**{name: value for name, value in vars(config).items() if name in shared})


def _stopping(run: Run, steps: int, part: float) -> Run:
    """A run that ends after a part of the steps, with the rates of the whole."""
    if part == 1:
        return run
    end = threading.Event()

    def stop(event: dict[str, Any]) -> None:
        if run.stop.is_set() or event.get("step", 0) >= part * steps:
            end.set()

    return replace(run, observers=(*run.observers, stop), stop=end)


def _classes(ask: Ask, grid: Grid, device: torch.device) -> UInt8[Tensor, "n0 n1 n2"]:
    """The likeliest class of every voxel, chunk by chunk."""
    found = torch.empty(grid.size, dtype=torch.uint8)
    for start in range(0, grid.size, CHUNK):
        x = grid.points(start, start + CHUNK, device=device)
        found[start : start + CHUNK] = ask(x).argmax(dim=1)
    return found.reshape(grid.shape)


def _peak_on_gpu(work: Callable[[], object], device: torch.device) -> float:
    """Most bytes in use while something runs, over those before."""
    work()  # what is made once, at the first call, is no matter of the grid
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return float(torch.cuda.max_memory_allocated(device) - before)


def _peak_alone(model: Model, image: Scan, grid: Grid) -> float:
    """The same of a process of its own (on Linux): what a process has used before hides what it needs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save(folder / "model.safetensors")
        write_nifti(folder / "image.nii.gz", image.values, image.grid)
        (folder / "grid.json").write_text(json.dumps(grid.to_json()), encoding="utf-8")
        code = "import sys; from scanfield.bench.protocols.iosnet import asked_alone; print(asked_alone(sys.argv[1]))"
        command = [sys.executable, "-c", code, name]
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | AT_ONCE)
        return float(found.stdout)


def asked_alone(name: str) -> float:
    """Peak bytes of asking the model in a folder about the image on the grid there; NaN where there is no Linux."""
    folder, status = Path(name), Path("/proc/self/status")
    ask = iosnet.classifier(Model.load(folder), read_nifti(folder / "image.nii.gz"), "cpu")
    grid = Grid.from_json(json.loads((folder / "grid.json").read_text(encoding="utf-8")))
    ask(grid.points(0, 64))
    if not status.exists():
        return math.nan
    Path("/proc/self/clear_refs").write_text("5")  # makes the present memory the peak
    before = _status_bytes(status, "VmRSS")
    _classes(ask, grid, torch.device("cpu"))
    return float(_status_bytes(status, "VmHWM") - before)


def _status_bytes(status: Path, key: str) -> int:
    lines = status.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))
