"""Where the stacks of a moving body lie to each other, before slice-to-volume reconstruction: rigid, without a network.

Notation: x a point of stack i (mm, world as its file says), c_i the middle of its mask, A_i the sought rigid motion,

    A_i x = R_i (x - c_i) + c_i + t_i

of the stack as a whole. One stack, that whose slices agree best with their neighbours, stays where it is. Every other
is moved to where it looks most like it,

    A_i = argmax NCC over x of ( I_i(x), I_0(A_i x) )

with I the stack in its mask, zero outside, so that masks pull as well as intensities, blurred alike in all directions.
The search starts at the header's position and at that where the masks' middles meet, each as it is and turned about
each axis, and keeps the best few from one level of blur to the next. Then every stack is aligned with the mean of the
others, and every pass of the scanner through an interleaved stack (`Stack.passes`), whose slices are neighbours both in
space and in time, on its own: slices acquired together share a motion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scanfield.data.slices import SliceSet, intensity_scale
from scanfield.data.stacks import Stack, mask_points
from scanfield.errors import InputError
from scanfield.fields.image import ImageField
from scanfield.metrics.stacks import mean_neighbour_ncc
from scanfield.run import Run
from scanfield.space.pose import rotation_matrix

TURN_DEG = 25.0  # of the starts, about each axis
BLUR = (0.14, 0.07, 0.035)  # standard deviations level by level, in radii of the body
KEPT = (4, 2, 1)  # starts that go on after each level
STEPS, RATE = (40, 30, 30), 0.03  # a level; of Adam, in radii of the body, falling to a tenth
POINTS = (2000, 5000, 8000)  # a level
LEAST_POINTS, LEAST_SLICES = 100, 3  # a pass with fewer is left where its stack is
LEAST_SHOWN = 0.3  # part of the points that must lie in the box of the other stack
FWHM = 2.3548  # of a Gaussian, in standard deviations


@dataclass(frozen=True, eq=False)
class StackAlignment:
    """Where stacks were found.

    Args:
        transforms: (stacks, 4, 4) float64 A_i, world -> world.
        slice_transforms: for each stack (slices, 4, 4), those of its passes; the stack's own without them.
        ncc_before, ncc_after: NCC of each stack with the mean of the others, at the header's position and at the end.
        reference: the stack that stayed.
    """

    transforms: Float[Tensor, "stacks 4 4"]
    slice_transforms: tuple[Float[Tensor, "_ 4 4"], ...]
    ncc_before: tuple[float, ...]
    ncc_after: tuple[float, ...]
    reference: int

    def applied(self, slices: SliceSet) -> SliceSet:
        """The slices of these stacks at their new poses."""
        moves = [self.slice_transforms[s][k] for s, k in zip(slices.stack_index, slices.number, strict=True)]
        return slices.with_initial(torch.stack(moves).to(slices.initial) @ slices.initial)


def register_stacks(
    stacks: Sequence[Stack], run: Run, *, passes: bool = True, reference: int | None = None
) -> StackAlignment:
    """Finds the rigid motion of every stack; seconds on a CPU.

    Args:
        passes: align every pass of an interleaved stack on its own, too.
        reference: the stack that stays (None: the most consistent one).

    Raises:
        InputError: there are fewer than two stacks, a reference that does not exist, or a stack without contrast.
    """
    if len(stacks) < 2:
        raise InputError("stacks are registered to each other: at least two are needed", fix="--registration none")
    if reference is not None and not 0 <= reference < len(stacks):
        raise InputError(f"the reference is one of stacks 0 to {len(stacks) - 1}, got {reference}")
    with run.timed("stack registration"):
        return _Registration(stacks, run).solve(passes, reference)


Target = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Registration:
    def __init__(self, stacks: Sequence[Stack], run: Run) -> None:
        self.stacks, self.draws = stacks, run.generator("stack registration")
        points = [mask_points(stack) for stack in stacks]
        self.middles = [x.mean(dim=0) for x in points]
        spread = [float((x - c).square().sum(-1).mean().sqrt()) for x, c in zip(points, self.middles, strict=True)]
        self.radius = math.sqrt(5 / 3) * float(np.median(spread))  # of a ball of this spread
        self.levels = [[_blurred(stack, blur * self.radius) for stack in stacks] for blur in BLUR]

    def solve(self, passes: bool, reference: int | None) -> StackAlignment:
        if reference is None:
            reference = int(np.argmax([np.nan_to_num(mean_neighbour_ncc(stack), nan=-1.0) for stack in self.stacks]))
        count, last = len(self.stacks), len(BLUR) - 1
        found = torch.zeros(count, 6, dtype=torch.float64)
        start = self._matrices(found)
        others = [i for i in range(count) if i != reference]
        for i in others:
            found[i] = self._search(i, reference)
        for i in others:
            found[i] = self._climb(i, found[i : i + 1], last, self._rest(i, self._matrices(found)))[0][0]
        transforms = self._matrices(found)
        slices = tuple(
            self._passes(i, found, transforms) if passes else transforms[i].expand(stack.count, 4, 4)
            for i, stack in enumerate(self.stacks)
        )
        return StackAlignment(transforms, slices, self._agreement(start), self._agreement(transforms), reference)

    def _search(self, i: int, reference: int) -> Float[Tensor, " 6"]:
        """The best of many starts against the reference alone."""
        turn = math.radians(TURN_DEG) * torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)]).double()
        shifts = [torch.zeros(3, dtype=torch.float64), self.middles[reference] - self.middles[i]]
        starts = torch.stack([torch.cat([r, t]) for t in shifts for r in turn])
        for level, keep in enumerate(KEPT):
            starts, score = self._climb(i, starts, level, _seen(self.levels[level][reference]))
            starts = starts[score.argsort(descending=True)[:keep]]
        return starts[0]

    def _passes(
        self, i: int, found: Float[Tensor, "n 6"], transforms: Float[Tensor, "n 4 4"]
    ) -> Float[Tensor, "slices 4 4"]:
        stack, rest = self.stacks[i], self._rest(i, transforms)
        moves = transforms[i].expand(stack.count, 4, 4).clone()
        groups = stack.passes()
        for group in groups if len(groups) > 1 else []:
            if len(group) < LEAST_SLICES:
                continue
            only = torch.zeros(stack.count, dtype=torch.bool)
            only[group] = True
            moves[only] = self._matrix(i, self._climb(i, found[i : i + 1], len(BLUR) - 1, rest, only)[0][0])
        return moves

    def _rest(self, i: int, transforms: Float[Tensor, "n 4 4"]) -> Target:
        """The mean of all other stacks at their places, and where there is any, at the last level."""
        others = [
            (_seen(field), torch.linalg.inv(transforms[j]).float()) for j, field in enumerate(self.levels[-1]) if j != i
        ]

        def mean(y: Tensor) -> tuple[Tensor, Tensor]:
            total, weight = torch.zeros_like(y[..., 0]), torch.zeros_like(y[..., 0])
            for seen, back in others:
                value, inside = seen(y @ back[:3, :3].T + back[:3, 3])
                total, weight = total + inside * value, weight + inside
            return total / weight.clamp(min=1), (weight > 0).to(y)

        return mean

    def _climb(
        self, i: int, starts: Float[Tensor, "s 6"], level: int, target: Target, only: Tensor | None = None
    ) -> tuple[Float[Tensor, "s 6"], Float[Tensor, " s"]]:
        """Adam on all starts at once: the best parameters met on the way, and their NCC."""
        x, values = self._points(i, level, only)
        if len(x) < LEAST_POINTS:
            return starts, torch.zeros(len(starts))
        centre = self.middles[i].float()
        scale = torch.tensor([1.0] * 3 + [1 / self.radius] * 3)  # so that turning and shifting weigh alike
        parameters = (starts.float() * scale).requires_grad_()
        best, best_score = parameters.detach().clone(), torch.full((len(starts),), -torch.inf)
        optimiser = torch.optim.Adam([parameters])
        for step in range(STEPS[level] + 1):
            optimiser.param_groups[0]["lr"] = RATE / 2**level * 10 ** (-step / STEPS[level])
            p = parameters / scale
            y = (x - centre) @ rotation_matrix(p[:, :3]).transpose(1, 2) + (centre + p[:, 3:])[:, None]
            score = _ncc(values, *target(y))
            better = score.detach() > best_score
            best[better], best_score[better] = parameters.detach()[better], score.detach()[better]
            optimiser.zero_grad()
            (-score.sum()).backward()
            optimiser.step()
        return (best / scale).double(), best_score

    def _points(
        self, i: int, level: int, only: Tensor | None = None
    ) -> tuple[Float[Tensor, "m 3"], Float[Tensor, " m"]]:
        """Random voxels in and around the mask, and what they show."""
        field, stack = self.levels[level][i], self.stacks[i]
        near = torch.ones(stack.scan.grid.shape, dtype=torch.bool)
        if stack.scan.mask is not None:  # and what the blur has reached
            near = _blur(stack, stack.scan.mask.float(), BLUR[level] * self.radius) > 0.02
        if only is not None:
            near = near & only.reshape([-1 if axis == stack.slice_axis else 1 for axis in range(3)])
        flat = near.reshape(-1).nonzero()[:, 0]
        chosen = flat[torch.randperm(len(flat), generator=self.draws)[: POINTS[level]]]
        x = field.grid.to_world(field.grid.voxels(chosen).double()).float()
        return x, field.image.reshape(-1)[chosen]

    def _agreement(self, transforms: Float[Tensor, "n 4 4"]) -> tuple[float, ...]:
        """NCC of each stack with the mean of the others."""
        scores = []
        for i, matrix in enumerate(transforms.float()):
            x, values = self._points(i, len(BLUR) - 1)
            y = (x @ matrix[:3, :3].T + matrix[:3, 3])[None]
            scores.append(float(_ncc(values, *self._rest(i, transforms)(y))))
        return tuple(scores)

    def _matrices(self, parameters: Float[Tensor, "n 6"]) -> Float[Tensor, "n 4 4"]:
        return torch.stack([self._matrix(i, p) for i, p in enumerate(parameters)])

    def _matrix(self, i: int, parameters: Float[Tensor, " 6"]) -> Float[Tensor, "4 4"]:
        c, matrix = self.middles[i], torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = rotation_matrix(parameters[:3])
        matrix[:3, 3] = c + parameters[3:] - matrix[:3, :3] @ c
        return matrix


def _blurred(stack: Stack, sigma_mm: float) -> ImageField:
    """The stack in its mask, zero outside, blurred to `sigma_mm` in all directions, that of its slices included."""
    values = stack.scan.values.float()
    inside = values.reshape(-1) if stack.scan.mask is None else values[stack.scan.mask]
    scale = intensity_scale(inside)
    if scale <= 0 or bool(inside.min() == inside.max()):
        raise InputError("the stack has no contrast in its mask: there is nothing to align", where=stack.scan.source)
    if stack.scan.mask is not None:
        values = values * stack.scan.mask
    return ImageField(_blur(stack, values / scale, sigma_mm), stack.scan.grid)


def _blur(stack: Stack, values: Tensor, sigma_mm: float) -> Tensor:
    sigma = [sigma_mm / s if n > 1 else 0.0 for n, s in zip(values.shape, stack.scan.grid.spacing_mm, strict=True)]
    own = stack.thickness_mm / FWHM  # of the slice itself
    sigma[stack.slice_axis] *= math.sqrt(max(0.0, 1 - (own / sigma_mm) ** 2))
    return torch.from_numpy(gaussian_filter(values.numpy(), sigma, mode="nearest"))


def _seen(field: ImageField) -> Target:
    """What a stack shows at points, and whether they lie in its box."""
    return lambda y: (field(y)[..., 0], field.inside(y).to(y))


def _ncc(values: Float[Tensor, " m"], seen: Float[Tensor, "s m"], weight: Float[Tensor, "s m"]) -> Float[Tensor, " s"]:
    """NCC over the points with weight, for every start; smaller where few points have any."""
    total = weight.sum(-1, keepdim=True).clamp(min=1)
    a = values - (weight * values).sum(-1, keepdim=True) / total
    b = seen - (weight * seen).sum(-1, keepdim=True) / total
    both, aa, bb = ((weight * product).sum(-1) for product in (a * b, a * a, b * b))
    share = (total[:, 0] / len(values) / LEAST_SHOWN).clamp(max=1)
    return share * both / (aa * bb).clamp(min=1e-12).sqrt()
