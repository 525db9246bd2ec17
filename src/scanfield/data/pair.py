"""Two images of one body, to be registered: what can be known to be wrong with them before anything is fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from scanfield.data.guard import located
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.space.grid import Grid

LEAST_OVERLAP = 0.05  # of the fixed image
LARGEST_RATIO = 100.0  # of the two images' extents: more is another unit of length
LARGEST_TILT_DEG = 5.0  # between two slices
_PROBES = 24  # along each axis


@dataclass(frozen=True, eq=False)
class Pair:
    """A fixed and a moving image. The map that is sought takes points of the fixed image to the moving one.

    Args:
        fixed: of one channel; its mask says where the map matters.
        moving: of one channel, on any grid; its mask says where it shows something.

    Raises:
        InputError: an image has several channels or is constant where its mask is, one is a slice and the other a
            volume, two slices are not parallel, the images' sizes differ by a factor that only another unit of length
            explains, or they do not overlap in the world.
    """

    fixed: Scan
    moving: Scan

    kind = "image-pair"

    def __post_init__(self) -> None:
        for scan, name in ((self.fixed, "fixed"), (self.moving, "moving")):
            _check_image(scan, name)
        _check_dimensions(self.fixed, self.moving)
        _check_extents(self.fixed, self.moving)
        _check_overlap(self.fixed, self.moving)

    @property
    def dims(self) -> int:
        """2 for slices, 3 for volumes."""
        return _dims(self.fixed.grid)


def with_mask(image: Scan, mask: Scan, name: str = "image") -> Scan:
    """The image with a mask that was read as an image of its own: the voxels that are not zero.

    Raises:
        InputError: the mask lies on another grid, has several channels, or is empty.
    """
    with located(mask.source or "mask"):
        if mask.values.ndim != 3:
            raise InputError("a mask has one channel", fix="extract one channel")
        image.grid.check_same(
            mask.grid, mine=f"{name} image", theirs="mask", fix="give a mask on the grid of its image"
        )
        return replace(image, mask=mask.values != 0)


def windowed(image: Scan, low: float, high: float) -> Scan:
    """The image with intensities below `low` raised to it and above `high` lowered to it.

    Raises:
        InputError: the window is empty.
    """
    if not low < high:
        raise InputError(f"a window needs low < high, got {low:g},{high:g}", fix="--window LOW,HIGH")
    return replace(image, values=image.values.float().clamp(low, high))


def _dims(grid: Grid) -> int:
    return sum(n > 1 for n in grid.shape)


def _check_image(scan: Scan, name: str) -> None:
    if scan.values.ndim != 3:
        raise InputError(
            f"the {name} image has {scan.values.shape[-1]} channels or time points; registration takes images of one",
            where=scan.source,
            fix="extract one of them",
        )
    if _dims(scan.grid) < 2:
        raise InputError(
            f"the {name} image has shape {scan.grid.shape}; a slice or a volume is needed", where=scan.source
        )
    inside = scan.values if scan.mask is None else scan.values[scan.mask]
    if bool(inside.min() == inside.max()):
        where = "" if scan.mask is None else " inside its mask"
        raise InputError(
            f"the {name} image is constant{where} ({float(inside.min()):g}): there is nothing to align",
            where=scan.source,
            fix="check the file, the window and the mask",
        )


def _check_dimensions(fixed: Scan, moving: Scan) -> None:
    where = f"{fixed.source}, {moving.source}"
    if _dims(fixed.grid) != _dims(moving.grid):
        names = {2: "a slice", 3: "a volume"}
        raise InputError(
            f"the fixed image is {names[_dims(fixed.grid)]}, the moving image {names[_dims(moving.grid)]}",
            where=where,
            fix="give two volumes or two slices",
        )
    if _dims(fixed.grid) == 2:
        normals = [scan.grid.directions[:, scan.grid.shape.index(1)] for scan in (fixed, moving)]
        tilt = float(np.degrees(np.arccos(min(1.0, abs(float(normals[0] @ normals[1]))))))
        if tilt > LARGEST_TILT_DEG:
            raise InputError(
                f"the two slices are not parallel: there are {tilt:.0f} degrees between them",
                where=where,
                fix="give slices of one orientation, or volumes",
            )


def _check_extents(fixed: Scan, moving: Scan) -> None:
    a, b = (float(np.linalg.norm(np.ptp(scan.grid.corners_mm(), axis=0))) for scan in (fixed, moving))
    if max(a, b) > LARGEST_RATIO * min(a, b):
        raise InputError(
            f"the fixed image measures {a:.3g} mm across, the moving image {b:.3g} mm: one of them cannot be in mm",
            where=f"{fixed.source}, {moving.source}",
            fix="check the voxel sizes in both files (metres or micrometres taken for millimetres?)",
        )


def _check_overlap(fixed: Scan, moving: Scan) -> None:
    """At least a part of the fixed image, and of its mask, must lie in the moving image's box."""
    index = [torch.linspace(-0.5, n - 0.5, _PROBES) if n > 1 else torch.zeros(1) for n in fixed.grid.shape]
    parts = {"fixed image": torch.cartesian_prod(*index).double()}
    if fixed.mask is not None:
        voxels = fixed.mask.nonzero()
        parts["fixed image's mask"] = voxels[:: max(1, len(voxels) // _PROBES**3)].double()
    affine = torch.tensor(fixed.grid.affine)
    for name, place in parts.items():
        share = float(_inside(moving.grid, place @ affine[:3, :3].T + affine[:3, 3]).double().mean())
        if share < LEAST_OVERLAP:
            apart = float(np.linalg.norm(fixed.grid.centre_mm - moving.grid.centre_mm))
            raise InputError(
                f"{100 * share:.0f} % of the {name} lies in the moving image; their centres are {apart:.0f} mm apart",
                where=f"{fixed.source}, {moving.source}",
                fix="check both files' positions (affine, origin), or bring the images together first",
            )


def _inside(grid: Grid, x: torch.Tensor) -> torch.Tensor:
    """Which points lie in a grid's box, along the axes on which it has more than one voxel."""
    place = grid.to_voxel(x)
    axes = [axis for axis, n in enumerate(grid.shape) if n > 1]
    size = torch.tensor([grid.shape[axis] for axis in axes])
    return ((place[:, axes] >= -0.5) & (place[:, axes] <= size - 0.5)).all(dim=-1)
