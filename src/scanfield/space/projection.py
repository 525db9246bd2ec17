"""Where every ray of an X-ray scan runs: parallel, fan and cone beams, circular or with a vector per view.

Notation (gantry frame, mm): view angle theta about +z; u = (cos, sin, 0) along detector columns, v = (0, 0, 1) along
rows, d = (-sin, cos, 0) the central ray; S source, D detector centre. A detector pixel (row r, column c) sits at
    D + (r - (R-1)/2) v_mm + (c - (C-1)/2) u_mm                                  flat
    S + SDD (cos g d + sin g u) + (r - (R-1)/2) v_mm,  g = (c - (C-1)/2) dg + g0   arc, equal angles
A fan beam's source moves along v with the row: every row is a fan of its own in its own plane.
`frame` carries the gantry frame to the world (RAS+), so that an oblique volume keeps its affine.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scanfield.errors import InputError
from scanfield.space.grid import Grid
from scanfield.space.rays import Rays

Beam = Literal["parallel", "fan", "cone"]


@dataclass(frozen=True)
class Detector:
    """Detector pixels: `shape` (rows, columns); spacing and offset along (rows, columns).

    The column spacing and offset of an arc detector are in degrees seen from the source, everything else in mm.
    """

    kind: Literal["flat", "arc"]
    shape: tuple[int, int]
    spacing: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.kind not in ("flat", "arc"):
            raise InputError(f"a detector is 'flat' or 'arc', got '{self.kind}'", where="geometry.detector.kind")
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise InputError(f"a detector needs (rows, columns), got {self.shape}", where="geometry.detector.shape")
        values = np.asarray([*self.spacing, *self.offset], dtype=np.float64)
        if values.shape != (4,) or not np.isfinite(values).all():
            raise InputError("detector spacing and offset must be two finite numbers each", where="geometry.detector")
        if min(self.spacing) <= 0:
            raise InputError(
                f"detector spacing must be positive, got {tuple(self.spacing)}", where="geometry.detector.spacing_mm"
            )


@dataclass(frozen=True, eq=False)
class ViewVectors:
    """One row per view, gantry frame: source (V, 3; zeros for parallel), detector centre, and pixel steps u, v in mm.

    For an arc detector `u` is the unit vector along columns; its angular spacing stays in the detector.
    """

    source: np.ndarray
    centre: np.ndarray
    u: np.ndarray
    v: np.ndarray


@dataclass(frozen=True, eq=False)
class ProjectionGeometry:
    """The acquisition of a CT scan; see the module's notation.

    Args:
        beam: 'parallel', 'fan' or 'cone'.
        angles_deg: (V,) view angles.
        detector: pixel layout.
        volume: the grid to reconstruct on, in the world.
        source_to_axis_mm, source_to_detector_mm: for fan and cone beams.
        time_s: (V,) acquisition time of every view, or None.
        frame: 4x4 rigid transform, gantry mm -> world mm.
        vectors: overrides the circular trajectory with calibrated vectors.
    """

    beam: Beam
    angles_deg: np.ndarray
    detector: Detector
    volume: Grid
    source_to_axis_mm: float = 0.0
    source_to_detector_mm: float = 0.0
    time_s: np.ndarray | None = None
    frame: np.ndarray = field(default_factory=lambda: np.eye(4))
    vectors: ViewVectors | None = None

    def __post_init__(self) -> None:
        if self.beam not in ("parallel", "fan", "cone"):
            raise InputError(f"beam is 'parallel', 'fan' or 'cone', got '{self.beam}'", where="geometry.type")
        angles = np.asarray(self.angles_deg, dtype=np.float64)
        if angles.ndim != 1 or len(angles) == 0:
            raise InputError("a scan needs at least one view angle", where="geometry.angles_deg")
        if not np.isfinite(angles).all():
            raise InputError("view angles must be finite numbers", where="geometry.angles_deg")
        object.__setattr__(self, "angles_deg", angles)
        frame = np.asarray(self.frame, dtype=np.float64)
        if (
            frame.shape != (4, 4)
            or not np.isfinite(frame).all()
            or not np.allclose(frame[:3, :3] @ frame[:3, :3].T, np.eye(3), atol=1e-4)
            or not np.allclose(frame[3], [0, 0, 0, 1])
        ):
            raise InputError("the gantry frame must be a finite rigid 4x4 transform", where="geometry.frame")
        object.__setattr__(self, "frame", frame)
        if self.time_s is not None:
            times = np.asarray(self.time_s, dtype=np.float64)
            if times.shape != angles.shape or not np.isfinite(times).all():
                raise InputError("time_s needs one finite time per view", where="geometry.time_s")
            object.__setattr__(self, "time_s", times)
        if self.beam == "parallel":
            if self.detector.kind == "arc":
                raise InputError("a parallel beam has no arc detector", where="geometry.detector.kind")
        elif self.vectors is None and not 0 < self.source_to_axis_mm < self.source_to_detector_mm < np.inf:
            raise InputError(
                "a fan or cone beam needs 0 < source_to_axis_mm < source_to_detector_mm, "
                f"got {self.source_to_axis_mm} and {self.source_to_detector_mm}",
                where="geometry",
            )
        if self.vectors is not None:
            for name in ("source", "centre", "u", "v"):
                value = np.asarray(getattr(self.vectors, name), dtype=np.float64)
                if value.shape != (len(angles), 3) or not np.isfinite(value).all():
                    raise InputError(
                        f"per-view '{name}' must be finite with shape ({len(angles)}, 3)", where="geometry"
                    )
            self._check_plane(self.vectors)

    def _check_plane(self, vectors: ViewVectors) -> None:
        """Refuses views whose vectors span no detector, or one that the source sees edge-on."""
        normal = np.cross(vectors.u, vectors.v)
        scale = np.linalg.norm(vectors.u, axis=1) * np.linalg.norm(vectors.v, axis=1)
        flat = np.linalg.norm(normal, axis=1) <= 1e-6 * scale
        if self.beam != "parallel":
            depth = vectors.centre - vectors.source
            flat |= np.abs((depth * normal).sum(axis=1)) <= 1e-6 * scale * np.linalg.norm(depth, axis=1)
        if flat.any():
            raise InputError(
                f"the per-view vectors of view {int(np.argmax(flat))} span no detector that rays could reach",
                where="geometry",
                fix="check that 'u_mm' and 'v_mm' are neither zero nor parallel and that the source faces the detector",
            )

    @property
    def kind(self) -> str:
        """What a method's card lists under `accepts`."""
        return f"projections:{self.beam}"

    @property
    def views(self) -> int:
        return len(self.angles_deg)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the projections: (views, rows, columns)."""
        return (self.views, *self.detector.shape)

    @property
    def count(self) -> int:
        """Number of rays."""
        return self.views * self.detector.shape[0] * self.detector.shape[1]

    def view_vectors(self) -> ViewVectors:
        """The vectors of all views: the given ones, or those of the circular trajectory."""
        if self.vectors is not None:
            return self.vectors
        angle = np.deg2rad(self.angles_deg)
        zero = np.zeros_like(angle)
        u = np.stack([np.cos(angle), np.sin(angle), zero], axis=1)
        v = np.broadcast_to(np.array([0.0, 0.0, 1.0]), u.shape)
        d = np.stack([-np.sin(angle), np.cos(angle), zero], axis=1)
        row_offset, column_offset = self.detector.offset
        centre = (self.source_to_detector_mm - self.source_to_axis_mm) * d + row_offset * v
        if self.detector.kind == "flat":
            centre = centre + column_offset * u
            u = u * self.detector.spacing[1]
        source = np.zeros_like(u) if self.beam == "parallel" else -self.source_to_axis_mm * d
        return ViewVectors(source, centre, u, v * self.detector.spacing[0])

    def rays(
        self,
        index: Int[Tensor, " m"],
        *,
        row_shift: float = 0.0,
        column_shift: float = 0.0,
        dtype: torch.dtype = torch.float32,
        pose: Float[Tensor, "views 4 4"] | None = None,
    ) -> Rays:
        """World rays of flat measurement indices (C order of `shape`), through detector pixel centres.

        Shifts, in pixels, move the ray within its pixel (to average over the pixel's area); `pose` as in `rays_at`.
        """
        _, rows, columns = self.shape
        view = index // (rows * columns)
        row = index // columns % rows
        column = index % columns
        return self.rays_at(view, row.double() + row_shift, column.double() + column_shift, dtype=dtype, pose=pose)

    def rays_at(
        self,
        view: Int[Tensor, " m"],
        row: Float[Tensor, " m"],
        column: Float[Tensor, " m"],
        *,
        dtype: torch.dtype = torch.float32,
        pose: Float[Tensor, "views 4 4"] | None = None,
    ) -> Rays:
        """World rays through detector positions given in (fractional) pixels of each view.

        Args:
            pose: where the object was in every view: rigid world transforms T (mm) of its resting place, such as
                `space.view_poses.ViewPoses` gives. The rays are then those that the resting object sees, T^-1 of the
                scanner's, differentiable with respect to T.
        """
        device = view.device
        vectors = self.view_vectors()
        source, centre, u, v = (
            torch.tensor(value, dtype=torch.float64, device=device)[view]
            for value in (vectors.source, vectors.centre, vectors.u, vectors.v)
        )
        rows, columns = self.detector.shape
        row_step = (row - (rows - 1) / 2)[:, None] * v
        across = (column - (columns - 1) / 2)[:, None]
        if self.beam == "parallel":
            direction = torch.cross(v, u, dim=-1)
            direction = direction / direction.norm(dim=-1, keepdim=True)
            pixel = centre + row_step + across * u
            origin = pixel - (pixel * direction).sum(-1, keepdim=True) * direction - self._reach() * direction
        else:
            height = v * ((centre - source) * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True)
            axis = centre - source - height
            if self.detector.kind == "arc":
                distance = axis.norm(dim=-1, keepdim=True)
                angle = torch.deg2rad(across * self.detector.spacing[1] + self.detector.offset[1])
                lateral = u / u.norm(dim=-1, keepdim=True)
                pixel = source + height + distance * torch.sin(angle) * lateral + torch.cos(angle) * axis
            else:
                pixel = centre + across * u
            # a fan's own plane carries the whole row offset, of the detector too
            origin = source + height + row_step if self.beam == "fan" else source
            pixel = pixel + row_step
            direction = pixel - origin
            direction = direction / direction.norm(dim=-1, keepdim=True)
        frame = torch.tensor(self.frame, device=device)
        origin, direction = origin @ frame[:3, :3].T + frame[:3, 3], direction @ frame[:3, :3].T
        if pose is not None:
            moved = pose.to(device, torch.float64)[view]
            turn, shift = moved[:, :3, :3], moved[:, :3, 3]
            origin = ((origin - shift)[:, None] @ turn)[:, 0]  # a row vector times R is R^T = R^-1 times the column
            direction = (direction[:, None] @ turn)[:, 0]
        return Rays(origin.to(dtype), direction.to(dtype))

    def _reach(self) -> float:
        """A distance from the axis beyond every corner of the volume: where parallel rays start."""
        inverse = np.linalg.inv(self.frame)
        corners = self.volume.corners_mm() @ inverse[:3, :3].T + inverse[:3, 3]
        return float(np.linalg.norm(corners, axis=1).max() * 1.01 + 1.0)

    def subset(self, views: np.ndarray) -> ProjectionGeometry:
        """The same scan with only some of its views (indices, in the given order)."""
        views = np.asarray(views)
        vectors = self.vectors
        if vectors is not None:
            vectors = ViewVectors(vectors.source[views], vectors.centre[views], vectors.u[views], vectors.v[views])
        times = None if self.time_s is None else self.time_s[views]
        return replace(self, angles_deg=self.angles_deg[views], time_s=times, vectors=vectors)

    def row(self, row: int) -> ProjectionGeometry:
        """The one-row scan of detector row `row` of a parallel or fan beam."""
        rows, columns = self.detector.shape
        shift = row - (rows - 1) / 2
        vectors = self.vectors
        if vectors is not None:
            vectors = replace(vectors, centre=vectors.centre + shift * vectors.v)
        row_offset, column_offset = self.detector.offset
        offset = (row_offset + shift * self.detector.spacing[0], column_offset)
        return replace(self, detector=replace(self.detector, shape=(1, columns), offset=offset), vectors=vectors)

    def to_json(self) -> dict[str, Any]:
        """The `geometry` object of a projections file."""
        column = "mm" if self.detector.kind == "flat" else "deg"
        dv, du = self.detector.spacing
        ov, ou = self.detector.offset
        detector: dict[str, Any] = {"kind": self.detector.kind, "shape": list(self.detector.shape)}
        if column == "mm":
            detector |= {"spacing_mm": [dv, du], "offset_mm": [ov, ou]}
        else:
            detector |= {"spacing_mm": [dv], "spacing_deg": [du], "offset_mm": [ov], "offset_deg": [ou]}
        facts: dict[str, Any] = {
            "type": self.beam,
            "angles_deg": self.angles_deg.tolist(),
            "detector": detector,
            "volume": self.volume.to_json(),
            "frame": self.frame.tolist(),
        }
        if self.beam != "parallel":
            facts["source_to_axis_mm"] = self.source_to_axis_mm
            facts["source_to_detector_mm"] = self.source_to_detector_mm
        if self.time_s is not None:
            facts["time_s"] = self.time_s.tolist()
        if self.vectors is not None:
            facts["source_mm"] = self.vectors.source.tolist()
            facts["detector_centre_mm"] = self.vectors.centre.tolist()
            facts["u_mm"] = self.vectors.u.tolist()
            facts["v_mm"] = self.vectors.v.tolist()
        return facts

    @staticmethod
    def from_json(facts: dict[str, Any]) -> ProjectionGeometry:
        """Reads the `geometry` object of a projections file.

        Raises:
            InputError: a key is missing or contradicts the others; the message names it.
        """
        if not isinstance(facts, dict):
            raise InputError("the geometry must be a JSON object", where="geometry")
        for key in ("type", "angles_deg", "detector", "volume"):
            if key not in facts:
                raise InputError(f"the geometry lacks '{key}'", where="geometry", fix=f"add '{key}' to the JSON")
        if facts["type"] not in get_args(Beam):
            raise InputError(f"beam is 'parallel', 'fan' or 'cone', got {facts['type']!r}", where="geometry.type")
        try:
            angles = np.asarray(facts["angles_deg"], dtype=np.float64)
            times = None if facts.get("time_s") is None else np.asarray(facts["time_s"], dtype=np.float64)
            frame = np.asarray(facts.get("frame", np.eye(4)), dtype=np.float64)
            source_to_axis = float(facts.get("source_to_axis_mm", 0.0))
            source_to_detector = float(facts.get("source_to_detector_mm", 0.0))
            given = [key for key in ("source_mm", "detector_centre_mm", "u_mm", "v_mm") if key in facts]
            vectors = None
            if given:
                needed = ["detector_centre_mm", "u_mm", "v_mm"]
                needed += [] if facts["type"] == "parallel" else ["source_mm"]
                missing = [key for key in needed if key not in facts]
                if missing:
                    raise InputError(f"per-view vectors lack {', '.join(missing)}", where="geometry")
                centre, u, v = (np.asarray(facts[k], dtype=np.float64) for k in ("detector_centre_mm", "u_mm", "v_mm"))
                source = np.asarray(facts.get("source_mm", np.zeros_like(centre)), dtype=np.float64)
                vectors = ViewVectors(source, centre, u, v)
        except (TypeError, ValueError) as error:
            raise InputError(f"the geometry has a value of the wrong type: {error}", where="geometry") from None
        return ProjectionGeometry(
            beam=facts["type"],
            angles_deg=angles,
            detector=_detector(facts["detector"]),
            volume=Grid.from_json(facts["volume"]),
            source_to_axis_mm=source_to_axis,
            source_to_detector_mm=source_to_detector,
            time_s=times,
            frame=frame,
            vectors=vectors,
        )


def _detector(facts: Any) -> Detector:
    where = "geometry.detector"
    if not isinstance(facts, dict):
        raise InputError("the detector must be a JSON object", where=where)
    try:
        kind = facts.get("kind", "flat")
        if kind not in ("flat", "arc"):
            raise InputError(f"a detector is 'flat' or 'arc', got {kind!r}", where=f"{where}.kind")
        rows, columns = (int(n) for n in facts["shape"])
        if kind == "arc":
            spacing = (float(np.ravel(facts["spacing_mm"])[0]), float(np.ravel(facts["spacing_deg"])[-1]))
            offset = (
                float(np.ravel(facts.get("offset_mm", 0.0))[0]),
                float(np.ravel(facts.get("offset_deg", 0.0))[-1]),
            )
        else:
            spacing = tuple(float(s) for s in facts["spacing_mm"])  # type: ignore[assignment]
            offset = tuple(float(s) for s in facts.get("offset_mm", (0.0, 0.0)))  # type: ignore[assignment]
    except KeyError as error:
        raise InputError(f"the detector lacks {error}", where=where) from None
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"the detector has a value of the wrong type or length: {error}", where=where) from None
    return Detector(kind, (rows, columns), spacing, offset)
