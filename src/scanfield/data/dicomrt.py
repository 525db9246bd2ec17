"""RT Dose objects (DICOM PS3.3 A.18.3): a dose grid in one file with many frames, read and written.

Notation: X, Y unit vectors along a row and along a column, n = X x Y, S the position of the first pixel of the first
frame, all in patient coordinates (LPS, mm). The voxel in column i and row j of frame k lies at

    S + i dx X + j dy Y + o_k n

The offsets o_k come from GridFrameOffsetVector in one of two forms (PS3.3 C.8.8.3.2): relative, starting with 0, or,
for frames across the body axis, the frames' own z coordinates. Dose is the stored value times DoseGridScaling.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scanfield.data.dicom_values import FLIP_XY, decimal, numbers, parsing, pydicom_for
from scanfield.data.dose import Dose, PlanFacts
from scanfield.data.guard import check_memory, existing_file, located
from scanfield.data.write import write_atomically
from scanfield.errors import InputError
from scanfield.space.grid import Grid

if TYPE_CHECKING:
    from pydicom import Dataset

RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
RT_PLAN = "1.2.840.10008.5.1.4.1.1.481.5"
_FRAME_OFFSETS = 0x3004000C
_EVEN = 0.01  # mm that a frame may lie off its place
_LARGEST = 2**31 - 1  # of the stored integers: readers that take them for signed ones are right, too
_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")


def read_rtdose(path: str | Path, *, relative_to_gy: float | None = None) -> Dose:
    """Reads an RTDOSE file, or the only one in a folder.

    Args:
        relative_to_gy: the dose that a RELATIVE dose of 1 stands for, in Gy; without it such files are refused.

    Raises:
        InputError: no or several doses, no scaling, another unit than Gy, a dose error instead of a dose, frames that
            are not evenly spaced, negative dose, or a damaged file.
        MissingExtra: pydicom is not installed.
    """
    pydicom_for("reading an RTDOSE file")
    path = _only_dose(Path(path)) if Path(path).is_dir() else existing_file(path)
    with located(path), parsing():
        from pydicom import dcmread

        header = dcmread(path, stop_before_pixels=True, force=True)  # some exports lack the preamble
        if str(header.get("SOPClassUID", "")) != RT_DOSE:
            raise InputError(
                f"this is a DICOM file of modality '{header.get('Modality', '?')}', no RTDOSE",
                fix="give the file that the planning system exported as RT Dose",
            )
        scale = _scale(header, relative_to_gy)
        grid = _grid(header)
        check_memory(16 * grid.size, path)
        stored = np.asarray(dcmread(path, force=True).pixel_array).reshape(grid.shape[2], grid.shape[1], grid.shape[0])
        values = np.ascontiguousarray((stored * np.float64(scale)).astype(np.float32).transpose(2, 1, 0))
        return Dose(torch.from_numpy(values), grid, plan=_plan(header), source=str(path))


def write_rtdose(
    path: str | Path,
    values: Float[Tensor, "n0 n1 n2"],
    grid: Grid,
    *,
    plan: PlanFacts | None = None,
    description: str = "",
) -> None:
    """Writes a dose (Gy) as an RTDOSE file, 32 bits a voxel, relative frame offsets. Negative values become 0.

    Args:
        plan: of which plan and patient; without it the file gets a frame of reference and a study of its own.
        description: SeriesDescription, up to 64 characters.

    Raises:
        InputError: the grid is sheared, values are not finite, or the file cannot be written.
        MissingExtra: pydicom is not installed.
    """
    pydicom_for("writing an RTDOSE file")
    dose = values.detach().cpu().double().clamp(min=0).numpy()
    if dose.shape != grid.shape or not np.isfinite(dose).all():
        raise InputError(f"a dose of shape {dose.shape} must be finite and fit its grid, {grid.shape}", where=str(path))
    axes = FLIP_XY @ grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise InputError("DICOM has no place for a sheared grid", where=str(path), fix="resample the dose")
    origin = FLIP_XY @ grid.affine[:3, 3]
    step = grid.spacing_mm[2]
    if np.dot(np.cross(axes[:, 0], axes[:, 1]), axes[:, 2]) < 0:  # frames are counted along the normal
        dose, origin = dose[:, :, ::-1], origin + (grid.shape[2] - 1) * step * axes[:, 2]
    scale = decimal(max(float(dose.max()), 1e-6) / _LARGEST * (1 + 1e-9))
    data = _header(plan or PlanFacts(), description)
    data.Rows, data.Columns, data.NumberOfFrames = grid.shape[1], grid.shape[0], grid.shape[2]
    data.PixelSpacing = [decimal(grid.spacing_mm[1]), decimal(grid.spacing_mm[0])]
    data.SliceThickness = decimal(step)
    data.ImagePositionPatient = [decimal(v) for v in origin]
    data.ImageOrientationPatient = [decimal(v) for v in (*axes[:, 0], *axes[:, 1])]
    data.GridFrameOffsetVector = [decimal(k * step) for k in range(grid.shape[2])]
    data.DoseGridScaling = scale
    stored = np.rint(dose / float(scale)).astype("<u4").transpose(2, 1, 0)
    data.PixelData = stored.tobytes()
    with write_atomically(path) as temporary:
        data.save_as(temporary, enforce_file_format=True)


def _only_dose(folder: Path) -> Path:
    """The RTDOSE file of a folder."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    found: dict[Path, Dataset] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with located(path), parsing():
            try:
                header = dcmread(path, stop_before_pixels=True)
            except InvalidDicomError:
                continue
            if str(header.get("SOPClassUID", "")) == RT_DOSE:
                found[path] = header
    if not found:
        raise InputError("the folder holds no RTDOSE file", where=str(folder), fix="give the file itself")
    if len(found) > 1:
        plans = {_plan(header).plans for header in found.values()}
        listing = "\n".join(f"    {p.name}: {h.get('DoseSummationType', '?')}" for p, h in list(found.items())[:8])
        mixed = f" of {len(plans)} plans, mixed" if len(plans) > 1 else ""
        raise InputError(
            f"the folder holds {len(found)} RTDOSE files{mixed}:\n{listing}",
            where=str(folder),
            fix="give one file: the sum of a plan, not its beams",
        )
    return next(iter(found))


