"""Structures of a treatment plan: targets and organs, as contours or masks, and the files they come in.

A structure is a name with either closed planar contours (RTSTRUCT, DICOM PS3.3 A.19) or a mask on a grid of its own.
`Structure.on(grid)` is its mask on any grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from scanfield.data.contours import Planes, contour_mask, mask_contours, planes_of
from scanfield.data.dicom_values import FLIP_XY, decimal, parsing, pydicom_for
from scanfield.data.dicomrt import start_dataset
from scanfield.data.dose import PlanFacts
from scanfield.data.guard import existing_file, located
from scanfield.data.write import write_atomically
from scanfield.errors import InputError, nearest
from scanfield.space.grid import Grid

if TYPE_CHECKING:
    from pydicom import Dataset

RT_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_COLOURS = ((0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (213, 94, 0))


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure.

    Args:
        name: as the planning system calls it.
        shape: its contours, or a mask and the grid it lies on.
    """

    name: str
    shape: Planes | tuple[Bool[Tensor, "n0 n1 n2"], Grid]

    def on(self, grid: Grid) -> Bool[Tensor, "m0 m1 m2"]:
        """The voxels of a grid whose centres lie in the structure.

        Raises:
            InputError: there is none: the structure lies outside the grid, or between its voxels.
        """
        if isinstance(self.shape, Planes):
            mask = contour_mask(self.shape, grid)
        else:
            own, home = self.shape
            mask = own if home.same_as(grid) else _read_at(own, home, grid)
        if not bool(mask.any()):
            raise InputError(
                f"the structure '{self.name}' lies outside the dose grid",
                fix="choose structures that the dose covers: --structure NAME",
            )
        return mask

    def share_on(self, grid: Grid) -> float:
        """About which share of the structure lies in a grid's box, 0 to 1: of its contour points or voxels."""
        if isinstance(self.shape, Planes):
            x = torch.from_numpy(np.concatenate([line for plane in self.shape.contours for line in plane]))
        else:
            own, home = self.shape
            x = home.points()[own.flatten()].double()
        place, size = grid.to_voxel(x), torch.tensor(grid.shape)
        return float(((place >= -0.5) & (place <= size - 0.5)).all(dim=1).double().mean())


@dataclass(frozen=True, eq=False)
class StructureSet:
    """Structures of one patient.

    Args:
        structures: those with a volume, in the file's order.
        frame_of_reference: UID, '' where the format has none.
        skipped: names of those without closed contours (points, empty ones).
        source: name of the file.
    """

    structures: tuple[Structure, ...]
    frame_of_reference: str = ""
    skipped: tuple[str, ...] = ()
    source: str = ""

    def chosen(self, names: list[str]) -> StructureSet:
        """Those of these names, in that order; all for none.

        Raises:
            InputError: a name is not there; the nearest is named.
        """
        if not names:
            return self
        known = {structure.name: structure for structure in self.structures}
        for name in names:
            if name not in known:
                raise InputError(
                    f"there is no structure '{name}'{nearest(name, known)}",
                    where=self.source,
                    fix=f"known: {', '.join(known)}",
                )
        chosen = tuple(known[name] for name in names)
        return StructureSet(chosen, self.frame_of_reference, (), self.source)


def read_rtstruct(path: str | Path) -> StructureSet:
    """Reads an RTSTRUCT file.

    Raises:
        InputError: it is no RTSTRUCT, holds no closed contour, its structures lie in several frames of reference, or a
            contour is damaged.
        MissingExtra: pydicom is not installed.
    """
    pydicom_for("reading an RTSTRUCT file")
    path = existing_file(path)
    with located(path), parsing():
        from pydicom import dcmread

        data = dcmread(path, force=True)  # some exports lack the preamble; what it is follows from its class
        if str(data.get("SOPClassUID", "")) != RT_STRUCTURES:
            raise InputError(
                f"this is a DICOM file of modality '{data.get('Modality', '?')}', no RTSTRUCT",
                fix="give the file that the planning system exported as RT Structure Set",
            )
        named = {int(item.ROINumber): item for item in data.get("StructureSetROISequence") or []}
        lines = {int(item.ReferencedROINumber): _lines(item) for item in data.get("ROIContourSequence") or []}
        frames = {str(item.get("ReferencedFrameOfReferenceUID") or "") for item in named.values()} - {""}
        if len(frames) > 1:
            raise InputError(f"the structures lie in {len(frames)} frames of reference", fix="export those of one CT")
        spacing = _usual_distance([line for found in lines.values() for line in found])
        structures, skipped = [], []
        for number, item in named.items():
            name = str(item.get("ROIName") or number)
            if not lines.get(number):
                skipped.append(name)
                continue
            with located(f"structure '{name}'"):
                structures.append(Structure(name, planes_of(lines[number], spacing)))
        if not structures:
            raise InputError("the file holds no structure with closed contours")
        frame = next(iter(frames), str(data.get("FrameOfReferenceUID") or ""))
        return StructureSet(tuple(structures), frame, tuple(skipped), str(path))


