"""How alike two images are, on points or lattices: what registration drives.

A *similarity* (`ncc`, `local_ncc`, `mutual_information`) grows with agreement: a loss is 1 - ncc(p, y). A *distance*
(`ngf_distance`, `mind_distance`) falls. All are means: a weight in front does not depend on the number of points.

Notation: p and y intensities of two images at the same places; w weights of the places (a mask, the overlap of the two
images), 1 without; <.> the mean weighted by w. A lattice has three axes (a slice has one voxel along the third) behind
any number of batch axes; its voxel axes are orthogonal. Images that say nothing (constant, or no place with weight) are
worth a defined value and have a zero gradient, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid

_NARROWEST = 3  # voxels: a window of one voxel has no variance
_MIND_REACH = 2.0  # in sigmas: with sigma = 0.5 voxel the 3 x 3 x 3 patch of the paper
_MIND_BOUNDS = (1e-3, 1e3)  # of the mean variance: the limits the authors' program puts on the local one


def ncc(p: Float[Tensor, "*n"], y: Float[Tensor, "*n"], weight: Float[Tensor, "*n"] | None = None) -> Float[Tensor, ""]:
    """Normalised cross-correlation over all given points: <(p - <p>) (y - <y>)> / sqrt(var p var y), in [-1, 1].

    It does not change with affine changes of either intensity. 0 where an image is constant.
    """
    eps = torch.finfo(p.dtype).eps
    return _mean(_standardised(p, weight, eps) * _standardised(y, weight, eps), weight)


def window_voxels(window_mm: float, grid: Grid) -> tuple[int, int, int]:
    """The window of `local_ncc` on `grid`: per axis the odd number of voxels nearest to `window_mm`, at least 3.

    Along an axis of one voxel it is 1.

    Raises:
        InputError: the window is not a positive number.
    """
    if not 0 < window_mm < float("inf"):
        raise InputError(f"the window must be a positive number of millimetres, got {window_mm}")
    a, b, c = (
        1 if n == 1 else max(_NARROWEST, 2 * round((window_mm / spacing - 1) / 2) + 1)
        for n, spacing in zip(grid.shape, grid.spacing_mm, strict=True)
    )
    return a, b, c


def local_ncc(
    p: Float[Tensor, "*b n0 n1 n2"],
    y: Float[Tensor, "*b n0 n1 n2"],
    window: tuple[int, int, int],
    weight: Float[Tensor, "*b n0 n1 n2"] | None = None,
    *,
    squared: bool = True,
    floor: float = 1e-4,
) -> Float[Tensor, ""]:
    """Normalised cross-correlation in a box window around every voxel, averaged over the voxels by their weight.

        C(x)^2 = cov^2 / ((var p + e) (var y + e)),   moments over the window at x, e = floor x variance of the lattice

    The square, of Avants et al., Med. Image Anal. 12:26-41 (2008), does not see the sign of the contrast, as is
    usual in deformable registration; not squared it does. A smooth bias field changes neither much. At the border, and
    where the weight is zero, the window holds the places that are left. Constant windows are worth 0.

    Args:
        window: voxels per axis, odd (`window_voxels` gives it for a width in mm).
        floor: windows with a variance below this fraction of the whole lattice's (all batches together) count little.

    Raises:
        ValueError: the window is not odd or not positive.
    """
    if any(size < 1 or size % 2 == 0 for size in window):
        raise ValueError(f"a window has an odd number of voxels along every axis, got {window}")
    dtype, eps = p.dtype, torch.finfo(p.dtype).eps
    weight = None if weight is None else weight.double()
    # Moments about the lattice's mean cancel in flat windows: single precision would see structure there.
    p, y = _standardised(p.double(), weight, eps), _standardised(y.double(), weight, eps)
    kernels = [
        _band(n, torch.ones(size, dtype=p.dtype, device=p.device)) for n, size in zip(p.shape[-3:], window, strict=True)
    ]
    moments = torch.stack([p, y, p * p, y * y, p * y])
    if weight is None:
        rows = [kernel.sum(dim=1) for kernel in kernels]
        count = rows[0][:, None, None] * rows[1][:, None] * rows[2]
    else:
        moments, count = moments * weight, _filtered(weight, kernels)
    count = torch.where(count > 0, count, torch.ones_like(count))
    mean_p, mean_y, pp, yy, py = _filtered(moments, kernels) / count
    covariance = py - mean_p * mean_y
    product = ((pp - mean_p**2).clamp(min=0) + floor) * ((yy - mean_y**2).clamp(min=0) + floor)
    return _mean(covariance**2 / product if squared else covariance * product.rsqrt(), weight).to(dtype)


def mutual_information(
    p: Float[Tensor, "*n"],
    y: Float[Tensor, "*n"],
    weight: Float[Tensor, "*n"] | None = None,
    *,
    bins: int = 32,
    range_p: tuple[float, float] | None = None,
    range_y: tuple[float, float] | None = None,
) -> Float[Tensor, ""]:
    """Mutual information of the intensities, in nats; 0 for independent or constant images.

        P(a, b) = < B(a - s(p)) B(b - s(y)) >,    MI = sum P log P - sum P_a log P_a - sum P_b log P_b

    with B the cubic B-spline as Parzen window on both sides and s the scale from intensities to bins: Thevenaz and
    Unser, IEEE TIP 9:2083-2099 (2000). Mattes et al., IEEE TMI 22:120-128 (2003), take a box window on the fixed side.
    Memory is points x bins.

    Args:
        bins: along either intensity, at least 4.
        range_p, range_y: lowest and highest intensity; values beyond count as the nearest of them. By default those of
            the given points: over many steps with random points a fixed range makes a steadier loss.

    Raises:
        ValueError: fewer than 4 bins.
    """
    if bins < 4:
        raise ValueError(f"a cubic Parzen window needs at least 4 bins, got {bins}")
    share = torch.ones_like(p) if weight is None else weight
    share = (share / share.sum().clamp(min=torch.finfo(p.dtype).tiny)).reshape(-1, 1)
    a, b = _parzen(p.reshape(-1), bins, range_p), _parzen(y.reshape(-1), bins, range_y)
    joint = (a * share).T @ b
    return _negentropy(joint) - _negentropy(joint.sum(dim=1)) - _negentropy(joint.sum(dim=0))


def lattice_gradient(
    values: Float[Tensor, "*b n0 n1 n2"], spacing_mm: tuple[float, float, float]
) -> Float[Tensor, "*b n0 n1 n2 3"]:
    """Gradient along the voxel axes, per mm: central differences, one-sided at the border, 0 along one voxel."""
    parts = []
    for dim, spacing in zip((-3, -2, -1), spacing_mm, strict=True):
        if values.shape[dim] == 1:
            parts.append(torch.zeros_like(values))
        else:
            (part,) = torch.gradient(values, spacing=spacing, dim=dim)
            parts.append(part)
    return torch.stack(parts, dim=-1)


def edge_parameter(
    gradient: Float[Tensor, "*n k"], noise: float = 1.0, weight: Float[Tensor, "*n"] | None = None
) -> Float[Tensor, ""]:
    """The gradient below which an edge is taken for noise, eta = noise <|grad I|>, per mm and without a gradient.

    As in Haber and Modersitzki (2006); `noise` is relative to the mean gradient, so eta follows the image's unit.
    """
    return noise * _mean(gradient.detach().norm(dim=-1), weight)


def ngf_distance(
    gradient_p: Float[Tensor, "*n k"],
    gradient_y: Float[Tensor, "*n k"],
    edge_p: Float[Tensor, ""],
    edge_y: Float[Tensor, ""],
    weight: Float[Tensor, "*n"] | None = None,
) -> Float[Tensor, ""]:
    """Distance of normalised gradient fields, in [0, 1]: edges should be parallel, whatever their contrast.

        < 1 - (n_p . n_y)^2 >,   n = grad I / sqrt(|grad I|^2 + eta^2)

    Haber and Modersitzki, MICCAI 2006, LNCS 4191:726-733. Constant images are 1 apart.

    Args:
        gradient_p, gradient_y: of both images in one orthonormal frame: world gradients at any points, or those of
            `lattice_gradient` on one lattice.
        edge_p, edge_y: eta of either image, in the unit of its gradient (`edge_parameter`).
    """
    product = (_unit_or_less(gradient_p, edge_p) * _unit_or_less(gradient_y, edge_y)).sum(dim=-1)
    return _mean(1 - product**2, weight)


def mind(values: Float[Tensor, "*b n0 n1 n2"], *, sigma: float = 0.5) -> Float[Tensor, "r *b n0 n1 n2"]:
    """Modality independent neighbourhood descriptor over the nearest neighbours r: 6 in a volume, 4 in a slice.

        MIND(x, r) = exp(-(D(x, r) - min_r D(x, r)) / V(x)),   D(x, r) = G_sigma * (I(x) - I(x + r))^2,   V = mean_r D

    Heinrich et al., Med. Image Anal. 16:1423-1435 (2012): G is a Gaussian patch of `sigma` voxels, V the local
    variance, limited to 0.001 to 1000 times its mean. It does not change with affine changes of the intensity, the sign
    included. At the border the image is continued by its outermost voxels; distances there mean little. Neighbours are
    voxels: lattices should be close to isotropic. A constant image has 1 everywhere.
    """
    axes = [dim for dim in (-3, -2, -1) if values.shape[dim] > 1]
    kernels = [_smoothing(n, sigma, values) for n in values.shape[-3:]]
    squares = torch.stack([(values - _neighbour(values, dim, step)) ** 2 for dim in axes for step in (-1, 1)])
    distance = _filtered(squares, kernels)
    variance = distance.mean(dim=0)
    typical = variance.detach().mean()
    variance = variance.clamp(min=_MIND_BOUNDS[0] * typical, max=_MIND_BOUNDS[1] * typical)
    variance = torch.where(variance > 0, variance, torch.ones_like(variance))
    return (-(distance - distance.amin(dim=0)) / variance).exp()


def mind_distance(
    p: Float[Tensor, "*b n0 n1 n2"],
    y: Float[Tensor, "*b n0 n1 n2"],
    weight: Float[Tensor, "*b n0 n1 n2"] | None = None,
    *,
    sigma: float = 0.5,
) -> Float[Tensor, ""]:
    """Mean absolute difference of the descriptors `mind` of two images, in [0, 1] (Heinrich et al. 2012).

    Voxels whose patches reach beyond the lattice do not count.

    Raises:
        ValueError: the lattice has no other voxels.
    """
    difference = (mind(p, sigma=sigma) - mind(y, sigma=sigma)).abs().mean(dim=0)
    reach = 1 + _radius(sigma)
    for dim in (-3, -2, -1):
        n = p.shape[dim]
        if n == 1:
            continue
        if n <= 2 * reach:
            raise ValueError(f"a lattice of {n} voxels is too small for MIND patches that reach {reach} voxels")
        difference = difference.narrow(dim, reach, n - 2 * reach)
        weight = None if weight is None else weight.narrow(dim, reach, n - 2 * reach)
    return _mean(difference, weight)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted mean over everything; 0 without any weight."""
    if weight is None:
        return values.mean()
    return (values * weight).sum() / weight.sum().clamp(min=torch.finfo(values.dtype).tiny)


