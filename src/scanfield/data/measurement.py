"""What was measured, and under which noise.

A measurement keeps the acquisition's geometry, not an operator: a field samples its rays, a rival needs a voxel
projector, a simulator a third one, all on the same data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Inexact
from torch import Tensor

from scanfield.data.scan import Scan
from scanfield.data.spectra import Spectrum
from scanfield.errors import InputError
from scanfield.space.grid import Grid

A = TypeVar("A")


@runtime_checkable
class Acquisition(Protocol):
    """How measurements were taken, view by view (a projection, a slice, a spoke: the first axis of the values)."""

    @property
    def kind(self) -> str: ...
    @property
    def views(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def volume(self) -> Grid: ...
    def subset(self: A, views: np.ndarray) -> A: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Noise:
    """Noise model of a measurement: 'unknown', 'none', 'gaussian' (level = sigma in the data's unit) or 'poisson'
    (level = photons per detector pixel in air)."""

    kind: str = "unknown"
    level: float = 0.0


G = TypeVar("G", bound=Acquisition)


@dataclass(frozen=True, eq=False)
class Measurement(Generic[G]):
    """Measured values with the acquisition that explains them.

    Args:
        values: shape `acquisition.shape`; for CT, dimensionless line integrals; complex for raw MR data.
        acquisition: where and how every value was taken.
        noise: known noise model.
        unit: unit of the values ('1' for dimensionless).
        source: name of the file the data came from, for messages and provenance.
        spectrum: of the X-rays, where the values are raw polychromatic projections and it is known.
        metal: where there is metal, on the scan's grid (see `operators.metal`), or None.
    """

    values: Inexact[Tensor, "views *rest"]
    acquisition: G
    noise: Noise = Noise()
    unit: str = "1"
    source: str = ""
    spectrum: Spectrum | None = None
    metal: Scan | None = None

    def __post_init__(self) -> None:
        if tuple(self.values.shape) != tuple(self.acquisition.shape):
            raise InputError(
                f"the measurements have shape {tuple(self.values.shape)}, "
                f"but their geometry describes {tuple(self.acquisition.shape)}",
                where=self.source,
                fix="correct the geometry (views, rows, columns) or the order of the array's axes",
            )
        bad = int((~torch.isfinite(self.values)).sum())
        if bad:
            raise InputError(
                f"{bad} of {self.values.numel()} measurements are NaN or infinite",
                where=self.source,
                fix="mark saturated or dead pixels and interpolate them before reconstruction",
            )

    @property
    def kind(self) -> str:
        return self.acquisition.kind

    def subset(self, views: np.ndarray) -> Measurement[G]:
        """Only some views."""
        chosen = torch.as_tensor(np.asarray(views), dtype=torch.long)
        return replace(self, values=self.values[chosen], acquisition=self.acquisition.subset(views))

    def hold_out(self, count: int) -> tuple[Measurement[G], Measurement[G] | None]:
        """(views to fit, `count` views spread evenly and held out, or None for 0)."""
        if count == 0:
            return self, None
        held = self.held_out_views(count)
        return self.subset(np.setdiff1d(np.arange(self.acquisition.views), held)), self.subset(held)

    def held_out_views(self, count: int) -> np.ndarray:
        """The indices of the views that `hold_out` keeps from the fit.

        Raises:
            InputError: not between 0 and the number of views.
        """
        views = self.acquisition.views
        if not 0 <= count < views:
            raise InputError(
                f"cannot hold out {count} of {views} views", fix=f"choose --holdout-views between 0 and {views - 1}"
            )
        return np.unique(np.round((np.arange(count) + 0.5) * views / max(count, 1) - 0.5).astype(int))
