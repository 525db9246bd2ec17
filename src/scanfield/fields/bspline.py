"""Uniform cubic B-splines: the classical free-form field, behind the same interface as a network.

Notation: g in [0, n]^d are lattice coordinates, one per cell; B(s) the cubic B-spline with support (-2, 2); c_i the
coefficients, i in {-1 .. n + 1} along every axis:

    f(g) = sum_i c_i B(g_1 - i_1) ... B(g_d - i_d)

f is twice continuously differentiable inside the box. Beyond it f is constant along the axis that left it. Halving the
cells changes nothing about f: B(s) = (B(2s + 2) + 4 B(2s + 1) + 6 B(2s) + 4 B(2s - 1) + B(2s - 2)) / 8, which makes a
multiresolution scheme of fitting, `refined`, and fitting on (Forsey & Bartels 1988; free-form deformations: Rueckert
et al. 1999).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.errors import InputError
from scanfield.fields.encodings.frequency import Identity
from scanfield.fields.field import Field
from scanfield.kernels.jvp import Streams
from scanfield.space.domain import Domain

TAPS = 4
# Powers 1, t, t^2, t^3 (rows) of the four basis functions that reach into a cell (columns), t in [0, 1] within it.
BASIS = torch.tensor([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]], dtype=torch.float64) / 6


class BSpline(nn.Module):
    """A cubic B-spline of unit coordinates, zero at first; the `network` of a `Field`.

    Args:
        cells: number of cells along each axis.
        border: the lattice fills [-border_k, border_k] along axis k.
        channels: number of values.

    Attributes:
        coefficients: (cells_0 + 3, ..., cells_{d-1} + 3, channels).

    Raises:
        ValueError: not one positive number of cells and one positive border for each axis.
    """

    border: Tensor

    def __init__(self, cells: Sequence[int], border: Sequence[float], channels: int) -> None:
        super().__init__()
        self.cells = tuple(int(n) for n in cells)
        if not self.cells or len(border) != len(self.cells) or min(self.cells) < 1 or min(border) <= 0 or channels < 1:
            raise ValueError(f"a B-spline cannot have {cells} cells within {border} and {channels} channels")
        self.register_buffer("border", torch.tensor(border, dtype=torch.float32), persistent=False)
        self.coefficients = nn.Parameter(torch.zeros(*(n + 3 for n in self.cells), channels))

    def forward(self, u: Float[Tensor, "*n d"]) -> Float[Tensor, "*n c"]:
        flat = u.reshape(-1, u.shape[-1])
        value = self._evaluate(self._place(flat), order=0)[:, 0]
        return value.reshape(*u.shape[:-1], self.coefficients.shape[-1])

    jet_order = 2

    def jets(self, u: Float[Tensor, "s n d"], streams: Streams) -> Float[Tensor, "s n c"]:
        """See `fields.jets`: the chain rule on the spline's own gradient and Hessian."""
        d, k = len(self.cells), streams.first
        g = self._place(u[0])
        # Beyond the box the lattice coordinate stands still.
        rate = self._per_unit(u) * ((u[0] >= -self._limit(u)) & (u[0] <= self._limit(u)))
        first, second = u[1 : 1 + k] * rate, u[1 + k :] * rate
        terms = self._evaluate(g, order=2 if streams.pairs else 1)
        slope = terms[:, 1 : 1 + d]
        out = [terms[None, :, 0], torch.einsum("nac,kna->knc", slope, first)]
        if streams.pairs:
            left, right = first[[i for i, _ in streams.pairs]], first[[j for _, j in streams.pairs]]
            curve = terms[:, 1 + d :]
            mixed = [
                left[..., a] * right[..., b] if a == b else left[..., a] * right[..., b] + left[..., b] * right[..., a]
                for a, b in itertools.combinations_with_replacement(range(d), 2)
            ]
            out.append(
                torch.einsum("nqc,mnq->mnc", curve, torch.stack(mixed, dim=-1))
                + torch.einsum("nac,mna->mnc", slope, second)
            )
        return torch.cat(out)

    def refined(self) -> BSpline:
        """The same function on cells of half the size."""
        c = self.coefficients.detach()
        for axis in range(len(self.cells)):
            c = c.movedim(axis, 0)
            between = (c[:-1] + c[1:]) / 2
            at = (c[:-2] + 6 * c[1:-1] + c[2:]) / 8
            finer = c.new_empty(len(between) + len(at), *c.shape[1:])
            finer[0::2], finer[1::2] = between, at
            c = finer.movedim(0, axis)
        fine = BSpline([2 * n for n in self.cells], self.border.tolist(), c.shape[-1]).to(c)
        with torch.no_grad():
            fine.coefficients.copy_(c)
        return fine

    def _limit(self, u: Tensor) -> Tensor:
        return self.border.to(u.dtype)

    def _per_unit(self, u: Tensor) -> Tensor:
        """Cells per unit coordinate."""
        return u.new_tensor(self.cells) / (2 * self._limit(u))

    def _place(self, u: Tensor) -> Tensor:
        """Lattice coordinates of points, those outside moved to the border."""
        limit = self._limit(u)
        return (torch.clamp(u, -limit, limit) + limit) * self._per_unit(u)

    def _evaluate(self, g: Float[Tensor, "n d"], order: int) -> Float[Tensor, "n terms c"]:
        """f(g); for order 1 also its derivatives along each axis; for order 2 also those along axes a <= b."""
        d = len(self.cells)
        last = torch.tensor(self.cells, device=g.device) - 1
        cell = torch.minimum(g.detach().floor().long().clamp(min=0), last)
        t = g - cell
        power = torch.stack([torch.ones_like(t), t, t * t, t * t * t], dim=-1)
        basis = BASIS.to(g)
        # Weights of the taps along each axis, (n, d, 4), and their derivatives in t.
        weights = [power @ basis]
        if order >= 1:
            weights.append(power[..., :3] @ (basis[1:] * basis.new_tensor([[1], [2], [3]])))
        if order >= 2:
            weights.append(power[..., :2] @ (basis[2:] * basis.new_tensor([[2], [6]])))

        which = [(0,) * d]
        for count in range(1, order + 1):
            for axes in itertools.combinations_with_replacement(range(d), count):
                which.append(tuple(axes.count(a) for a in range(d)))
        rows = []
        for orders in which:
            row = weights[orders[0]][:, 0]
            for axis in range(1, d):
                row = (row[:, :, None] * weights[orders[axis]][:, axis, None, :]).flatten(1)
            rows.append(row)
        return torch.stack(rows, dim=1) @ self._taps(cell)

    def _taps(self, cell: Tensor) -> Tensor:
        """(n, 4^d, c): the coefficients that reach into each point's cell."""
        index = cell.new_zeros(len(cell), 1)
        for axis, size in enumerate(self.coefficients.shape[:-1]):
            along = cell[:, axis, None] + torch.arange(TAPS, device=cell.device)
            index = (index[:, :, None] * size + along[:, None, :]).flatten(1)
        table = self.coefficients.flatten(0, -2)
        return nn.functional.embedding(index, table)


