"""How well a map aligns a pair: one row of the table, the same for a method, its rivals, and no registration at all.

Folding, volume change, similarity and the error of the inverse are judged at the same voxel centres of the fixed image
for every row: all that its mask holds, or `PROBES` of them drawn at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.data.pair import Pair
from scanfield.data.points import Points, check_inside
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.image import ImageField
from scanfield.fields.inverse import Inverse
from scanfield.losses.image import mutual_information, ncc
from scanfield.metrics.registration import (
    LandmarkErrors,
    dice,
    inverse_consistency,
    landmark_errors,
    regularity,
    warped_labels,
)
from scanfield.space.grid import Grid
from scanfield.tasks.table import Column, Kind, Row
from scanfield.tasks.warp import CHUNK, TOLERANCE_MM, determinants_at, map_points, whole_numbers

PROBES = 100_000
INVERSE_PROBES = 2_000
BINS = 32


@dataclass(eq=False)
class Judge:
    """Everything the rows of one table have in common.

    Args:
        pair: the images.
        landmarks: the same places of the body in the fixed and the moving image, or None.
        labels: segmentations of the fixed and the moving image, each on a grid of its own, or None.
        generator: draws the voxel centres to judge at.
        device: where maps are evaluated.

    Raises:
        InputError: landmarks lie outside their image or seem to be no millimetres, their numbers differ; labels are no
            whole numbers or do not overlap.
    """

    pair: Pair
    landmarks: tuple[Points, Points] | None
    labels: tuple[Scan, Scan] | None
    generator: torch.Generator
    device: torch.device

    def __post_init__(self) -> None:
        if self.landmarks is not None:
            fixed, moving = self.landmarks
            if len(fixed.x) != len(moving.x):
                raise InputError(f"landmarks come in pairs, got {len(fixed.x)} and {len(moving.x)}")
            check_inside(fixed, self.pair.fixed.grid, image="fixed image")
            check_inside(moving, self.pair.moving.grid, image="moving image")
        if self.labels is not None:
            fixed_labels, moving_labels = self.labels
            self._label_values = whole_numbers(fixed_labels), whole_numbers(moving_labels)
        self.probes = probes(self.pair.fixed.grid, self.pair.fixed.mask, PROBES, self.generator)
        mask = "" if self.pair.fixed.mask is None else " of the fixed image's mask"
        self.where = f"{len(self.probes)} voxel centres{mask}"

    def columns(self) -> list[Column]:
        """Of the table, in its order."""
        columns = []
        if self.landmarks is not None:
            about = f"{len(self.landmarks[0].x)} landmarks; no registration's is the initial error"
            snapped = "mean of the same, mapped and true places both rounded to voxel centres of the moving image"
            columns += [
                Column("tre_mm", "mean TRE", "mm", "lower", f"target registration error of {about}"),
                Column("tre95_mm", "95 % TRE", "mm", "lower", ""),
                Column("tre_snapped_mm", "snapped TRE", "mm", "lower", snapped),
            ]
        if self.labels is not None:
            columns.append(Column("dice", "mean Dice", "", "higher", "over the labels; each label's is in dice.csv", 3))
        volume = f"of det d phi / d x at {self.where}"
        return [
            *columns,
            Column(
                "ncc", "NCC", "", "", f"of the intensities at {self.where} that are mapped into the moving image", 3
            ),
            Column("mi", "MI", "nats", "", "of the same", 3),
            Column("folding_percent", "folding", "%", "", f"share {volume} that is not positive", 3),
            Column("sd_log_det", "SD log det", "", "", f"standard deviation of the logarithm {volume}", 3),
            Column(
                "inverse_mm",
                "inverse error",
                "mm",
                "",
                f"mean |psi(phi(x)) - x| at {min(INVERSE_PROBES, len(self.probes))} of them, psi the inverse",
                4,
            ),
            Column("seconds", "time", "s", "", "of the fit alone", 1),
        ]

    def row(
        self, name: str, label: str, kind: Kind, phi: nn.Module, seconds: float, psi: nn.Module | None = None
    ) -> Row:
        """The numbers of a map; `psi` is its inverse where that is known, else phi is inverted point by point."""
        values = {"seconds": seconds, **self._likeness(phi)}
        if self.landmarks is not None:
            errors = self.landmark_errors(phi)
            values["tre_mm"], values["tre95_mm"] = errors.final.mean_mm, errors.final.q95_mm
            values["tre_snapped_mm"] = errors.final_snapped.mean_mm
        if self.labels is not None:
            overlap = self.dice(phi)
            values["dice"] = sum(overlap.values()) / len(overlap)
        shape = regularity(determinants_at(phi, self.probes, self.device))
        values["folding_percent"], values["sd_log_det"] = shape.folding_percent, shape.sd_log_determinant
        some = self.probes[:: max(1, len(self.probes) // INVERSE_PROBES)][:INVERSE_PROBES].to(self.device)
        back = Inverse(phi, tolerance_mm=TOLERANCE_MM) if psi is None else psi
        values["inverse_mm"] = inverse_consistency(phi, back, some).mean_mm
        return Row(name, label, kind, {key: value for key, value in values.items() if math.isfinite(value)})

    def landmark_errors(self, phi: nn.Module) -> LandmarkErrors:
        """Target registration errors, initial and final."""
        assert self.landmarks is not None
        fixed, moving = (points.x for points in self.landmarks)
        return landmark_errors(fixed, moving, map_points(phi, fixed, self.device), self.pair.moving.grid)

    def warped_labels(self, phi: nn.Module) -> Tensor:
        """The moving labels on the grid of the fixed ones."""
        assert self.labels is not None
        fixed, moving = self.labels
        values = self._label_values[1]
        return warped_labels(lambda x: phi(x.to(self.device)).cpu(), values, moving.grid, fixed.grid)

    def dice(self, phi: nn.Module) -> dict[int, float]:
        """Dice of every label."""
        assert self.labels is not None
        return dice(self._label_values[0], self.warped_labels(phi))

    def _likeness(self, phi: nn.Module) -> dict[str, float]:
        """Similarity of the intensities where the moving image, and its mask, show something."""
        fixed, moving = (
            ImageField(scan.values, scan.grid, mask=scan.mask) for scan in (self.pair.fixed, self.pair.moving)
        )
        a, b, shown = [], [], []
        for x in self.probes.split(CHUNK):
            y = map_points(phi, x, self.device)
            a.append(fixed(x)[:, 0])
            b.append(moving(y)[:, 0])
            shown.append(moving.shown(y))
        inside = torch.cat(shown)
        p, q = torch.cat(b)[inside], torch.cat(a)[inside]
        if not len(p):
            return {}
        return {"ncc": float(ncc(p, q)), "mi": float(mutual_information(p, q, bins=BINS))}


def probes(grid: Grid, mask: Tensor | None, most: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """Centres of the mask's voxels (of all without one): all of them, or nearly `most` drawn at random."""
    if mask is None:
        count, index = grid.size, None
    else:
        index = mask.flatten().nonzero()[:, 0]
        count = len(index)
    chosen = torch.arange(count) if count <= most else torch.randint(count, (most,), generator=generator).unique()
    flat = chosen if index is None else index[chosen]
    return grid.to_world(grid.voxels(flat).double()).float()
