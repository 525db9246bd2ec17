"""What a reconstruction from k-space leaves in its folder for the report: kspace.npz.

    names        (rows,) of the table, the method first, then its own prediction of k-space
    measured     (views, samples) root sum of squares over the coils
    predicted    (rows, views, samples) likewise
    residual     (rows, views) ||predicted - measured|| / ||measured|| over coils and samples
    held_out     (n,) indices of views that no row has seen
    bands        (n + 1,) edges of bands of |k|, cycles/mm
    band_measured, band_residual   (n,), (rows, n) RMS of measured values, and of predicted minus measured ones, over
                 the coils and samples of a band; of held-out views where there are some, else of all
    view         (views,) places on the axis of the series, unit its unit
    moments      (frames,) those of the frames
    step_s       seconds from frame to frame, NaN where they are not known

Of a long scan every n-th view is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Complex
from torch import Tensor

from scanfield.data.rawmri import KSpace
from scanfield.data.write import write_atomically

NAME = "kspace.npz"
MOST_VIEWS = 400
BANDS = 24


def write_kspace_record(
    folder: Path,
    data: KSpace,
    predicted: Mapping[str, Complex[Tensor, "views coils samples"]],
    held_out: np.ndarray,
    step_s: float | None,
) -> None:
    """Writes kspace.npz.

    Args:
        predicted: k-space as every row predicts it, by name.
        held_out: indices of views.
    """
    geometry, y = data.acquisition, data.values
    every = max(1, -(-geometry.views // MOST_VIEWS))
    kept = np.union1d(np.arange(0, geometry.views, every), held_out).astype(int)
    norm = y.abs().square().sum(dim=(1, 2)).sqrt().clamp(min=1e-30)
    judges = held_out if len(held_out) else np.arange(geometry.views)
    radius = np.linalg.norm(geometry.trajectory[judges], axis=-1)
    edges = np.linspace(0, radius.max() * (1 + 1e-6) or 1.0, BANDS + 1)
    residual = [(p - y).abs().square().sum(dim=(1, 2)).sqrt() / norm for p in predicted.values()]
    arrays = {
        "names": np.array(list(predicted)),
        "measured": _size(y[kept]),
        "predicted": np.stack([_size(p[kept]) for p in predicted.values()]),
        "residual": np.stack([r.numpy()[kept] for r in residual]),
        "held_out": np.flatnonzero(np.isin(kept, held_out)),
        "bands": edges,
        "band_measured": _by_band(y[judges], radius, edges),
        "band_residual": np.stack([_by_band((p - y)[judges], radius, edges) for p in predicted.values()]),
        "view": geometry.when.view[kept],
        "unit": np.array(geometry.when.axis.unit),
        "moments": geometry.frame_moments(),
        "step_s": np.array(np.nan if step_s is None else step_s),
    }
    with write_atomically(folder / NAME) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _size(values: Complex[Tensor, "views coils samples"]) -> np.ndarray:
    return np.asarray(values.abs().square().sum(dim=1).sqrt().float().numpy())


def _by_band(values: Complex[Tensor, "views coils samples"], radius: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(bands,) RMS; 0 where a band has no sample."""
    power = values.abs().square().mean(dim=1).double().numpy().reshape(-1)
    band = np.clip(np.digitize(radius.reshape(-1), edges) - 1, 0, len(edges) - 2)
    count = np.bincount(band, minlength=len(edges) - 1)
    return np.asarray(np.sqrt(np.bincount(band, weights=power, minlength=len(edges) - 1) / np.maximum(count, 1)))
