"""Derivatives of fields with respect to world coordinates.

Fields that carry derivatives along (`fields.jets`) give Jacobians, Laplacians and Hessians in one pass. All else, and
the gradient of a scalar, where a reverse pass does less work, is automatic differentiation.

Notation: f maps world points x (n points, w columns: x, y, z in mm, then further axes) to values (n, c), every point
for itself; `axes` are the columns of x to differentiate by, k of them. With the three spatial columns, the default, a
gradient is in value per mm and a Laplacian in value per mm^2, whatever scaling the field uses inside. A field on a
slice does not change along the slice's normal: its gradient lies in the slice, its Laplacian is the slice's own.

Every function returns the values, then the derivatives it needed on its way, then the one it is named after. Results
can be differentiated again, with respect to the parameters and to x; under `torch.no_grad()` they carry no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.fields.jets import HasJets, along_axes, carries
from scanfield.kernels.jvp import Streams

Function = Callable[[Tensor], Tensor]
SPATIAL_AXES = (0, 1, 2)


def value_and_gradient(
    f: Function, x: Float[Tensor, "*n w"], *, axes: Sequence[int] = SPATIAL_AXES
) -> tuple[Float[Tensor, "*n 1"], Float[Tensor, "*n k"]]:
    """f(x) and grad f(x) of a scalar field.

    Raises:
        ValueError: the field has several channels (use `jacobian`).
    """
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        x = _tracked(x)
        value = f(x)
        if value.shape[-1] != 1:
            raise ValueError(f"a gradient needs one channel, the field has {value.shape[-1]}: use jacobian")
        gradient = _by(value[..., 0], x, axes, record)
    return (value, gradient) if record else (value.detach(), gradient.detach())


def jacobian(
    f: Function, x: Float[Tensor, "*n w"], *, axes: Sequence[int] = SPATIAL_AXES
) -> tuple[Float[Tensor, "*n c"], Float[Tensor, "*n c k"]]:
    """f(x) and J with J[..., i, j] = d f_i / d x_j."""
    if carries(f, 1):
        value, first, _ = _streams(f, x, axes, Streams(len(axes)))
        return value, first
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        x = _tracked(x)
        value = f(x)
        rows = [_by(value[..., i], x, axes, record, keep=True) for i in range(value.shape[-1])]
        matrix = torch.stack(rows, dim=-2)
    return (value, matrix) if record else (value.detach(), matrix.detach())


def divergence(
    f: Function, x: Float[Tensor, "*n w"], *, axes: Sequence[int] = SPATIAL_AXES
) -> tuple[Float[Tensor, "*n c"], Float[Tensor, "*n"]]:
    """f(x) and div f(x) = sum_i d f_i / d x_i of a field with as many channels as `axes`."""
    value, matrix = jacobian(f, x, axes=axes)
    if matrix.shape[-2] != matrix.shape[-1]:
        raise ValueError(f"a divergence needs one channel per axis, got {matrix.shape[-2]} for {matrix.shape[-1]} axes")
    return value, matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def laplacian(
    f: Function, x: Float[Tensor, "*n w"], *, axes: Sequence[int] = SPATIAL_AXES
) -> tuple[Float[Tensor, "*n c"], Float[Tensor, "*n c k"], Float[Tensor, "*n c"]]:
    """f(x), its Jacobian, and for every channel the sum of second derivatives along `axes`."""
    if carries(f, 2):
        pairs = tuple((j, j) for j in range(len(axes)))
        value, first, second = _streams(f, x, axes, Streams(len(axes), pairs))
        return value, first, second.sum(-1)
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        x = _tracked(x)
        value, first = jacobian(f, x, axes=axes)
        parts = []
        for i in range(value.shape[-1]):
            diagonal = [_by(first[..., i, j], x, [axis], record, keep=True) for j, axis in enumerate(axes)]
            parts.append(torch.cat(diagonal, dim=-1).sum(-1))
        total = torch.stack(parts, dim=-1)
    return (value, first, total) if record else (value.detach(), first.detach(), total.detach())


def hessian(
    f: Function, x: Float[Tensor, "*n w"], *, axes: Sequence[int] = SPATIAL_AXES
) -> tuple[Float[Tensor, "*n c"], Float[Tensor, "*n c k"], Float[Tensor, "*n c k k"]]:
    """f(x), its Jacobian, and for every channel the symmetric matrix of second derivatives."""
    if carries(f, 2):
        streams = Streams.hessian(len(axes))
        value, first, second = _streams(f, x, axes, streams)
        where = {pair: m for m, pair in enumerate(streams.pairs)}
        order = [where[min(i, j), max(i, j)] for i in range(len(axes)) for j in range(len(axes))]
        return value, first, second[..., order].unflatten(-1, (len(axes), len(axes)))
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        x = _tracked(x)
        value, first = jacobian(f, x, axes=axes)
        channels = []
        for i in range(value.shape[-1]):
            rows = [_by(first[..., i, j], x, axes, record, keep=True) for j in range(len(axes))]
            channels.append(torch.stack(rows, dim=-2))
        matrix = torch.stack(channels, dim=-3)
    return (value, first, matrix) if record else (value.detach(), first.detach(), matrix.detach())


def determinant(matrix: Float[Tensor, "*n k k"]) -> Float[Tensor, "*n"]:
    """Determinants of 1x1, 2x2 or 3x3 matrices, written out: smooth and twice differentiable also where singular."""
    if matrix.shape[-1] != matrix.shape[-2] or not 1 <= matrix.shape[-1] <= 3:
        raise ValueError(f"expected 1x1, 2x2 or 3x3 matrices, got {tuple(matrix.shape[-2:])}")
    rows = matrix.unbind(-2)
    if len(rows) == 3:
        return (rows[0] * torch.linalg.cross(rows[1], rows[2])).sum(-1)
    if len(rows) == 2:
        return rows[0][..., 0] * rows[1][..., 1] - rows[0][..., 1] * rows[1][..., 0]
    return matrix[..., 0, 0]


def _streams(f: HasJets, x: Tensor, axes: Sequence[int], streams: Streams) -> tuple[Tensor, Tensor, Tensor]:
    """f(x) (*n, c), its first derivatives (*n, c, k) and its second ones (*n, c, m)."""
    flat = x.reshape(-1, x.shape[-1])
    out = f.jets(along_axes(flat, axes, streams), streams).unflatten(1, x.shape[:-1])
    value, first, second = out.split([1, streams.first, len(streams.pairs)])
    return value[0], first.movedim(0, -1), second.movedim(0, -1)


def _tracked(x: Tensor) -> Tensor:
    """x itself where it is part of a graph already (learned poses, warps), else a copy to differentiate by."""
    return x if x.requires_grad else x.detach().requires_grad_()


def _by(values: Tensor, x: Tensor, axes: Sequence[int], record: bool, *, keep: bool = False) -> Tensor:
    """d values / d x[..., axes] point by point: the points are independent, so one backward pass of the sum does."""
    if not values.requires_grad:
        return x.new_zeros((*values.shape, len(axes)))
    (full,) = torch.autograd.grad(
        values.sum(), x, create_graph=record, retain_graph=record or keep, materialize_grads=True
    )
    return full[..., list(axes)]
