"""One training in several processes, started by `torchrun`.

    torchrun --nproc-per-node 2 -m scanfield train ...

Every process runs the whole program with the same seed: it draws the same batches, computes the loss of its part of
each (`Run.workers.share`), and steps with the mean of all gradients. Where the loss is a mean over the members of a
batch, that is the gradient of the whole batch, and so the training is that of one process up to rounding. Process 0
writes the folder; the others read it where a run is continued.

On the CPU processes talk through gloo; on GPUs gradients travel by NCCL, one GPU for each process of a machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scanfield.errors import InputError, ScanfieldError
from scanfield.run import ALONE, Workers

Item = TypeVar("Item")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


class Processes:
    """The processes of `torch.distributed`'s default group; see `run.Workers`.

    Args:
        rank: number of this process.
        count: how many there are.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self.shared = False

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th item, from this process's own number on.

        Raises:
            ValueError: the items cannot be cut into equal parts.
        """
        if len(items) % self.count:
            raise ValueError(f"{len(items)} items cannot be shared equally by {self.count} processes")
        self.shared = True
        return items[self.rank :: self.count]

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replaces the parameters' gradients by their means over the processes; where no process has one, none."""
        for family in _by_kind(list(parameters)):
            parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.detach().flatten() for p in family]
            there = parts[0].new_tensor([p.grad is not None for p in family])
            flat = torch.cat([*parts, there])
            _add_up(flat)
            *means, there = (flat / self.count).split([*map(len, parts), len(family)])
            for parameter, mean, anywhere in zip(family, means, (there > 0).tolist(), strict=True):
                if parameter.grad is not None:
                    parameter.grad.copy_(mean.view_as(parameter))  # in place: some optimisers own their gradients
                elif anywhere:
                    parameter.grad = mean.view_as(parameter).clone()

    def means(self, values: Sequence[float]) -> list[float]:
        """Mean over the processes, the same numbers in all of them."""
        together = torch.tensor(values, dtype=torch.float64)
        _add_up(together)
        return [float(value) for value in together / self.count]

    def any(self, flag: bool) -> bool:
        """Whether one of them says yes."""
        votes = torch.tensor(int(flag))
        _add_up(votes)
        return bool(votes > 0)


@contextmanager
def joined(device: torch.device) -> Iterator[Workers]:
    """The processes that were started together with this one, while the block runs; `run.ALONE` without torchrun.

    On GPUs, the process's own GPU becomes torch's current one: 'cuda' means it from here on.

    Raises:
        InputError: the environment is not torchrun's; there are fewer GPUs than processes.
    """
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    try:
        found = {name: os.environ[name] for name in VARIABLES}
        rank, count = int(found["RANK"]), int(found["WORLD_SIZE"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"this process was told to be one of several, but the environment does not say which: {error!r}",
            fix="start it with `torchrun --nproc-per-node N -m scanfield train ...`, or unset WORLD_SIZE",
        ) from None
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        own, gpus = int(os.environ.get("LOCAL_RANK", rank)), torch.cuda.device_count()
        if own >= gpus:
            raise InputError(
                f"process {own} of this machine has no GPU of its own: there are {gpus}",
                fix=f"--nproc-per-node {gpus}, or --device cpu",
            )
        torch.cuda.set_device(own)
    dist.init_process_group(backend)
    try:
        yield Processes(rank, count)
    finally:
        dist.destroy_process_group()


def _add_up(tensor: Tensor) -> None:
    """Replaces a tensor by its sum over the processes.

    Raises:
        ScanfieldError: another process has ended.
    """
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        raise ScanfieldError("another process of this training has ended; its own message says why") from error


def _by_kind(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Parameters that can be put into one tensor: same device and type. Every process has the same ones."""
    families: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        families.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return list(families.values())
