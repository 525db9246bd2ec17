"""Fair timings: variants take turns in one process, and every figure stands beside what the machine can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Variant = Callable[[], object]
MATMUL = 2048
COPY = 2**26


@dataclass(frozen=True)
class Peaks:
    """What this machine reaches on plain work: a 2048^3 float32 product, and a copy of 256 MiB (read and write)."""

    gflops: float
    gbytes: float


def medians(variants: Mapping[str, Variant], device: torch.device, *, rounds: int = 5) -> dict[str, float]:
    """Median seconds of each variant; they alternate, in reverse order every other round, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        variant()
    for turn in range(rounds):
        for name in list(variants) if turn % 2 == 0 else reversed(list(variants)):
            _wait(device)
            start = time.perf_counter()
            variants[name]()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peaks(device: torch.device, rounds: int = 7) -> Peaks:
    """Measures them here and now."""
    a = torch.rand(MATMUL, MATMUL, device=device)
    b, c = torch.rand_like(a), torch.empty_like(a)
    source = torch.rand(COPY, device=device)
    target = torch.empty_like(source)
    found = medians(
        {"product": lambda: torch.mm(a, b, out=c), "copy": lambda: target.copy_(source)}, device, rounds=rounds
    )
    return Peaks(2 * MATMUL**3 / found["product"] / 1e9, 2 * 4 * COPY / found["copy"] / 1e9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
