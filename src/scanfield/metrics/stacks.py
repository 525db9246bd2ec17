"""How consistent stacks and slices are: which stack moved least, which slices are spoilt.

Notation: s_k the pixels of slice k of a stack (zero outside its mask); y_i and p_i measured and predicted pixels of
slice i.

    neighbour NCC   mean over k of NCC(s_k, s_{k+1}) over the pixels in either mask; grows with consistency
    motion rank     the matrix S = [s_1 ... s_K] of a still body has neighbouring columns alike, so few singular values
                    hold nearly all of it; motion needs more (Kainz et al., IEEE Trans. Med. Imaging 34:1901, 2015).
                    The smallest r with |S - S_r| <= 0.1 |S| (Frobenius; S_r of rank r), between whole numbers by
                    linear interpolation, over K; falls with consistency. Compare stacks of one protocol
    agreement       NCC(y_i, p_i), and the root mean square of y_i - p_i
    outlierness     (median NCC - NCC_i) / (1.4826 MAD): robust standard deviations below the usual slice
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scanfield.data.stacks import Stack

RANK_ERROR = 0.1
LEAST_PIXELS = 20  # of a slice, or of two neighbours: fewer say nothing
RIM = 0.25  # of the largest slice's area
SUSPICIOUS, BRIGHTER = 3.0, 1.4  # robust standard deviations of NCC; ratio of brightness
_MAD = 1.4826  # standard deviations of a normal distribution per median absolute deviation
_LEAST_SPREAD = 0.01  # of NCC: slices that all agree perfectly have no outliers


@dataclass(frozen=True, eq=False)
class SliceAgreement:
    """How well n slices agree with what is predicted for them.

    Args:
        ncc: (n,) normalised cross-correlation; NaN for slices of fewer than `LEAST_PIXELS` pixels or without contrast.
        rmse: (n,) root mean square difference, in the unit of the pixels.
        pixels: (n,) number of pixels.
    """

    ncc: Float[Tensor, " n"]
    rmse: Float[Tensor, " n"]
    pixels: Int[Tensor, " n"]

    def outlierness(self) -> Float[Tensor, " n"]:
        """Of each slice, see `outlierness`."""
        return outlierness(self.ncc)

    def ranking(self) -> list[int]:
        """The slices, the least consistent first; those without an NCC are left out."""
        order = torch.argsort(self.ncc.nan_to_num(torch.inf), stable=True)
        return [k for k in order.tolist() if not bool(self.ncc[k].isnan())]


def outlierness(ncc: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Robust standard deviations below the median; NaN where there is no NCC."""
    known = ncc[~ncc.isnan()]
    if len(known) == 0:
        return ncc
    median = known.median()
    spread = (_MAD * (known - median).abs().median()).clamp(min=_LEAST_SPREAD)
    return (median - ncc) / spread


def slice_agreement(
    measured: Float[Tensor, " m"], predicted: Float[Tensor, " m"], slice_index: Int[Tensor, " m"], count: int
) -> SliceAgreement:
    """Agreement of every slice, 0 to count - 1, over its pixels."""
    y, p, index = measured.double().cpu(), predicted.double().cpu(), slice_index.cpu()

    def total(values: Tensor) -> Tensor:
        return torch.zeros(count, dtype=torch.float64).index_add_(0, index, values)

    pixels = total(torch.ones_like(y))
    n = pixels.clamp(min=1)
    dy, dp = y - (total(y) / n)[index], p - (total(p) / n)[index]
    vy, vp, both = total(dy**2), total(dp**2), total(dy * dp)
    tiny = torch.finfo(torch.float32).eps ** 2  # of a slice's energy: single precision carries no contrast below
    flat = (vy <= tiny * total(y**2)) | (vp <= tiny * total(p**2))
    unknown = (pixels < LEAST_PIXELS) | flat
    ncc = torch.where(unknown, torch.nan, both / (vy * vp).clamp(min=1e-300).sqrt())
    rmse = torch.where(pixels > 0, (total((y - p) ** 2) / n).sqrt(), torch.nan)
    return SliceAgreement(ncc, rmse, pixels.long())


