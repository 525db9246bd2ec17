"""Learning from many: batches of members, codes of subjects (auto-decoder), encoders (amortised), and watching others.

Notation: theta the weights of a network that all share, z_i the code of subject i, E an encoder, D_i the data of i.

    auto-decoder    theta*, z* = argmin mean_i loss(theta, z_i, D_i) + lambda(step) prior(z_i)
                    of a new subject: z = argmin loss(theta*, z, D) + lambda prior(z)
    amortised       theta*, E* = argmin mean_i loss(theta, E(image_i), D_i)
                    of a new subject: E(image)

Both are `fitting.minimise` with batches of members, so rates, schedules, checkpoints, early stopping (patience) and
resuming are those of every fit. The auto-decoder is that of DeepSDF (Park et al., CVPR 2019, section 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.errors import InputError
from scanfield.fields.condition import LatentTable
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig, Weight, minimise
from scanfield.fitting.schedules import Schedule, constant
from scanfield.run import Image, Run, Shown
from scanfield.space.grid import Grid

T = TypeVar("T")
Terms = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Draw:
    """A member in a batch.

    Args:
        index: which one, from 0.
        generator: on the CPU, for what is drawn of this member in this step: points, frames, augmentation.
    """

    index: int
    generator: torch.Generator


class Epochs:
    """Batches of members: step -> the members of that step.

    Each epoch is another order of all members; batches follow one another through it and on into the next, so all have
    the same size. Everything is a function of the run's seed and the step, and so a resumed fit sees the same batches.
    Several processes get equal parts of every batch (`fitting.parallel`), with the same draws that one process makes.

    Args:
        count: number of members (or of whatever else is drawn: frames, slices).
        size: members in a batch.
        run: whose seed and processes.
        name: of the generator; one for every set of batches in a run.

    Raises:
        InputError: there is no member, or a batch is empty or cannot be cut into equal parts for the processes.
    """

    def __init__(self, count: int, size: int, run: Run, *, name: str = "members") -> None:
        if count < 1 or size < 1:
            raise InputError(f"a batch needs a member at least, got {size} of {count}")
        if size % run.workers.count:
            raise InputError(
                f"a batch of {size} cannot be shared equally by {run.workers.count} processes",
                fix=f"choose a batch of {-(-size // run.workers.count) * run.workers.count}, or fewer processes",
            )
        self.count, self.size, self.workers = count, size, run.workers
        self._seed = int(torch.randint(2**62, (), generator=run.generator(name)))
        self._orders: dict[int, list[int]] = {}

    def __call__(self, step: int) -> list[Draw]:
        """This process's part of the batch."""
        places = range(step * self.size, (step + 1) * self.size)
        return [Draw(self._member(k), _generator(self._seed, 1, k)) for k in self.workers.share(places)]

    def epoch(self, step: int) -> int:
        """Number of the epoch in which a step begins, from 0."""
        return step * self.size // self.count

    def steps(self, epochs: int) -> int:
        """Steps after which every member was drawn so many times at least."""
        return -(-epochs * self.count // self.size)

    def _member(self, place: int) -> int:
        epoch, within = divmod(place, self.count)
        if epoch not in self._orders:
            generator = _generator(self._seed, 0, epoch)
            kept = {e: order for e, order in self._orders.items() if e == epoch - 1}  # a batch may span two
            self._orders = kept | {epoch: torch.randperm(self.count, generator=generator).tolist()}
        return self._orders[epoch][within]


def ramp(steps: int, top: float = 1.0) -> Callable[[int], float]:
    """A weight that rises linearly from 0 to `top` in so many steps and stays there."""
    return lambda step: top * min(1.0, step / steps) if steps > 0 else top


def auto_decode(
    stage: str,
    groups: Sequence[ParameterGroup],
    table: LatentTable,
    loss: Callable[[int, Float[Tensor, "b k"], list[Draw]], Terms],
    members: Epochs,
    plan: FitConfig,
    run: Run,
    *,
    prior: Weight,
    squared: bool = True,
    subjects: Sequence[int] | None = None,
    weights: Mapping[str, Weight] | None = None,
    held_out: Callable[[], float] | None = None,
) -> FitLog:
    """Learns a network and the codes of all subjects, in place.

    Args:
        stage: name in the log and of the checkpoint.
        groups: the network's parameters and, in a group with a rate of its own, the table's.
        table: the codes, on the run's device.
        loss: step, codes of the members of the batch, and the members -> named terms without a prior; means over the
            members, so that parts of a batch can be averaged.
        members: the batches.
        plan: how long; patience and keep_best need `held_out`.
        prior: lambda, a number or a function of the step (`ramp`); the term is called 'prior'.
        squared: prior |z|^2; else |z|.
        subjects: the row of the table for every member, where members are not subjects but their frames or slices.
        weights: of the terms of `loss`.
        held_out: error on subjects that are not learned from, see `infer` and `watch`.
    """

    def whole(step: int, drawn: list[Draw]) -> Terms:
        rows = [draw.index if subjects is None else subjects[draw.index] for draw in drawn]
        index = torch.tensor(rows, device=table.free.device)
        size = table.prior(index) if squared else table.norm(index)
        return {**loss(step, table(index), drawn), "prior": size}

    return minimise(
        stage, groups, whole, members, plan, run, weights={**(weights or {}), "prior": prior}, held_out=held_out
    )


def infer(
    network: nn.Module,
    start: Float[Tensor, "b k"],
    loss: Callable[[int, Float[Tensor, "b k"]], Terms],
    plan: FitConfig,
    run: Run,
    *,
    rate: float,
    schedule: Schedule = constant,
    prior: float = 0.0,
    squared: bool = True,
    stage: str = "codes",
) -> tuple[Float[Tensor, "b k"], FitLog]:
    """Codes of subjects that the network has not seen; the network stays as it is.

    Works inside `torch.no_grad` too, so that a training can watch how well it does on others: with `run.again(quiet=
    True)`, which leaves its own checkpoints and generators alone.

    Args:
        network: what `loss` evaluates; frozen, and in evaluation mode, meanwhile.
        start: where the codes start, such as zeros or the mean of a `LatentTable`; on the run's device.
        loss: step and codes -> named terms without a prior. For several subjects: the sum of theirs, so that none
            depends on how many there are.
        rate, schedule: of Adam.
        prior, squared: see `auto_decode`; the prior is the sum over the subjects, too.

    Returns:
        The codes, without gradient, and the log.
    """
    table = LatentTable.of(start)
    index = torch.arange(len(start), device=start.device)

    def whole(step: int, batch: None) -> Terms:
        size = table.prior(index) if squared else table.norm(index)
        return {**loss(step, table(index)), "prior": len(start) * size}

    group = ParameterGroup("codes", [table.free], rate, schedule)
    with torch.enable_grad(), _frozen(network):
        log = minimise(stage, [group], whole, lambda step: None, plan, run, weights={"prior": prior})
    return table.codes().detach(), log


def amortise(
    stage: str,
    groups: Sequence[ParameterGroup],
    loss: Callable[[int, list[T]], Terms],
    members: Epochs,
    draw: Callable[[Draw], T],
    plan: FitConfig,
    run: Run,
    *,
    weights: Mapping[str, Weight] | None = None,
    held_out: Callable[[], float] | None = None,
) -> FitLog:
    """Learns an encoder and a network that what it makes of an image conditions, in place.

    Args:
        groups: the encoder's and the network's parameters.
        loss: step and the batch -> named terms: means over the members, so that parts of a batch can be averaged.
        draw: what a member contributes to a batch, such as a crop and points in it; draws from the member's generator.
        members, plan, weights, held_out: see `auto_decode`.
    """
    return minimise(
        stage,
        groups,
        loss,
        lambda step: [draw(member) for member in members(step)],
        plan,
        run,
        weights=weights,
        held_out=held_out,
    )


def watch(count: int, error: Callable[[int], float], *modules: nn.Module) -> Callable[[], float]:
    """Held-out data for `minimise`: the mean of every member's error, with the modules in evaluation mode.

    Args:
        count: number of members that are watched.
        error: index of a member -> its error (smaller is better).

    Raises:
        InputError: there is nobody to watch.
    """
    if count < 1:
        raise InputError("nobody is watched: the cohort has no image in the split 'validation'")

    def mean() -> float:
        with _evaluated(modules):
            return sum(error(k) for k in range(count)) / count

    return mean


def show_member(run: Run, choose: Callable[[], Shown], *modules: nn.Module) -> None:
    """Lets whoever watches a training see what it makes of one of its members: called before the first stage. The
    training ends with the same bits as without.

    Args:
        choose: chooses the member and makes ready what stays as it is; called only where somebody watches. Preparing
            its image should cost no more than a few steps: the first time nobody knows what it costs.
        modules: put into evaluation mode while it is drawn.
    """
    if run.preview is None:
        return
    shown = choose()

    def prepare() -> Image:
        with _evaluated(modules):
            image = shown.prepare()

        def drawn(grid: Grid) -> Tensor:
            with _evaluated(modules):
                return image(grid)

        return drawn

    run.show_prepared(replace(shown, prepare=prepare))


@contextmanager
def _evaluated(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode for a moment."""
    parts = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in parts:
            part.training = False
        yield
    finally:
        for part, training in parts:
            part.training = training


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """No gradients to a network's parameters, and evaluation mode, for a moment."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        with _evaluated([network]):
            yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU whose seed is a hash of some numbers."""
    digest = hashlib.sha256(":".join(map(str, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