def _standardised(values: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Zero mean and unit variance under the weights; 0 for an image that is constant up to rounding by `eps`."""
    centred = values - _mean(values, weight)
    variance = _mean(centred**2, weight)
    rounding = (16 * eps) ** 2 * _mean(values.detach() ** 2, weight)
    return centred * torch.where(variance > rounding, variance, torch.inf).rsqrt()


def _band(n: int, kernel: Float[Tensor, " k"]) -> Float[Tensor, "n n"]:
    """The matrix that filters n values with a symmetric odd kernel, zero beyond the ends."""
    reach = len(kernel) // 2
    place = torch.arange(n, device=kernel.device)
    offset = place - place[:, None]
    return kernel[(offset + reach).clamp(0, 2 * reach)] * (offset.abs() <= reach)


def _filtered(values: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Separable filter along the last three axes. Matrix products beat pooling and running sums at patch sizes."""
    k0, k1, k2 = kernels
    values = k1 @ (values @ k2.T) if len(k2) > 1 else k1 @ values * k2
    if len(k0) == 1:
        return values * k0
    return (k0 @ values.flatten(-2)).unflatten(-1, values.shape[-2:])


def _smoothing(n: int, sigma: float, like: Tensor) -> Float[Tensor, "n n"]:
    """A Gaussian as a matrix; its rows sum to one also at the ends."""
    offset = torch.arange(-_radius(sigma), _radius(sigma) + 1, dtype=like.dtype, device=like.device)
    matrix = _band(n, (-(offset**2) / (2 * sigma**2)).exp())
    return matrix / matrix.sum(dim=1, keepdim=True)


def _radius(sigma: float) -> int:
    if sigma <= 0:
        raise ValueError(f"sigma must be a positive number of voxels, got {sigma}")
    return max(1, round(_MIND_REACH * sigma))


def _neighbour(values: Tensor, dim: int, step: int) -> Tensor:
    """The values one voxel further along an axis; the outermost voxel is its own neighbour."""
    n = values.shape[dim]
    return values.index_select(dim, (torch.arange(n, device=values.device) + step).clamp(0, n - 1))


def _parzen(values: Float[Tensor, " n"], bins: int, limits: tuple[float, float] | None) -> Float[Tensor, "n bins"]:
    """The cubic B-spline window of every value at every bin; each row sums to one."""
    if limits is None:
        low, high = values.detach().aminmax()
    else:
        low, high = (torch.tensor(limit, dtype=values.dtype, device=values.device) for limit in limits)
    width = torch.where(high > low, high - low, torch.inf)
    place = 1 + ((values - low) / width).clamp(0, 1) * (bins - 3)  # the window of the extremes still fits
    first = place.detach().floor().clamp(max=bins - 3)
    t = (place - first)[:, None]
    u = 1 - t
    window = torch.cat([u * u * u, 4 - 3 * t * t * (1 + u), 4 - 3 * u * u * (1 + t), t * t * t], dim=1) / 6
    index = first.long()[:, None] + torch.arange(-1, 3, device=values.device)
    return values.new_zeros(len(values), bins).scatter(1, index, window)


def _negentropy(share: Tensor) -> Tensor:
    """sum P log P; the logarithm is bounded, so that empty bins have a finite gradient."""
    return (share * share.clamp(min=torch.finfo(share.dtype).tiny).log()).sum()


def _unit_or_less(gradient: Tensor, edge: Tensor) -> Tensor:
    """grad / sqrt(|grad|^2 + edge^2), and 0 where the edge parameter is 0: a constant image."""
    scaled = gradient / torch.where(edge > 0, edge, torch.inf)
    return scaled * (1 + scaled.square().sum(dim=-1, keepdim=True)).rsqrt()
