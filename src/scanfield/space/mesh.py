"""Triangle meshes in the world: what they enclose, how they hang together, and points on them.

Vertices are world millimetres (RAS+). The corners of a face run counter-clockwise seen from outside, so that
(b - a) x (c - a) points outwards and the enclosed volume is positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from scanfield.errors import InputError


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh.

    Args:
        vertices: (v, 3) mm, float64.
        faces: (f, 3) indices into the vertices, int64.
    """

    vertices: np.ndarray
    faces: np.ndarray

    def __post_init__(self) -> None:
        vertices = np.ascontiguousarray(self.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(self.faces, dtype=np.int64)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
            raise InputError(f"a mesh needs vertices (v, 3) and faces (f, 3), got {vertices.shape} and {faces.shape}")
        if not np.isfinite(vertices).all():
            raise InputError(f"{int((~np.isfinite(vertices)).any(axis=1).sum())} vertices are NaN or infinite")
        if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise InputError(f"faces refer to vertices {faces.min()}..{faces.max()}, the mesh has {len(vertices)}")
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", faces)

    @property
    def face_vectors_mm2(self) -> Float[np.ndarray, "f 3"]:
        """Outward vector of every face; its length is the face's area."""
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        return np.asarray(np.cross(b - a, c - a) / 2)

    @property
    def area_mm2(self) -> float:
        return float(np.linalg.norm(self.face_vectors_mm2, axis=1).sum())

    @property
    def volume_mm3(self) -> float:
        """Enclosed volume by the divergence theorem; for closed meshes only, negative if turned inside out."""
        centroids = self.vertices[self.faces].mean(axis=1) - self.vertices.mean(axis=0)
        return float((centroids * self.face_vectors_mm2).sum() / 3)

    @property
    def edges(self) -> Int[np.ndarray, "e 2"]:
        """Every edge once, as sorted pairs of vertices."""
        return np.unique(np.sort(self._half_edges(), axis=1), axis=0)

    @property
    def closed(self) -> bool:
        """Whether every edge joins exactly two faces that agree on their outer side."""
        half = self._half_edges()
        key = half[:, 0] * len(self.vertices) + half[:, 1]
        back = half[:, 1] * len(self.vertices) + half[:, 0]
        return len(key) > 0 and len(np.unique(key)) == len(key) and bool(np.isin(key, back).all())

    @property
    def open_edges(self) -> Int[np.ndarray, "e 2"]:
        """Edges that belong to one face only, as sorted pairs of vertices: the rims of holes."""
        edges, count = np.unique(np.sort(self._half_edges(), axis=1), axis=0, return_counts=True)
        return np.asarray(edges[count == 1])

    @property
    def euler_number(self) -> int:
        """Vertices - edges + faces: 2 for every sphere, 0 for every torus. Vertices without a face do not count."""
        return len(np.unique(self.faces)) - len(self.edges) + len(self.faces)

    @property
    def components(self) -> int:
        """Number of connected parts."""
        return len(np.unique(self._labels()[self.faces[:, 0]])) if len(self.faces) else 0

    @property
    def genus(self) -> int:
        """Number of handles of all parts together: components - euler_number / 2.

        Raises:
            InputError: the mesh is not closed.
        """
        if not self.closed:
            raise InputError("only a closed mesh has a genus")
        return self.components - self.euler_number // 2

    def largest_component(self) -> Mesh:
        """The connected part with the largest area."""
        face_label = self._labels()[self.faces[:, 0]]
        area = np.bincount(face_label, weights=np.linalg.norm(self.face_vectors_mm2, axis=1))
        faces = self.faces[face_label == area.argmax()]
        used, compact = np.unique(faces, return_inverse=True)
        return Mesh(self.vertices[used], compact.reshape(-1, 3))

    def moved(self, transform: np.ndarray) -> Mesh:
        """The mesh after a 4x4 world transform; reflections keep the outer side outside."""
        vertices = self.vertices @ transform[:3, :3].T + transform[:3, 3]
        return Mesh(vertices, self.faces[:, ::-1] if np.linalg.det(transform[:3, :3]) < 0 else self.faces)

    def sample(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[torch.Tensor, "count 3"], Float[torch.Tensor, "count 3"]]:
        """Points drawn uniformly by area, with the outward unit normals of their faces."""
        vectors = self.face_vectors_mm2
        area = np.linalg.norm(vectors, axis=1)
        if not area.sum() > 0:
            raise InputError("cannot draw points from a mesh without area")
        drawn = torch.rand(count, 3, generator=generator, dtype=torch.float64).numpy()
        cumulative = np.cumsum(area)
        face = np.minimum(np.searchsorted(cumulative, drawn[:, 0] * cumulative[-1], side="right"), len(area) - 1)
        root, s = (
            np.sqrt(drawn[:, 1:2]),
            drawn[:, 2:3],
        )  # uniform in the triangle: Osada et al., ACM TOG 2002, section 3.1
        a, b, c = (self.vertices[self.faces[face, k]] for k in range(3))
        points = (1 - root) * a + root * (1 - s) * b + root * s * c
        normals = vectors[face] / area[face, None]
        return torch.from_numpy(points).float(), torch.from_numpy(normals).float()

    def _half_edges(self) -> np.ndarray:
        return np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])

    def _labels(self) -> np.ndarray:
        half, n = self._half_edges(), len(self.vertices)
        graph = coo_array((np.ones(len(half), dtype=bool), (half[:, 0], half[:, 1])), shape=(n, n))
        return np.asarray(connected_components(graph, directed=False)[1])
