"""How fast networks, grids and derivatives are here, beside plain torch, torch.compile and the machine's peaks."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scanfield.bench import kernel_cases as cases
from scanfield.bench.protocol import BenchResult, Check
from scanfield.bench.timing import Peaks, medians, peaks
from scanfield.data.samples import sample
from scanfield.kernels.backend import backend_for
from scanfield.methods.reconstruction import scope, siren
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.run import Run
from scanfield.tasks.result import Reconstruction

STEPS = 40
PLAIN, OURS, QUARTER, COMPILED = "plain torch", "ours", "ours, penalty on a quarter", "torch.compile"


def run(run: Run) -> BenchResult:
    """Every case on the run's device."""
    peak = peaks(run.device)
    result = BenchResult()
    result.notes.append(
        f"Measured in this run: {peak.gflops:.0f} GFLOP/s (2048^3 float32 product), {peak.gbytes:.1f} GB/s (copy); "
        f"backend {backend_for(run.device, run.backend).why}; seconds are medians of alternating repeats."
    )
    bench = _Bench(run, result, peak)
    (_on_cpu if run.device.type == "cpu" else _on_gpu)(bench)
    return result


class _Bench:
    """Fills the table and the checks."""

    def __init__(self, run: Run, result: BenchResult, peak: Peaks) -> None:
        self.run, self.result, self.peak = run, result, peak
        # On a CPU the compiler of torch needs a C++ compiler.
        self.compiler = run.device.type == "cuda" or bool(shutil.which("g++") or shutil.which("clang++"))
        if not self.compiler:
            result.notes.append("torch.compile is missing from the table: there is no C++ compiler here.")

    def time(self, name: str, case: cases.Case, rounds: int = 5) -> dict[str, float]:
        """Seconds of every variant of a case; adds them to the table."""
        self.run.tell({"case": name})
        seconds = medians(case.variants, self.run.device, rounds=rounds)
        for variant, value in seconds.items():
            gflops = case.points * case.flops / value / 1e9
            row: dict[str, Any] = {
                "case": name,
                "variant": variant,
                "ms": round(1e3 * value, 3),
                "million_points_per_s": round(case.points / value / 1e6, 3),
                "gflops": round(gflops, 1) if case.flops else None,
                "of_matmul": round(gflops / self.peak.gflops, 3) if case.flops else None,
                "times_plain_torch": round(seconds[PLAIN] / value, 2),
            }
            self.result.table.append(row)
        return seconds

    def check(self, name: str, value: float, threshold: float, unit: str = "x") -> None:
        self.result.checks.append(Check(name, value, threshold, unit=unit))

    def at_most(self, name: str, value: float, threshold: float, unit: str) -> None:
        self.result.checks.append(Check(name, value, threshold, "<=", unit))

    def ratio(self, name: str, seconds: Mapping[str, float], variant: str, threshold: float, to: str = PLAIN) -> None:
        if to in seconds:
            self.check(f"{name}: {variant} over {to}", seconds[to] / seconds[variant], threshold)


def _on_cpu(bench: _Bench) -> None:
    device, compiled = bench.run.device, bench.compiler
    for width, points, least in ((64, 65536, 2.5), (128, 65536, 2.5), (256, 16384, 1.4)):
        name = f"SIREN {width} x 4, training"
        case = cases.siren_training(width, points, device, compiled=compiled and width == 64)
        seconds = bench.time(name, case)
        bench.ratio(name, seconds, OURS, least)
        if width == 256:
            share = case.points * case.flops / seconds[OURS] / 1e9 / bench.peak.gflops
            bench.check(f"{name}: of the matrix product's rate", share, 0.85, "")
    for width, least in ((64, 2.3), (256, 1.6)):
        name = f"SIREN {width} x 4, 128^3 lattice"
        bench.ratio(name, bench.time(name, cases.decode(width, 128, device), rounds=2), OURS, least)
    name = "hash grid and 64 x 2, training"
    seconds = bench.time(name, cases.hash_training(65536, device, compiled=compiled), rounds=3)
    bench.ratio(name, seconds, OURS, 12.0)
    bench.ratio(name, seconds, OURS, 3.0, to=COMPILED)
    name = "hash grid, gradient penalty"
    bench.ratio(name, bench.time(name, cases.hash_slope(16384, device), rounds=2), OURS, 3.0)
    name = "registration step"
    seconds = bench.time(name, cases.registration(device))
    bench.ratio(name, seconds, OURS, 1.5)
    bench.ratio(name, seconds, QUARTER, 3.0)
    name = "cone beam, 64^3 voxels, projection and transpose"
    bench.ratio(name, bench.time(name, cases.cone_beam(device), rounds=3), OURS, 10.0)
    _memory(bench)
    _start_up(bench)
    _methods(bench)


