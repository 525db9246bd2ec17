"""What a registration does to points, images and labels, in either direction.

Notation: phi maps points of the fixed image to the moving image (mm), psi is its inverse. One direction, everywhere:

    points of the fixed image   -> phi(x) in the moving image       with psi: back
    images in the moving space  -> I(phi(x)) on the fixed grid      with psi: of the fixed space, on the moving grid

Maps are evaluated in pieces: memory does not grow with the grid beyond its own values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer, Num
from torch import Tensor, nn

from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields import calculus
from scanfield.fields.image import ImageField
from scanfield.fields.inverse import invert
from scanfield.fields.motion import LatticeDisplacement
from scanfield.methods import api
from scanfield.space.grid import Grid
from scanfield.tasks.result import Reconstruction

CHUNK = 2**16
TOLERANCE_MM = 0.01  # of the inverse
COARSE_POINTS = 20_000  # on which the inverse begins

Map = Callable[[Tensor], Tensor]


def mapping(result: Reconstruction) -> nn.Module:
    """phi of a result.

    Raises:
        InputError: the result's method does not register.
    """
    card = api.card(result.method)
    if card.task != "registration":
        raise InputError(
            f"'{result.method}' is a method for {card.task}: its result holds no map between two images",
            fix="give the RUN folder that `scanfield register` wrote",
        )
    phi: nn.Module = api.load(result.method).transform(result)
    return phi


def own_inverse(result: Reconstruction) -> nn.Module | None:
    """psi of a result, where its method knows it without searching point by point, else None."""
    own = vars(api.load(result.method)).get("inverse")
    return None if own is None else own(result)


def moving_grid(result: Reconstruction) -> Grid | None:
    """The grid of the moving image, where the result's file holds it."""
    facts = result.provenance.get("moving_grid")
    return None if facts is None else Grid.from_json(facts)


def inside(grid: Grid, x: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
    """Which points lie in a grid's box; a slice covers the points above and below it."""
    image = ImageField(torch.zeros(1).expand(grid.shape), grid)
    return image.inside(x)


def map_points(phi: Map, x: Float[Tensor, "n 3"], device: torch.device | str = "cpu") -> Float[Tensor, "n 3"]:
    """phi at points, in pieces, without gradients. Displacements are computed in single, added in x's precision."""
    parts = []
    with torch.no_grad():
        for part in x.split(CHUNK):
            near = part.to(device=device, dtype=torch.float32)
            parts.append(part + (phi(near) - near).to(part))
    return torch.cat(parts) if parts else x


def warped_image(
    phi: Map, values: Num[Tensor, "m0 m1 m2"], source: Grid, target: Grid, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "n0 n1 n2"], Bool[Tensor, "n0 n1 n2"]]:
    """`values` on `source`, read at phi(x) for the voxel centres x of `target`, linearly interpolated.

    Returns:
        The image, with the lowest of `values` (air, background) where phi(x) lies outside it; and where it does not.
    """
    image = ImageField(values, source).to(device)
    lowest = float(values.min())
    parts, insides = [], []
    with torch.no_grad():
        for start in range(0, target.size, CHUNK):
            y = phi(target.points(start, start + CHUNK, device=device))
            inside = image.inside(y)
            parts.append(torch.where(inside, image(y)[:, 0], lowest).cpu())
            insides.append(inside.cpu())
    return torch.cat(parts).reshape(target.shape), torch.cat(insides).reshape(target.shape)


def displacement_on(
    phi: nn.Module, grid: Grid, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "n0 n1 n2 3"], Float[Tensor, "n0 n1 n2"]]:
    """phi(x) - x in mm (RAS+) and det d phi / d x at the voxel centres x of a grid."""
    parts, determinants = [], []
    with torch.no_grad():
        for start in range(0, grid.size, CHUNK):
            x = grid.points(start, start + CHUNK, device=device)
            y, matrix = calculus.jacobian(phi, x)
            parts.append((y - x).cpu())
            determinants.append(calculus.determinant(matrix).cpu())
    return torch.cat(parts).reshape(*grid.shape, 3), torch.cat(determinants).reshape(grid.shape)


def determinants_at(phi: nn.Module, x: Float[Tensor, "n 3"], device: torch.device | str = "cpu") -> Float[Tensor, " n"]:
    """det d phi / d x at points."""
    with torch.no_grad():
        parts = [calculus.determinant(calculus.jacobian(phi, part.to(device))[1]).cpu() for part in x.split(CHUNK)]
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class InverseOnGrid:
    """psi on a grid.

    Args:
        displacement: psi(y) - y in mm (RAS+) at the voxel centres y.
        residual_mm: |phi(psi(y)) - y|.
    """

    displacement: Float[Tensor, "n0 n1 n2 3"]
    residual_mm: Float[Tensor, "n0 n1 n2"]

    @property
    def reached(self) -> float:
        """Share of the voxels whose residual is within `TOLERANCE_MM`; phi never comes near the others."""
        return float((self.residual_mm <= TOLERANCE_MM).double().mean())


def inverse_on(phi: nn.Module, grid: Grid, device: torch.device | str = "cpu", psi: Map | None = None) -> InverseOnGrid:
    """psi at the voxel centres of a grid.

    Args:
        psi: the inverse where it is known; by default `inverse_near`.
    """
    psi = inverse_near(phi, grid, device) if psi is None else psi
    parts, residuals = [], []
    with torch.no_grad():
        for start in range(0, grid.size, CHUNK):
            y = grid.points(start, start + CHUNK, device=device)
            x = psi(y)
            parts.append((x - y).cpu())
            residuals.append((phi(x) - y).norm(dim=-1).cpu())
    return InverseOnGrid(torch.cat(parts).reshape(*grid.shape, 3), torch.cat(residuals).reshape(grid.shape))


def solve_inverse(phi: nn.Module) -> Map:
    """psi, solved point by point from the point itself."""
    return lambda y: invert(phi, y, tolerance_mm=TOLERANCE_MM).x


def inverse_near(phi: nn.Module, grid: Grid, device: torch.device | str = "cpu") -> Map:
    """psi for points in the box of a grid: solved on a coarse lattice first, which is where all others begin."""
    axes = sum(n > 1 for n in grid.shape)
    factor = (grid.size / COARSE_POINTS) ** (1 / axes)
    if factor <= 1.5:
        return solve_inverse(phi)
    a, b, c = grid.spacing_mm
    coarse = grid.resampled((factor * a, factor * b, factor * c))
    y = coarse.points(device=device)
    shift = (invert(phi, y, tolerance_mm=TOLERANCE_MM).x - y).reshape(*coarse.shape, 3)
    near = LatticeDisplacement(shift, coarse, order=1).to(device)
    return lambda y: invert(phi, y, start=near(y), tolerance_mm=TOLERANCE_MM).x


def whole_numbers(labels: Scan) -> Integer[Tensor, "n0 n1 n2"]:
    """The values of a segmentation as integers, in the smallest type that NIfTI programs read everywhere.

    Raises:
        InputError: there are several channels, or values that are no whole numbers.
    """
    values = labels.values
    if values.ndim != 3:
        raise InputError("labels have one channel", where=labels.source, fix="merge the channels into one")
    if values.is_floating_point() and bool((values != values.round()).any()):
        raise InputError(
            "labels are whole numbers, this image has others", where=labels.source, fix="leave out --labels"
        )
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high <= 255:
        return values.to(torch.uint8)
    return values.to(torch.int16 if low >= -(2**15) and high < 2**15 else torch.int32)