def _scale(header: Dataset, relative_to_gy: float | None) -> float:
    """Gy per stored unit."""
    value = header.get("DoseGridScaling")
    try:
        scale = float(value)
    except (TypeError, ValueError):
        scale = 0.0
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(
            f"the file does not say how its numbers become dose: DoseGridScaling is {value!r}",
            where="DoseGridScaling",
            fix="export the dose again",
        )
    if str(header.get("DoseType", "PHYSICAL")) == "ERROR":
        raise InputError("the file holds a dose error, no dose", where="DoseType", fix="export the dose itself")
    unit = str(header.get("DoseUnits", ""))
    if unit == "GY":
        return scale
    if unit == "RELATIVE" and relative_to_gy is not None:
        return scale * relative_to_gy
    fix = "export it in Gy"
    fix += ", or say which dose 1 stands for: --relative-to-gy GY" if unit == "RELATIVE" else ""
    raise InputError(f"the dose is in '{unit}', not in Gy", where="DoseUnits", fix=fix)


def _grid(header: Dataset) -> Grid:
    axes = numbers(header, "ImageOrientationPatient", 6).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        raise InputError(f"row and column directions are no orthogonal unit vectors: {axes.tolist()}")
    position = numbers(header, "ImagePositionPatient", 3)
    dy, dx = numbers(header, "PixelSpacing", 2)
    if not (dy > 0 and dx > 0):
        raise InputError(f"the spacing must be positive, got {dy} and {dx} mm", where="PixelSpacing")
    normal = np.cross(axes[0], axes[1])
    first, step = _frames(header, position, normal)
    affine = np.eye(4)
    affine[:3, :3] = FLIP_XY @ np.stack([dx * axes[0], dy * axes[1], step * normal], axis=1)
    affine[:3, 3] = FLIP_XY @ (position + first * normal)
    return Grid((int(header.Columns), int(header.Rows), int(header.get("NumberOfFrames") or 1)), affine)


