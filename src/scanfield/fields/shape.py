"""Shapes as fields: masks, signed distances, oriented points and meshes, all in world millimetres.

Convention: a signed distance is in mm, negative inside, zero on the surface, positive outside; normals point outwards,
along its gradient. What lies beyond an image counts as outside the object, so every surface of a mask is closed.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.sparse import coo_array
from torch import Tensor, nn

from scanfield.data.scan import Scan
from scanfield.errors import InputError, ScanfieldError
from scanfield.fields.field import read_out
from scanfield.space.grid import Grid
from scanfield.space.mesh import Mesh

_TAUBIN_LAMBDA, _TAUBIN_MU = 0.5, -0.53  # the filter passes what is flatter than 1 / lambda + 1 / mu = 0.11
_FURTHEST_VOXELS = 0.4


def object_mask(image: Scan) -> Bool[Tensor, "n0 n1 n2"]:
    """The object of a mask stored as an image: the larger of its two values.

    Raises:
        InputError: the image is a slice, has channels, or has more or fewer than two values.
    """
    levels = torch.unique(image.values)
    if image.values.ndim != 3 or min(image.grid.shape) < 2 or len(levels) != 2:
        raise InputError(
            f"a surface needs a 3-D mask of two values, got {len(levels)} different values on "
            f"{'x'.join(map(str, image.values.shape))} voxels",
            where=image.source,
            fix="write the object of interest as a mask of its own: 1 inside, 0 outside",
        )
    return image.values == levels[1]


def signed_distance(mask: Bool[Tensor, "n0 n1 n2"], grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """Distance (mm) from every voxel centre to the surface of the object; within about half a voxel of the true one.

    The surface passes midway between inner and outer voxel centres: d = (1 - 1 / (2 |m|)) |v|, v (mm) and m (voxels)
    the step to the nearest centre of the other kind, by a Euclidean distance transform with the grid's spacing. Along
    an axis of one voxel a mask has no surface. Voxel axes are taken as orthogonal.

    Raises:
        InputError: the mask is empty.
    """
    inside = _checked(mask, grid)
    width = [(1, 1) if n > 1 else (0, 0) for n in grid.shape]
    padded = np.pad(inside, width)
    outer = _distance_to_other(padded, grid)
    inner = _distance_to_other(~padded, grid)
    crop = tuple(slice(1, -1) if n > 1 else slice(None) for n in grid.shape)
    return torch.from_numpy(np.where(padded, -inner, outer)[crop].astype(np.float32))


def at_nearest_voxel(values: Float[Tensor, "n0 n1 n2"], grid: Grid, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
    """The value of the voxel nearest to each world point; beyond the grid, of its outermost voxels."""
    last = torch.tensor(grid.shape, device=x.device) - 1
    index = torch.minimum(grid.to_voxel(x).round().long().clamp(min=0), last)
    return values[index[..., 0], index[..., 1], index[..., 2]]


def crop_to_object(
    mask: Bool[Tensor, "n0 n1 n2"], grid: Grid, *, margin_mm: float
) -> tuple[Bool[Tensor, "m0 m1 m2"], Grid]:
    """The part of a mask around its object, with at least `margin_mm` and two voxels on every side.

    The result may reach beyond the image, where the mask is continued as outside.
    """
    inside = _checked(mask, grid)
    found = np.argwhere(inside)
    border = np.maximum(2, np.ceil(margin_mm / np.asarray(grid.spacing_mm))).astype(int)
    low, high = found.min(axis=0) - border, found.max(axis=0) + 1 + border
    part = np.zeros(high - low, dtype=bool)
    part[tuple((found - low).T)] = True
    return torch.from_numpy(part), grid.part(low, part.shape)


def mask_mesh(mask: Bool[Tensor, "n0 n1 n2"], grid: Grid) -> Mesh:
    """The closed surface of a mask: marching cubes at level 1/2, between inner and outer voxel centres.

    Raises:
        InputError: the mask is empty or the grid is a single slice.
    """
    inside = _checked(mask, grid)
    if min(grid.shape) < 2:
        raise InputError(f"a surface needs a volume, got an image of shape {grid.shape}")
    padded = np.pad(inside, 1).astype(np.float32)
    return _marching_cubes(0.5 - padded, 0.0, grid, offset=-1)


def smooth_mask_mesh(mask: Bool[Tensor, "n0 n1 n2"], grid: Grid, *, iterations: int = 40) -> Mesh:
    """The closed surface of a mask without its staircase: `mask_mesh`, relaxed under constraints.

    Every vertex moves towards the mean of its neighbours and back (Taubin, SIGGRAPH 1995: a low-pass filter that does
    not shrink), but never further than 0.4 voxels along any voxel axis from where it began (Gibson, MICCAI 1998), so
    that nothing vanishes and the topology stays.

    Raises:
        InputError: as for `mask_mesh`.
    """
    mesh = mask_mesh(mask, grid)
    to_index = np.linalg.inv(grid.affine)
    edges = np.concatenate([mesh.edges, mesh.edges[:, ::-1]])
    count = len(mesh.vertices)
    adjacent = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count)).tocsr()
    degree = np.maximum(adjacent.sum(axis=1), 1)[:, None]  # a vertex of no face stays
    start = mesh.vertices @ to_index[:3, :3].T
    vertices = mesh.vertices
    for _ in range(iterations):
        for step in (_TAUBIN_LAMBDA, _TAUBIN_MU):
            vertices = vertices + step * (adjacent @ vertices / degree - vertices)
            moved = (vertices @ to_index[:3, :3].T - start).clip(-_FURTHEST_VOXELS, _FURTHEST_VOXELS)
            vertices = (start + moved) @ grid.affine[:3, :3].T
    return Mesh(vertices, mesh.faces)


def oriented_points(
    mask: Bool[Tensor, "n0 n1 n2"], grid: Grid, count: int, generator: torch.Generator, *, smoothing_voxels: float = 1.5
) -> tuple[Float[Tensor, "count 3"], Float[Tensor, "count 3"]]:
    """Points (mm) drawn uniformly by area from a mask's surface, with outward unit normals.

    The faces of a mask's mesh are staircases with few directions. The normals are those of the mask after a Gaussian
    of `smoothing_voxels` of the smallest spacing, which changes directions, not positions.
    """
    points, face_normals = mask_mesh(mask, grid).sample(count, generator)
    border = int(np.ceil(4 * smoothing_voxels)) + 1
    padded = np.pad(mask.cpu().numpy().astype(np.float64), border)
    sigma = smoothing_voxels * min(grid.spacing_mm) / np.asarray(grid.spacing_mm)
    at = grid.to_voxel(points.double()).numpy().T + border
    index_gradient = np.stack(
        [
            ndimage.map_coordinates(ndimage.gaussian_filter(padded, sigma, order=order), at, order=1)
            for order in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
        ],
        axis=-1,
    )
    # Index gradients become world gradients by the inverse transpose of the affine; the mask falls outwards.
    normals = -torch.from_numpy(index_gradient @ np.linalg.inv(grid.affine[:3, :3])).float()
    length = normals.norm(dim=-1, keepdim=True)
    vanished = length[:, 0] < 1e-6 * length.max()  # opposite sides of a thin sheet cancel
    normals = normals / length.clamp_min(1e-30)
    return points, torch.where(vanished[:, None], face_normals, normals)


def field_mesh(field: nn.Module, grid: Grid, *, level: float = 0.0, device: torch.device | str = "cpu") -> Mesh:
    """The surface on which a field takes the value `level`: marching cubes on the voxel centres of `grid`.

    Values below the level are inside. The surface is open where it leaves the grid.

    Raises:
        ScanfieldError: the field never crosses the level on this grid; its range is stated.
    """
    return volume_mesh(read_out(field, grid, device=device), grid, level=level)


def volume_mesh(values: Float[Tensor, "n0 n1 n2"], grid: Grid, *, level: float = 0.0) -> Mesh:
    """The surface on which an image takes the value `level`; values below it are inside. Errors: `field_mesh`."""
    if min(grid.shape) < 2:
        raise InputError(f"a surface needs a volume, got an image of shape {grid.shape}")
    volume = values.detach().cpu().numpy()
    low, high = float(volume.min()), float(volume.max())
    if not low < level < high:
        raise ScanfieldError(
            f"there is no surface: the field does not cross {level:g} on this grid, its values lie in "
            f"[{low:.4g}, {high:.4g}]; fit longer, or choose a grid that contains the object"
        )
    return _marching_cubes(volume - level, 0.0, grid, offset=0)


def _marching_cubes(volume: np.ndarray, level: float, grid: Grid, offset: int) -> Mesh:
    """Triangles of the level set of an array whose index `offset` is the grid's index zero; smaller values inside."""
    from skimage.measure import marching_cubes

    index, faces, _, _ = marching_cubes(volume, level, gradient_direction="descent", allow_degenerate=False)
    return Mesh(index + offset, faces).moved(grid.affine)


def _distance_to_other(inside: np.ndarray, grid: Grid) -> np.ndarray:
    """For every voxel outside: distance (mm) to the surface, towards the nearest voxel inside; 0 for those inside."""
    nearest = ndimage.distance_transform_edt(
        ~inside, sampling=grid.spacing_mm, return_distances=False, return_indices=True
    )
    steps = (nearest - np.indices(inside.shape)).astype(np.float32)
    voxels = np.sqrt((steps**2).sum(axis=0))
    length = np.sqrt(((steps * np.asarray(grid.spacing_mm, dtype=np.float32)[:, None, None, None]) ** 2).sum(axis=0))
    return np.asarray(length * (1 - 0.5 / np.maximum(voxels, 1)))


def _checked(mask: Tensor, grid: Grid) -> np.ndarray:
    inside = mask.detach().cpu().numpy().astype(bool)
    if inside.shape != grid.shape:
        raise InputError(f"a mask of shape {inside.shape} does not fit a grid of shape {grid.shape}")
    if not inside.any():
        raise InputError("the mask is empty: there is no object", fix="give a mask with at least one voxel")
    return inside