def bspline_field(domain: Domain, spacing: float | Sequence[float], channels: int, head: nn.Module) -> Field:
    """A `Field` that is a cubic B-spline over a domain.

    Args:
        spacing: of the control points, at most: whole cells fill the box. In the axes' units (mm), one for all axes or
            one for each.
        channels: values per point, before the head (two for `VectorHead` on a slice, three in a volume).
        head: spline values -> physical units.

    Raises:
        InputError: a spacing that is not positive, or so small that there are more than 2^27 coefficients.
    """
    extent = np.asarray(domain.extent)
    wanted = np.asarray(spacing, dtype=np.float64)
    if wanted.shape not in ((), extent.shape) or not np.isfinite(wanted).all() or (wanted <= 0).any():
        raise InputError(f"a B-spline needs one positive spacing, or one for each of {domain.dims} axes, got {spacing}")
    cells = np.maximum(1, np.ceil(extent / wanted - 1e-6))
    if math.prod(float(n) + 3 for n in cells) * channels > 2**27:
        raise InputError(
            f"a B-spline of {' x '.join(f'{n:.6g}' for n in cells)} cells is too large", fix="choose a larger spacing"
        )
    border = extent / 2 / domain.half_scale()
    return Field(domain, Identity(domain.dims), BSpline([int(n) for n in cells], border.tolist(), channels), head)


def refined(field: Field) -> Field:
    """The same field of `bspline_field` at half the spacing, with the same head.

    Raises:
        ValueError: the field is no B-spline.
    """
    if not isinstance(field.network, BSpline):
        raise ValueError(f"only a B-spline can be refined, not a {type(field.network).__name__}")
    return Field(field.domain, field.encoding, field.network.refined(), field.head)