def _frames(header: Dataset, position: np.ndarray, normal: np.ndarray) -> tuple[float, float]:
    """Offset of the first frame along the normal, and the (signed) step between frames, mm."""
    count = int(header.get("NumberOfFrames") or 1)
    if count == 1:
        thickness = header.get("SliceThickness")
        return 0.0, float(thickness) if thickness not in (None, "") and float(thickness) > 0 else 1.0
    pointer = header.get("FrameIncrementPointer")
    if pointer is not None and int(pointer) != _FRAME_OFFSETS:
        raise InputError("the frames are not counted by GridFrameOffsetVector", where="FrameIncrementPointer")
    offsets = numbers(header, "GridFrameOffsetVector", count)
    if offsets[0] != 0:
        across = abs(abs(normal[2]) - 1) < 1e-4
        if not across or abs(offsets[0] - position[2]) > _EVEN:
            raise InputError(
                f"the frame offsets start at {offsets[0]:g} mm: neither at 0 nor at the position of the first frame, "
                f"z = {position[2]:g} mm",
                where="GridFrameOffsetVector",
                fix="export the dose again",
            )
        offsets = (offsets - position[2]) * np.sign(normal[2])
    step = float(offsets[-1] - offsets[0]) / (count - 1)
    even = offsets[0] + step * np.arange(count)
    if step == 0 or np.abs(offsets - even).max() > _EVEN:
        raise InputError(
            f"the frames are not evenly spaced: steps from {np.diff(offsets).min():g} to {np.diff(offsets).max():g} mm",
            where="GridFrameOffsetVector",
            fix="export the dose on a regular grid",
        )
    return float(offsets[0]), step


def _plan(header: Dataset) -> PlanFacts:
    patient, study = (tuple(str(header.get(name) or "") for name in names) for names in (_PATIENT, _STUDY))
    referenced = header.get("ReferencedRTPlanSequence") or []
    return PlanFacts(
        frame_of_reference=str(header.get("FrameOfReferenceUID") or ""),
        plans=tuple(str(item.get("ReferencedSOPInstanceUID") or "") for item in referenced),
        summation=str(header.get("DoseSummationType") or "PLAN"),
        dose_type=str(header.get("DoseType") or "PHYSICAL"),
        patient=(patient[0], patient[1], patient[2], patient[3]),
        study=(study[0], study[1], study[2], study[3], study[4]),
    )


def _header(plan: PlanFacts, description: str) -> Any:
    """A data set with everything an RTDOSE object needs but its grid."""
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    data = start_dataset(RT_DOSE, "RTDOSE", plan, description)
    data.InstanceNumber = None
    data.FrameOfReferenceUID = plan.frame_of_reference or generate_uid()
    data.PositionReferenceIndicator = ""
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.FrameIncrementPointer = _FRAME_OFFSETS
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 32, 32, 31, 0
    data.DoseUnits, data.DoseType, data.DoseSummationType = "GY", plan.dose_type, plan.summation
    sequence = []
    for uid in plan.plans or ("",):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = RT_PLAN, uid or str(generate_uid())
        sequence.append(item)
    data.ReferencedRTPlanSequence = sequence
    return data


def start_dataset(sop_class: str, modality: str, plan: PlanFacts, description: str) -> Any:
    """A data set with file meta information, patient, study, series and equipment of a new radiotherapy object."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data: Any = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    now = datetime.datetime.now()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.InstanceCreationDate, data.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    for name, value in zip(_PATIENT, plan.patient, strict=True):
        setattr(data, name, value)
    for name, value in zip(_STUDY, plan.study, strict=True):
        setattr(data, name, value)
    data.StudyInstanceUID = plan.study[0] or generate_uid()
    data.ReferringPhysicianName = ""
    data.Modality, data.SeriesInstanceUID, data.SeriesNumber = modality, generate_uid(), None
    data.SeriesDescription, data.OperatorsName = description[:64], ""
    data.Manufacturer, data.ManufacturerModelName = "scanfield", "scanfield"
    return data
