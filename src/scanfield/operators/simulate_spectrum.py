"""From a CT image to a polychromatic CT scan, with metal inserts.

Notation: mu(x) the image in 1/mm at the reference energy E0, s_k the spectrum's shares, L_m chord of a ray through
insert m in mm. Tissue is water and bone in every voxel, split by its CT number h (0 up to 100 HU, all bone from 1500,
linear between; as in the simulations of Zhang and Yu, IEEE TMI 37:1370-1381, 2018):

    b(h) = clamp((h - 100) / 1400, 0, 1)
    a_k  = w(E_k) / w(E0) integral (1 - b) mu  +  c(E_k) / c(E0) integral b mu  +  sum_m mu_m(E_k) L_m
    p    = -log mean_rays sum_k s_k exp(-a_k)

with w water and c cortical bone: at E0 the scan shows the image itself. The integrals through voxels are exact, and so
are the chords of the inserts, which are spheres; a voxel gives way to them by the share of it that they fill. A
detector pixel averages what arrives over its width, not the line integrals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.data.attenuation import CtUnit, attenuation
from scanfield.data.hounsfield import MU_WATER_PER_MM, to_hounsfield
from scanfield.data.materials import attenuation_per_mm, material
from scanfield.data.measurement import Measurement
from scanfield.data.scan import Scan
from scanfield.data.spectra import REFERENCE_KEV, Spectrum
from scanfield.errors import InputError
from scanfield.operators.siddon import project_voxels
from scanfield.operators.simulate import CtScanOptions, scanner, with_noise
from scanfield.operators.spectral import log_shares
from scanfield.space.grid import Grid
from scanfield.space.projection import ProjectionGeometry

BONE_HU = (100.0, 1500.0)
RAYS_PER_CHUNK = 2**16
FILL_STEPS = 8  # sub-voxels per axis where an insert's surface cuts a voxel


@dataclass(frozen=True)
class Insert:
    """A sphere of a material: `centre_mm` in the world, `radius_mm`."""

    material: str
    centre_mm: tuple[float, float, float]
    radius_mm: float

    def __post_init__(self) -> None:
        material(self.material)
        if not np.isfinite(self.centre_mm).all() or not 0 < self.radius_mm < np.inf:
            raise InputError(
                f"an insert needs a place and a positive radius in mm, got {self.centre_mm} and {self.radius_mm}",
                where="insert",
            )

    @staticmethod
    def parse(text: str) -> Insert:
        """'titanium,x,y,z,radius', world mm.

        Raises:
            InputError: not of this form, unknown material, or a radius that is not positive.
        """
        parts = text.split(",")
        try:
            name, (x, y, z, radius) = parts[0].strip(), (float(part) for part in parts[1:])
        except ValueError:
            raise InputError(
                f"'{text}' is no insert", where="insert", fix="titanium,10,-35,120,8: material, x, y, z, radius in mm"
            ) from None
        return Insert(name, (x, y, z), radius)


def simulate_spectral_ct(
    scan: Scan,
    options: CtScanOptions,
    spectrum: Spectrum,
    inserts: Sequence[Insert] = (),
    *,
    slice_index: int | None = None,
    grid: Grid | None = None,
    unit: CtUnit = "auto",
    mu_water_per_mm: float = MU_WATER_PER_MM,
    reference_kev: float = REFERENCE_KEV,
) -> Measurement[ProjectionGeometry]:
    """A polychromatic scan of a CT image; see the module's notation and `simulate_ct` for the other arguments.

    Args:
        spectrum: shares of the detector's signal in air.
        inserts: what is put into the image; where two overlap, the first one counts.
        reference_kev: the energy at which the image is the attenuation.

    Returns:
        p, raw (not corrected for beam hardening); the measurement states the spectrum. Photons of `options` are those
        in air of all energies; the detector counts them.

    Raises:
        InputError: as `simulate_ct`; the spectrum does not cover the reference energy, or an insert misses the image.
        MissingExtra: xraydb is not installed.
    """
    spectrum.check_covers(reference_kev, reference_kev)
    image = attenuation(scan, unit, mu_water_per_mm)
    if slice_index is not None:
        inner = image.grid.slice(slice_index)
        image = Scan(image.values[:, :, slice_index, None], inner, unit=image.unit, source=image.source)
    geometry = scanner(image.grid, options)
    mu = image.values.clamp(min=0.0)
    for insert in inserts:
        filled = fill_share(insert, image.grid)
        if not bool((filled > 0).any()):
            middle = ", ".join(f"{c:.4g}" for c in image.grid.centre_mm)
            raise InputError(
                f"the insert of {insert.material} at {insert.centre_mm} mm misses the image",
                where="insert",
                fix=f"world coordinates in mm; the middle of what is scanned is {middle}",
            )
        mu = mu * (1 - filled)
    low, high = BONE_HU
    bone = ((to_hounsfield(mu, mu_water_per_mm) - low) / (high - low)).clamp(0, 1) * mu
    exact = _project(mu - bone, bone, image.grid, geometry, options.subrays, spectrum, inserts, reference_kev)
    if float(exact.max()) <= 0:
        raise InputError("no ray meets any attenuation: the image is empty", where=scan.source)
    noisy, noise = with_noise(exact, options)
    if grid is not None:
        geometry = replace(geometry, volume=grid)
    return Measurement(noisy, geometry, noise, unit="1", source=scan.source, spectrum=spectrum.trimmed())


def inserted(inserts: Sequence[Insert], grid: Grid) -> Bool[Tensor, "n0 n1 n2"]:
    """The voxels of a grid that hold any of the inserts: what shows metal, if only in part."""
    filled = torch.zeros(grid.shape)
    for insert in inserts:
        filled = torch.maximum(filled, fill_share(insert, grid))
    return filled > 0


def fill_share(insert: Insert, grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """The share of every voxel inside a sphere; along an axis of one voxel, of the plane through its centre."""
    share = torch.zeros(grid.shape)
    centre = np.asarray(insert.centre_mm)
    inverse = np.linalg.inv(grid.affine)
    place = inverse[:3, :3] @ centre + inverse[:3, 3]
    reach = insert.radius_mm * np.linalg.norm(inverse[:3, :3], axis=1) + 1
    low = np.maximum(np.floor(place - reach), 0).astype(int)
    high = np.minimum(np.ceil(place + reach) + 1, grid.shape).astype(int)
    if (low >= high).any():
        return share
    finer = [
        (np.arange((high[a] - low[a]) * FILL_STEPS) + 0.5) / FILL_STEPS - 0.5 + low[a] if n > 1 else np.zeros(1)
        for a, n in enumerate(grid.shape)
    ]
    points = np.stack(np.meshgrid(*finer, indexing="ij"), axis=-1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = ((points - centre) ** 2).sum(axis=-1) <= insert.radius_mm**2
    cells = [(int(high[a] - low[a]), len(finer[a]) // int(high[a] - low[a])) for a in range(3)]
    part = inside.reshape([size for cell in cells for size in cell]).mean(axis=(1, 3, 5))
    share[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = torch.from_numpy(part).float()
    return share


def _project(
    water: Float[Tensor, "n0 n1 n2"],
    bone: Float[Tensor, "n0 n1 n2"],
    grid: Grid,
    geometry: ProjectionGeometry,
    subrays: int,
    spectrum: Spectrum,
    inserts: Sequence[Insert],
    reference_kev: float,
) -> Float[Tensor, "views rows columns"]:
    """p of the module's notation."""
    energies = np.append(spectrum.energies_kev, reference_kev)
    curves = [attenuation_per_mm(name, energies) for name in ("water", "bone")]
    relative = [curve[:-1] / curve[-1] for curve in curves]
    metals = [attenuation_per_mm(insert.material, spectrum.energies_kev) for insert in inserts]
    mu = torch.from_numpy(np.stack([*relative, *metals]))
    lengths = []
    for k in range(subrays):
        shift = (k + 0.5) / subrays - 0.5
        moved = _shifted(geometry, shift)
        paths = [project_voxels(volume, grid, moved) for volume in (water, bone)]
        lengths.append(torch.stack([path.reshape(-1) for path in paths + _chords(inserts, moved)], dim=-1))
    rays = torch.stack(lengths).double()
    log_share = log_shares(spectrum, dtype=torch.float64) - np.log(subrays)
    parts = []
    for chunk in rays.split(RAYS_PER_CHUNK // subrays, dim=1):
        arriving = log_share - chunk @ mu
        parts.append(-arriving.movedim(0, 1).flatten(1).logsumexp(dim=-1))
    return torch.cat(parts).reshape(geometry.shape).float()


def _shifted(geometry: ProjectionGeometry, columns: float) -> ProjectionGeometry:
    """The scan with its detector moved by a fraction of a column."""
    detector = geometry.detector
    offset = (detector.offset[0], detector.offset[1] + columns * detector.spacing[1])
    return replace(geometry, detector=replace(detector, offset=offset))


def _chords(inserts: Sequence[Insert], geometry: ProjectionGeometry) -> list[Float[Tensor, " m"]]:
    """Length in mm of every ray inside every insert and no earlier one that overlaps with it."""
    if not inserts:
        return []
    rays = geometry.rays(torch.arange(geometry.count), dtype=torch.float64)
    ends: list[tuple[Tensor, Tensor]] = []
    chords = []
    for insert in inserts:
        to_centre = torch.tensor(insert.centre_mm, dtype=torch.float64) - rays.origin
        middle = (to_centre * rays.direction).sum(dim=-1)
        square = insert.radius_mm**2 - (to_centre**2).sum(dim=-1) + middle**2
        half = square.clamp(min=0).sqrt()
        enter, leave = middle - half, middle + half
        shared = sum(
            ((torch.minimum(leave, b) - torch.maximum(enter, a)).clamp(min=0) for a, b in ends),
            torch.zeros_like(half),
        )
        chords.append((leave - enter - shared).clamp(min=0))
        ends.append((enter, leave))
    return chords