def detection_auc(score: Float[Tensor, " n"], spoilt: Bool[Tensor, " n"]) -> float:
    """Probability that a spoilt slice has a higher score than a sound one (ties count half); slices without a score
    (NaN) are left out. NaN where either kind is missing."""
    known = ~score.isnan()
    high, low = score[known & spoilt], score[known & ~spoilt]
    if not len(high) or not len(low):
        return float("nan")
    wins = (high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()
    return float(wins.mean())


def neighbour_ncc(stack: Stack) -> Float[Tensor, " k"]:
    """NCC of slices k and k + 1, (slices - 1,); NaN where fewer than `LEAST_PIXELS` pixels lie in either mask."""
    planes, inside = _masked(stack)
    either = inside[:-1] | inside[1:]
    pair, row, column = either.nonzero().unbind(-1)
    a, b = planes[pair, row, column], planes[pair + 1, row, column]
    return slice_agreement(a, b, pair, max(0, stack.count - 1)).ncc


def mean_neighbour_ncc(stack: Stack) -> float:
    """Mean of `neighbour_ncc`; NaN where no two neighbours can be compared."""
    return float(neighbour_ncc(stack).nanmean())


def lone_slices(stack: Stack) -> Float[Tensor, " slices"]:
    """For every slice, its better `neighbour_ncc`: low where a slice is like neither neighbour, NaN without any."""
    between = neighbour_ncc(stack).nan_to_num(-torch.inf)
    edge = between.new_full((1,), -torch.inf)
    best = torch.maximum(torch.cat([edge, between]), torch.cat([between, edge]))
    return torch.where(best.isinf(), torch.nan, best)


def relative_brightness(stack: Stack) -> Float[Tensor, " slices"]:
    """Mean intensity of every slice in its mask, over the median of that of its neighbours (three on either side).

    A slice that lost signal is far below 1. NaN for slices of fewer than `LEAST_PIXELS` pixels.
    """
    planes, inside = _masked(stack)
    pixels = inside.sum(dim=(1, 2))
    mean = torch.where(pixels < LEAST_PIXELS, torch.nan, planes.double().sum(dim=(1, 2)) / pixels)
    edge = mean.new_full((3,), torch.nan)
    padded = torch.cat([edge, mean, edge])
    around = torch.stack([padded[k : k + len(mean)] for k in (0, 1, 2, 4, 5, 6)])
    return mean / around.nanmedian(dim=0).values


def suspicious_slices(stack: Stack) -> dict[int, str]:
    """Slices that are unlike both neighbours, or much darker or brighter than theirs, and why.

    Slices at the rim of the body, of less than a quarter of the largest one's area, differ anyway and are not judged.
    Motion makes neighbours differ, too: of a stack that moved much, little can be said before it is reconstructed.
    """
    area = _masked(stack)[1].sum(dim=(1, 2))
    rim = area < RIM * area.max()
    unlike = outlierness(torch.where(rim, torch.nan, lone_slices(stack))) > SUSPICIOUS
    ratio = torch.where(rim, torch.nan, relative_brightness(stack))
    found = {}
    for k in range(stack.count):
        if float(ratio[k]) < 1 / BRIGHTER:
            found[k] = "dark"
        elif float(ratio[k]) > BRIGHTER:
            found[k] = "bright"
        elif bool(unlike[k]):
            found[k] = "unlike"
    return found


def motion_rank(stack: Stack) -> float:
    """Rank that the slices with a mask need, over their number, in (0, 1]."""
    planes, inside = _masked(stack)
    matrix = planes[inside.flatten(1).any(dim=1)].flatten(1).double()
    energy = torch.linalg.eigvalsh(matrix @ matrix.T).flip(0).clamp(min=0)
    if float(energy.sum()) == 0:
        return float("nan")
    left = torch.cat([energy.new_ones(1), (1 - energy.cumsum(0) / energy.sum()).clamp(min=0)]).sqrt()
    r = int((left <= RANK_ERROR).nonzero()[0, 0])
    between = float((left[r - 1] - RANK_ERROR) / (left[r - 1] - left[r]))
    return (r - 1 + between) / len(matrix)


def mask_volume_ml(stack: Stack) -> float:
    """Volume of the mask, slices as far apart as they are, in millilitres."""
    voxels = stack.scan.grid.size if stack.scan.mask is None else int(stack.scan.mask.sum())
    return voxels * stack.scan.grid.voxel_volume_mm3 / 1000


def _masked(stack: Stack) -> tuple[Tensor, Tensor]:
    values = stack.scan.values.float()
    mask = torch.ones_like(values, dtype=torch.bool) if stack.scan.mask is None else stack.scan.mask
    return stack.planes(values * mask), stack.planes(mask)
