"""Signed distances to closed meshes, without a screen or a grid: negative inside, in mm (see `fields.shape`).

The distance is that to the nearest triangle, exactly. Its sign is that of (x - y) . n(y), with y the nearest point and
n the angle-weighted pseudo-normal there: the face's normal, the sum of the two normals at an edge, or the sum of the
normals around a corner weighted by the angles of their faces (Baerentzen and Aanaes, IEEE TVCG 11(3), 2005: the sign
is right wherever the mesh is closed and does not cut itself).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.mesh import Mesh
from scanfield.space.triangles import Triangles


class MeshDistance:
    """The signed distance to a mesh as a function of world points.

    Raises:
        InputError: the mesh is not closed, so that it has no inside.
    """

    def __init__(self, mesh: Mesh) -> None:
        check_closed(mesh)
        self._triangles = Triangles(mesh.vertices[mesh.faces])
        self._normals = _pseudo_normals(mesh)

    def __call__(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
        """Signed distances (mm) at world points, in their precision; no gradients."""
        points = x.detach().double().cpu().numpy().reshape(-1, 3)
        found = self._triangles.nearest(points)
        normal = self._normals[found.triangle, found.feature]
        side = ((points - found.point) * normal).sum(axis=1)
        signed = np.where(side < 0, -found.distance_mm, found.distance_mm)
        return torch.from_numpy(signed).to(x).reshape(x.shape[:-1])


def mesh_signed_distance(mesh: Mesh, grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """Signed distance (mm) of every voxel centre of a grid to a closed mesh. Errors: `MeshDistance`."""
    x = grid.to_world(grid.voxels(torch.arange(grid.size)).double())
    return MeshDistance(mesh)(x).float().reshape(grid.shape)


def mesh_mask(mesh: Mesh, grid: Grid) -> Tensor:
    """Which voxel centres lie inside a closed mesh, (n0, n1, n2) bool. Errors: `MeshDistance`."""
    return mesh_signed_distance(mesh, grid) < 0


def check_closed(mesh: Mesh) -> None:
    """Raises `InputError` naming what keeps a mesh from being watertight."""
    if not len(mesh.faces):
        raise InputError("the mesh has no faces: it encloses nothing")
    if mesh.closed:
        return
    count = len(mesh.open_edges)
    what = (
        f"{count} of its edges belong to one face only" if count else "neighbouring faces disagree on their outer side"
    )
    raise InputError(
        f"the mesh is not closed, so it has no inside: {what}", fix="close its holes, or export the whole surface"
    )


def _pseudo_normals(mesh: Mesh) -> Float[np.ndarray, "f 7 3"]:
    """Per face the normals of its inside, its edges ab, bc, ca and its corners a, b, c; of any length."""
    faces, vectors = mesh.faces, mesh.face_vectors_mm2
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    normal = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)  # a sliver has none

    # An edge's other face holds it the other way round.
    start, end = faces, np.roll(faces, -1, axis=1)
    key = (start * len(mesh.vertices) + end).ravel()
    back = (end * len(mesh.vertices) + start).ravel()
    order = np.argsort(key)
    other = order[np.searchsorted(key, back, sorter=order)] // 3
    at_edge = normal[:, None] + normal[other].reshape(-1, 3, 3)

    corners = mesh.vertices[faces]
    ahead, behind = np.roll(corners, -1, axis=1) - corners, np.roll(corners, 1, axis=1) - corners
    cross, dot = np.linalg.norm(np.cross(ahead, behind), axis=2), (ahead * behind).sum(axis=2)
    weighted = np.arctan2(cross, dot)[..., None] * normal[:, None]
    at_vertex = np.zeros_like(mesh.vertices)
    np.add.at(at_vertex, faces.ravel(), weighted.reshape(-1, 3))
    return np.concatenate([normal[:, None], at_edge, at_vertex[faces]], axis=1)
