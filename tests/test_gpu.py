"""The same fit on a CUDA device; skipped without one."""

from __future__ import annotations

import pytest
import torch

from scanfield.data.samples import sample
from scanfield.methods.reconstruction import scope, siren
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.run import Run
from scanfield.tasks.reconstruction import reconstruct

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_scope_on_the_gpu_agrees_with_the_cpu() -> None:
    volume = sample("ct_abdomen_volume")
    grid = volume.grid.slice(12)
    data = simulate_ct(
        volume, CtScanOptions(views=24, bin_mm=6.0), slice_index=12, grid=grid.resampled((6.0, 6.0, 3.0))
    )
    images = {}
    for device in ("cpu", "cuda"):
        run = Run(device=torch.device(device))
        outcome = reconstruct(data, "scope", scope.Config.tiny(), run, baselines="none")
        images[device] = outcome.pictures[0].values
    difference = (images["cuda"] - images["cpu"]).abs().max() / images["cpu"].abs().max()
    assert float(difference) < 0.02


def test_siren_on_the_gpu_agrees_with_the_cpu() -> None:
    image = sample("ct_abdomen_volume")
    images = {}
    for device in ("cpu", "cuda"):
        result = siren.fit(siren.Config.tiny(), image, Run(device=torch.device(device)))
        images[device] = siren.render(result, image.grid.slice(12))
    difference = (images["cuda"] - images["cpu"]).abs().max() / images["cpu"].abs().max()
    assert float(difference) < 0.02
