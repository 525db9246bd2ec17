"""Per-scan fitting: one field, one measurement, random batches of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from scanfield.data.measurement import Measurement
from scanfield.operators.base import SampledOperator, predict_all
from scanfield.run import Run
from scanfield.space.samples import random_index


@dataclass(frozen=True)
class MeasurementBatch:
    """Flat indices into the measurement and the values measured there."""

    index: Int[Tensor, " m"]
    value: Float[Tensor, "m *rest"]


def random_views_and_bins(
    measurement: Measurement[Any], views: int, bins: int, run: Run
) -> Callable[[int], MeasurementBatch]:
    """Batches of `bins` random measurements from each of `views` random views, drawn with replacement."""
    generator = run.generator("measurements")
    values = measurement.values.reshape(measurement.acquisition.views, -1).to(run.device)

    def draw(step: int) -> MeasurementBatch:
        view = random_index(values.shape[0], views, generator)
        place = random_index(values.shape[1], views * bins, generator)
        index = (view.repeat_interleave(bins) * values.shape[1] + place).to(run.device)
        return MeasurementBatch(index, values.reshape(-1)[index])

    return draw


def held_out_residual(
    field: Callable[[Tensor], Tensor], operator: SampledOperator, measured: Tensor, run: Run
) -> Callable[[], float]:
    """Root mean square of predicted minus measured on data the fit never sees, in the data's unit."""

    def residual() -> float:
        predicted = predict_all(field, operator, device=run.device)
        return float((predicted - measured).square().mean().sqrt())

    return residual
