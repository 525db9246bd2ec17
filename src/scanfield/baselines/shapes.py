"""What shape models are compared with: signed distances on grids, interpolated in time, or as a principal subspace.

Both take stacked signed distances (mm, negative inside; `fields.shape.signed_distance`), one image a frame, all frames
of a sequence and all sequences on the same lattice around their objects' centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def interpolate_distances(
    distances: Float[Tensor, "t *v"], times: Float[Tensor, " t"], at: Float[Tensor, " m"]
) -> Float[Tensor, "m *v"]:
    """Linear interpolation in time between the signed distances of neighbouring frames; before and after: the last.

    The zero level of the result is what slice interpolation by shape does between slices (Raya & Udupa, IEEE TMI 1990).

    Raises:
        ValueError: the times do not rise.
    """
    if bool((times.diff() <= 0).any()):
        raise ValueError(f"{len(distances)} frames need as many rising times, got {times.tolist()}")
    if len(times) == 1:
        return distances.expand(len(at), *distances.shape[1:])
    upper = torch.searchsorted(times.contiguous(), at.to(times).contiguous()).clamp(1, len(times) - 1)
    share = ((at - times[upper - 1]) / (times[upper] - times[upper - 1])).clamp(0, 1).to(distances)
    share = share.reshape(-1, *[1] * (distances.ndim - 1))
    return torch.lerp(distances[upper - 1], distances[upper], share)


@dataclass(frozen=True, eq=False)
class ShapePca:
    """A linear shape model: x = mean + sum_j b_j modes_j, b_j of standard deviation deviations_j.

    Args:
        mean: (v,).
        modes: (m, v), orthonormal, the widest first.
        deviations: (m,).
    """

    mean: Float[Tensor, " v"]
    modes: Float[Tensor, "m v"]
    deviations: Float[Tensor, " m"]

    @staticmethod
    def of(samples: Float[Tensor, "n v"], modes: int | None = None) -> ShapePca:
        """Principal components of samples (Leventon, Grimson & Faugeras, CVPR 2000: of signed distances).

        Args:
            modes: how many are kept; None: all n - 1.

        Raises:
            ValueError: there are fewer than two samples, or not so many modes.
        """
        most = len(samples) - 1
        kept = most if modes is None else modes
        if not 1 <= kept <= most:
            raise ValueError(f"{len(samples)} samples have 1 to {most} modes, {kept} are wanted")
        mean = samples.mean(dim=0)
        _, singular, right = torch.linalg.svd(samples - mean, full_matrices=False)
        return ShapePca(mean, right[:kept], singular[:kept] / most**0.5)

    def coefficients(self, samples: Float[Tensor, "n v"]) -> Float[Tensor, "n m"]:
        """b of the nearest members of the model."""
        return (samples - self.mean) @ self.modes.T

    def rebuilt(self, coefficients: Float[Tensor, "n m"]) -> Float[Tensor, "n v"]:
        """The members of the model with these b."""
        return self.mean + coefficients @ self.modes

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count v"]:
        """New members: b_j from N(0, deviations_j^2)."""
        drawn = torch.randn(count, len(self.deviations), generator=generator).to(self.mean)
        return self.rebuilt(drawn * self.deviations)