def _memory(bench: _Bench) -> None:
    """Peak memory of a step over what the process held before it, each in a process of its own."""
    bench.run.tell({"case": "memory"})
    if not Path("/proc/self/clear_refs").exists():
        bench.result.notes.append("Peak memory is missing from the table: it is read from Linux's /proc.")
        return
    found = {}
    for variant in (PLAIN, OURS):
        for points in (65536, 262144):
            mib = found[variant, points] = float(_alone(MEMORY.format(variant=variant, points=points)))
            name = f"SIREN 256 x 4, step of {points} points"
            bench.result.table.append({"case": name, "variant": variant, "peak_mib": round(mib, 1)})
    most = {variant: found[variant, 262144] for variant in (PLAIN, OURS)}
    bench.check("peak memory of 262,144 points: plain torch over ours", most[PLAIN] / max(1.0, most[OURS]), 12.0)
    bench.at_most("growth of ours from 65,536 points", most[OURS] - found[OURS, 65536], 8.0, "MiB")


def _start_up(bench: _Bench) -> None:
    """Seconds from the end of the imports to the end of the first step, in a new process."""
    bench.run.tell({"case": "first step"})
    seconds = float(_alone(FIRST_STEP))
    bench.result.table.append({"case": "first step of a new process", "variant": OURS, "ms": round(1e3 * seconds, 1)})
    bench.at_most("first step after the imports", seconds, 1.0, "s")


def _methods(bench: _Bench) -> None:
    """Seconds per step of whole methods, whose files say nothing of kernels."""
    chest = sample("ct_chest_slice")
    spacing = (chest.grid.spacing_mm[0] * 2, chest.grid.spacing_mm[1] * 2, chest.grid.spacing_mm[2])
    scan = simulate_ct(chest, CtScanOptions(views=60, bin_mm=spacing[0]), grid=chest.grid.resampled(spacing))
    works: dict[str, Callable[[Run], Reconstruction]] = {
        "scope, fast": lambda run: scope.fit(replace(scope.Config.fast(), steps=STEPS), scan, run),
        "siren, fast": lambda run: siren.fit(replace(siren.Config.fast(), steps=STEPS), chest, run),
    }
    for title, work in works.items():
        bench.run.tell({"case": title})
        seconds: dict[str, list[float]] = {PLAIN: [], OURS: []}
        for turn in range(3):
            for variant in (PLAIN, OURS) if turn % 2 == 0 else (OURS, PLAIN):
                backend = "reference" if variant == PLAIN else "auto"
                done = work(Run(device=bench.run.device, seed=bench.run.seed, backend=backend))
                seconds[variant].append(done.logs[0].seconds / STEPS)
        middle = {variant: statistics.median(values) for variant, values in seconds.items()}
        for variant, value in middle.items():
            row = {"case": f"{title}: one step", "variant": variant, "ms": round(1e3 * value, 2)}
            bench.result.table.append(row | {"times_plain_torch": round(middle[PLAIN] / value, 2)})


def _on_gpu(bench: _Bench) -> None:
    device, before = bench.run.device, torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            _networks(bench, precision)
    finally:
        torch.set_float32_matmul_precision(before)
    for points in (65536, 262144):
        name = f"hash grid and 64 x 2, training, {points} points"
        seconds = bench.time(name, cases.hash_training(points, device, compiled=points == 262144))
        bench.ratio(name, seconds, OURS, 3.0, to=COMPILED)
        bench.ratio(name, seconds, OURS, 3.0)
    name = "hash grid, gradient penalty"
    bench.ratio(name, bench.time(name, cases.hash_slope(65536, device), rounds=3), OURS, 20.0)
    bench.time("registration step", cases.registration(device))


def _networks(bench: _Bench, precision: str) -> None:
    """Training and rendering with one setting of `torch.set_float32_matmul_precision`."""
    device = bench.run.device
    for width in (64, 128):
        for points in (65536, 262144):
            name = f"SIREN {width} x 4, training, {points} points, {precision}"
            seconds = bench.time(name, cases.siren_training(width, points, device, compiled=points == 262144))
            bench.ratio(name, seconds, OURS, 0.9)
            if precision == "high" and width == 64:
                bench.ratio(name, seconds, OURS, 3.0, to=COMPILED)
        name = f"SIREN {width} x 4, 256^3 lattice, {precision}"
        bench.ratio(name, bench.time(name, cases.decode(width, 256, device), rounds=3), OURS, 2.0)


# Writing 5 to clear_refs makes the process's present memory its peak.
MEMORY = """
import pathlib, torch
from scanfield.bench.kernel_cases import siren_training
def mib(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
def step(points):
    return siren_training(256, points, torch.device("cpu"), compiled=False).variants["{variant}"]
step(64)()
work = step({points})
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = mib("VmRSS")
work()
print(mib("VmHWM") - before)
"""

# torch.optim imports torch._dynamo, a second by itself, when the first optimiser is made: that is one of the imports.
FIRST_STEP = """
import time, torch, torch._dynamo
from scanfield.bench.kernel_cases import siren_training
start = time.perf_counter()
siren_training(256, 16384, torch.device("cpu"), compiled=False).variants["ours"]()
print(time.perf_counter() - start)
"""


def _alone(code: str) -> str:
    """What a program prints, in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