def write_rtstruct(
    path: str | Path,
    masks: dict[str, Bool[Tensor, "n0 n1 n2"]],
    grid: Grid,
    *,
    plan: PlanFacts | None = None,
    label: str = "scanfield",
) -> None:
    """Writes masks as an RTSTRUCT file: closed planar contours in the slices across the third voxel axis.

    A hole is a contour of its own inside another (even-odd rule). Empty masks have no contours.

    Args:
        plan: of which patient and in which frame of reference.
        label: StructureSetLabel.

    Raises:
        InputError: the file cannot be written.
        MissingExtra: pydicom is not installed.
    """
    pydicom_for("writing an RTSTRUCT file")
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    plan = plan or PlanFacts()
    data = start_dataset(RT_STRUCTURES, "RTSTRUCT", plan, label)
    frame = plan.frame_of_reference or generate_uid()
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = frame, ""
    data.StructureSetLabel = label[:16]
    data.StructureSetDate, data.StructureSetTime = data.InstanceCreationDate, data.InstanceCreationTime
    reference = Dataset()
    reference.FrameOfReferenceUID = frame
    data.ReferencedFrameOfReferenceSequence = [reference]
    named, drawn, observed = [], [], []
    for number, (name, mask) in enumerate(masks.items(), start=1):
        item = Dataset()
        item.ROINumber, item.ReferencedFrameOfReferenceUID = number, frame
        item.ROIName, item.ROIGenerationAlgorithm = name[:64], ""
        named.append(item)
        item = Dataset()
        item.ReferencedROINumber = number
        item.ROIDisplayColor = list(_COLOURS[(number - 1) % len(_COLOURS)])
        item.ContourSequence = [_contour(points) for points in mask_contours(mask, grid)]
        drawn.append(item)
        item = Dataset()
        item.ObservationNumber, item.ReferencedROINumber = number, number
        item.RTROIInterpretedType, item.ROIInterpreter = "", ""
        observed.append(item)
    data.StructureSetROISequence, data.ROIContourSequence, data.RTROIObservationsSequence = named, drawn, observed
    with write_atomically(path) as temporary:
        data.save_as(temporary, enforce_file_format=True)


def _contour(points: np.ndarray) -> Any:
    from pydicom import Dataset

    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
    item.ContourData = [decimal(v) for v in (points @ FLIP_XY).ravel()]
    return item


def _lines(item: Dataset) -> list[np.ndarray]:
    """Closed contours (n, 3) in RAS mm of one structure; those of fewer than three points enclose nothing."""
    found = []
    for contour in item.get("ContourSequence") or []:
        if str(contour.get("ContourGeometricType", "")) not in _CLOSED:
            continue
        numbers = np.asarray(contour.get("ContourData") or [], dtype=np.float64)
        if len(numbers) % 3 or not np.isfinite(numbers).all():
            raise InputError(f"a contour holds {len(numbers)} numbers, no triples of coordinates", where="ContourData")
        if len(numbers) >= 9:
            found.append(numbers.reshape(-1, 3) @ FLIP_XY)
    return found


def _usual_distance(lines: list[np.ndarray]) -> float | None:
    """Of neighbouring planes over all structures, mm: what a structure drawn in one plane only must go by."""
    if len(lines) < 2:
        return None
    planes = [planes_of([line]) for line in lines]
    normal = planes[0].normal
    heights = np.unique(np.round([float((line @ normal).mean()) for line in lines], 2))
    return float(np.median(np.diff(heights))) if len(heights) > 1 else None


def _read_at(mask: Tensor, home: Grid, grid: Grid) -> Tensor:
    """A mask's nearest voxels on another grid."""
    place, size = home.to_voxel(grid.points().double()).round().long(), torch.tensor(home.shape)
    within = ((place >= 0) & (place < size)).all(dim=1)
    i, j, k = torch.minimum(place.clamp(min=0), size - 1).unbind(1)
    return (mask[i, j, k] & within).reshape(grid.shape)
