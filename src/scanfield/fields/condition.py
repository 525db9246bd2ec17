"""What a field depends on besides x: the codes of subjects, and features of an image around x.

A condition (`fields.field.Condition`) is sampled at world points like everything else. How a network takes it up is the
network's matter: appended to the coordinates (`fields.field.Field`), as scales and shifts of its layers
(`fields.networks.film`), as weights (`fields.networks.hyper`), or decoded cell by cell (`LocalCell`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scanfield.errors import InputError
from scanfield.space.grid import Grid


class Latent:
    """The same code at every point.

    Args:
        code: (k,) of one subject, or (b, k) of a batch whose points are (b, ..., w).
    """

    def __init__(self, code: Float[Tensor, "*b k"]) -> None:
        self.code = code

    def at(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n k"]:
        """The code, once for every point.

        Raises:
            ValueError: the first axes of `x` are not those of the batch.
        """
        batch = self.code.shape[:-1]
        if x.shape[: len(batch)] != batch or x.ndim <= len(batch):
            raise ValueError(f"codes of shape {tuple(self.code.shape)} do not suit points of shape {tuple(x.shape)}")
        between = [1] * (x.ndim - 1 - len(batch))
        return self.code.reshape(*batch, *between, -1).expand(*x.shape[:-1], -1)


class LatentTable(nn.Module):
    """A learned code for every subject of a cohort (auto-decoder; Park et al., DeepSDF, CVPR 2019, section 4).

    Notation: z_i code of subject i, k its size, m and s the mean and the standard deviation of the codes, number by
    number.

    Args:
        count: number of subjects.
        size: k.
        deviation: the codes start from N(0, deviation^2), independently.
        bound: the largest |z_i|; a longer code is used as its nearest point in the ball of this radius. None: no bound.
        generator: draws the codes.

    Raises:
        InputError: there is no subject or no number in a code; the deviation is negative, or the bound not positive.
    """

    def __init__(
        self, count: int, size: int, *, deviation: float, bound: float | None = None, generator: torch.Generator
    ) -> None:
        super().__init__()
        if count < 1 or size < 1:
            raise InputError(f"a table of codes needs a subject and a number each, got {count} codes of {size} numbers")
        if not deviation >= 0:
            raise InputError(f"codes start from a deviation of at least 0, got {deviation}")
        if bound is not None and not bound > 0:
            raise InputError(f"the bound of the codes' norm must be positive, got {bound}")
        self.bound = bound
        self.free = nn.Parameter(deviation * torch.randn(count, size, generator=generator))

    @staticmethod
    def of(codes: Float[Tensor, "count k"], *, bound: float | None = None) -> LatentTable:
        """A table of known codes, such as a model's."""
        count, size = codes.shape
        table = LatentTable(count, size, deviation=0.0, bound=bound, generator=torch.Generator())
        table.free = nn.Parameter(codes.detach().clone())
        return table

    def __len__(self) -> int:
        return len(self.free)

    @property
    def size(self) -> int:
        return self.free.shape[1]

    def forward(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """The codes of some subjects; gradients reach theirs alone."""
        return self._within(self.free[index])

    def codes(self) -> Float[Tensor, "count k"]:
        """All codes."""
        return self._within(self.free)

    def prior(self, index: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """mean_i |z_i|^2 over some subjects, before the bound: 2 d^2 times the negative logarithm of a Gaussian prior
        N(0, d^2), up to a constant."""
        return self.free[index].square().sum(dim=1).mean()

    def norm(self, index: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """mean_i |z_i| over some subjects, before the bound: the prior of systems that do not square it. Its gradient
        at zero is zero."""
        return torch.linalg.vector_norm(self.free[index], dim=1).mean()

    def spread(self) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
        """m and s (with n - 1; zero where there is one subject)."""
        codes = self.codes().detach()
        deviation = codes.std(dim=0) if len(codes) > 1 else torch.zeros_like(codes[0])
        return codes.mean(dim=0), deviation

    def draw(
        self, count: int, generator: torch.Generator, *, scale: float = 1.0, correlated: bool = False
    ) -> Float[Tensor, "count k"]:
        """New codes around m, as spread as the learned ones, times `scale`.

        Args:
            generator: on the CPU.
            correlated: numbers of a code vary together as they do among the subjects, N(m, C) with C their
                covariance; else each varies by itself, N(m, diag s^2).
        """
        codes = self.codes().detach()
        mean, deviation = self.spread()
        if not correlated:
            return mean + scale * deviation * torch.randn(count, self.size, generator=generator).to(mean)
        weight = torch.randn(count, len(codes), generator=generator).to(mean) / max(1, len(codes) - 1) ** 0.5
        return mean + scale * weight @ (codes - mean)

    def between(self, first: int, second: int, t: Float[Tensor, " m"]) -> Float[Tensor, "m k"]:
        """Codes on the line from one subject (t = 0) to another (t = 1)."""
        codes = self.codes().detach()
        return torch.lerp(codes[first], codes[second], t.to(codes)[:, None])

    def _within(self, codes: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        if self.bound is None:
            return codes
        length = torch.linalg.vector_norm(codes, dim=1, keepdim=True)
        return torch.where(length > self.bound, codes * (self.bound / length.clamp(min=self.bound)), codes)


class LocalCell:
    """Features in the cells of a grid, decoded relative to each cell's centre (LIIF; Chen, Liu & Wang, CVPR 2021).

    Notation: d axes of more than one voxel; v_t centres and z_t features of the 2^d cells around x; r_t = x - v_t in
    cells along the grid's axes; w_t the share of the box between x and the centre across from v_t (multilinear
    weights, sum one); c the size of what is asked for, in cells; D a decoder.

        f(x) = sum_t w_t D([z_t, r_t, c])                                                        section 3, eq. 4

    Beyond the outermost centres the nearest cells answer alone; r grows on. f is continuous for a continuous D, because
    w_t is zero where a cell comes in or leaves. Unfolding features (their eq. 3) is left to the encoder.

    Args:
        features: (n0, n1, n2, k).
        grid: where the cells are.
        cell_mm: what is asked for at every point: the voxel sizes of the wanted image along the grid's axes of more
            than one voxel, (d,); None leaves c out.

    Raises:
        ValueError: the shapes do not fit.
        InputError: the grid has a single voxel.
    """

    def __init__(
        self, features: Float[Tensor, "n0 n1 n2 k"], grid: Grid, *, cell_mm: Float[Tensor, " d"] | None = None
    ) -> None:
        if features.ndim != 4 or tuple(features.shape[:3]) != grid.shape:
            raise ValueError(f"features of shape {tuple(features.shape)} do not fit a grid of shape {grid.shape}")
        self.axes = [axis for axis in range(3) if grid.shape[axis] > 1]
        if not self.axes:
            raise InputError("cells need a grid with more than one voxel")
        self.sizes = [grid.shape[axis] for axis in self.axes]
        self.features = features.reshape(-1, features.shape[-1])
        self.inverse = torch.from_numpy(np.linalg.inv(grid.affine)[self.axes])
        self.cell: Tensor | None = None
        if cell_mm is not None:
            spacing = torch.tensor([grid.spacing_mm[axis] for axis in self.axes], dtype=features.dtype)
            if cell_mm.shape != spacing.shape:
                raise ValueError(f"{len(spacing)} cell sizes are needed, got {tuple(cell_mm.shape)}")
            self.cell = cell_mm.to(features) / spacing.to(features)

    @property
    def width(self) -> int:
        """Numbers of [z, r, c]: what a decoder takes."""
        return self.features.shape[1] + len(self.axes) * (1 if self.cell is None else 2)

    def at(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n e"]:
        """[z, r, c] of the cell whose centre is nearest: jumps from cell to cell."""
        place = self._place(x)
        near = torch.stack([place[..., k].round().clamp(0, n - 1) for k, n in enumerate(self.sizes)], dim=-1)
        return self._described(near, place)

    def decoded(
        self, decoder: Callable[[Float[Tensor, "*n e"]], Float[Tensor, "*n c"]], x: Float[Tensor, "*n 3"]
    ) -> Float[Tensor, "*n c"]:
        """f(x): the decoder's answers for the 2^d cells around x, weighted."""
        described, weight = self.around(x)
        return (decoder(described) * weight[..., None]).sum(dim=-2)

    def around(self, x: Float[Tensor, "*n 3"]) -> tuple[Float[Tensor, "*n t e"], Float[Tensor, "*n t"]]:
        """[z_t, r_t, c] and w_t of the t = 2^d cells around x."""
        place = self._place(x)
        low = place.detach().floor()
        cells, weights = [], []
        for corner in itertools.product((0, 1), repeat=len(self.axes)):
            offset = place.new_tensor(corner)
            cell = low + offset
            cells.append(torch.stack([cell[..., k].clamp(0, n - 1) for k, n in enumerate(self.sizes)], dim=-1))
            weights.append((1 - (place - cell).abs()).prod(dim=-1))
        near = torch.stack(cells, dim=-2)
        return self._described(near, place[..., None, :].expand_as(near)), torch.stack(weights, dim=-1)

    def _place(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n d"]:
        """x in cells along the grid's axes."""
        matrix = self.inverse.to(x.device)
        return (x.double() @ matrix[:, :3].T + matrix[:, 3]).to(self.features.dtype)

    def _described(self, cell: Float[Tensor, "*n d"], place: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        flat = torch.zeros_like(cell[..., 0], dtype=torch.long)
        for k, n in enumerate(self.sizes):
            flat = flat * n + cell[..., k].long()
        parts = [self.features[flat], place - cell]
        if self.cell is not None:
            parts.append(self.cell.expand_as(cell))
        return torch.cat(parts, dim=-1)
