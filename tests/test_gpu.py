"""The same fit on a CUDA device; skipped without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scanfield.data.samples import sample
from scanfield.data.scan import Scan
from scanfield.methods.compression import sci
from scanfield.methods.reconstruction import scope, siren
from scanfield.operators.fdk import feldkamp
from scanfield.operators.siddon import project_voxels
from scanfield.operators.simulate import CtScanOptions, simulate_ct
from scanfield.operators.voxel import VoxelProjector
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.projection import Detector, ProjectionGeometry
from scanfield.tasks.compression import compress, decompress
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


@pytest.mark.parametrize("kind", ["flat", "arc"])
def test_a_cone_beam_on_the_gpu_agrees_with_the_cpu(kind: str) -> None:
    """Projection, its transpose, the simulator and FDK; the first two are transposes of each other there, too."""
    grid = Grid.centred((30, 26, 20), (3.0, 3.0, 4.0))
    detector = Detector(kind, (24, 32), (6.0, 6.0 if kind == "flat" else 0.7))  # type: ignore[arg-type]
    scan = ProjectionGeometry(
        "cone", np.arange(30) * 12.0, detector, grid, source_to_axis_mm=300.0, source_to_detector_mm=500.0
    )
    volume = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for device in ("cpu", "cuda"):
        projector = VoxelProjector(scan, grid, device=device)
        x = volume.to(device)
        y = projector.apply(x)
        back = projector.adjoint(y)
        assert float((y.double() * y).sum()) == pytest.approx(float((x.double() * back).sum()), rel=1e-6)
        found[device] = [y, back, project_voxels(x, grid, scan), feldkamp(y, scan, grid)]
    for cpu, cuda in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-3, atol=1e-4 * float(cpu.abs().max()))


def test_siren_on_the_gpu_agrees_with_the_cpu() -> None:
    image = sample("ct_abdomen_volume")
    images = {}
    for device in ("cpu", "cuda"):
        result = siren.fit(siren.Config.tiny(), image, Run(device=torch.device(device)))
        images[device] = siren.render(result, image.grid.slice(12))
    difference = (images["cuda"] - images["cpu"]).abs().max() / images["cpu"].abs().max()
    assert float(difference) < 0.02


@pytest.mark.parametrize("bound", [0.0, 3.0])
def test_a_bounded_file_decodes_to_the_same_integers_on_the_gpu(tmp_path: Path, bound: float) -> None:
    image = sample("ct_abdomen_volume")
    values = image.values[40:88, 30:78, 6:22].round().contiguous()
    scan = Scan(values, image.grid.part((40, 30, 6), (48, 48, 16)), image.unit, source="block")
    config = replace(sci.Config.tiny(), budget_bytes=4000, steps=60, tuning_steps=10, restarts=0)
    path = tmp_path / "a.sfz"
    compress(scan, "sci", config, Run(), path, stored_type="int16", max_error=bound, baselines=False)
    on_cpu, on_gpu = (decompress(path, device=torch.device(device)).values for device in ("cpu", "cuda"))
    assert on_gpu.dtype == np.int16 and np.array_equal(on_cpu, on_gpu)
    assert np.abs(on_gpu - values.numpy()).max() <= bound
