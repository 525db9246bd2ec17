"""SCI: spectrum concentrated implicit neural compression (Yang et al., AAAI 2023, arXiv 2209.15180).

Notation: I image, cut into blocks x_i of |x_i| voxels; D(x_i) concentration of a block's spectrum; B bytes of the file;
n_i sine network of block i with P_i weights; b bits a weight; R bits of the coded weights.

    cut         max sum_i D(x_i) |x_i| / |x| over cuts of a tree, at most N blocks        exact, codec.partition
    budget      sum_i P_i = 8 B / b,    P_i ~ |x_i| / D(x_i)                              widths solved from P_i
    fit         theta* = argmin sum_i |x_i| / |x| mean ((n_i - (I - middle) / half)^2)
    quantise    steps with least error at R <= 8 B, then theta* again with theta rounded in the loss (straight through)

The file holds the cut, the widths and the coded weights; everything counts.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.codec.budget import solve_widths
from scanfield.codec.field_file import weight_budget
from scanfield.codec.partition import Cut, adaptive_cut, boxes_of, regular_cut, shares
from scanfield.codec.quantise import straight_through
from scanfield.codec.weights import choose_rungs, coarsened, group_of, quantised
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.blocks import BlockField, Constant
from scanfield.fields.networks.init import set_output_bias
from scanfield.fields.networks.siren import Siren
from scanfield.fitting.groups import OptimiserFactory, ParameterGroup, adam
from scanfield.fitting.log import FitLog
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.image import held_out_error
from scanfield.fitting.schedules import Schedule, cosine, milestones, warm_up
from scanfield.kernels.mlp import Activation, regression_loss
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.samples import random_index
from scanfield.tasks.result import Reconstruction, Spec, render_field, show_field

SHARED_PARTS = 3  # 'layers.0.weight' of all blocks share a step
TASK_BYTES = 48  # what `scanfield compress` adds to the header: type, range
MILESTONES = (0.625, 0.75, 0.875)  # published: 50,000, 60,000 and 70,000 of 80,000 steps
LEAST_POINTS = 64  # of a block in a step
PROBES = 2**15  # voxels that judge a step of the quantiser
LOST = 0.8  # of its voxels' variance: a network that leaves so much has learnt nothing, or there is only noise
LEVELS = 0.01  # a constant block's value is stored in steps of this part of the image's half range


def _adamax(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adamax(parameters, lr=rate)


_OPTIMISERS: dict[str, OptimiserFactory] = {"adam": adam(), "adamax": _adamax}


@dataclass(frozen=True)
class Config:
    """The published setting where the paper and its code state one."""

    budget_bytes: int | None = None
    """bytes of the whole file; unset: 1/64 of two bytes a voxel"""
    bits: float = 16.0
    """bits a weight that the widths are solved for; the coded weights then fill the budget (published: 16 or 32)"""
    partition: Literal["adaptive", "regular", "single"] = "adaptive"
    """blocks where the spectrum is concentrated, equal blocks, or one network"""
    allocation: Literal["concentration", "coefficients", "size", "equal"] = "concentration"
    """weights of a block: its voxels over the concentration of its spectrum, its share of the image's largest cosine
    coefficients (ours), its voxels, or the same for all"""
    blocks: int | None = None
    """most blocks; unset: one for 5444 bytes, as published (1361 numbers of four bytes)"""
    tree_levels: int | None = None
    """how often the image may be halved; unset: published rule, two more than the blocks alone need"""
    layers: int = 5
    """linear layers of every network"""
    funnel: float = 1.0
    """first width over the other widths"""
    first_omega: float = 20.0
    """frequency of the first sine layer, in radians per half extent of a block"""
    hidden_omega: float = 30.0
    """frequency of the other sine layers"""
    seam: float = 0.0
    """half width of the blending between blocks, in voxels (ours); up to 0.5 voxel centres are not blended"""
    optimiser: Literal["adamax", "adam"] = "adamax"
    """published: Adamax with three falls of the rate; adam: with half a cosine (ours)"""
    learning_rate: float = 1e-3
    """rate of the fit"""
    rate_width: int | None = None
    """networks of wider hidden layers get a rate that is as much lower (ours); unset: one rate, as published"""
    steps: int = 80_000
    """steps of the fit"""
    clip_norm: float | None = None
    """largest norm of the gradient; unset: no limit, as published"""
    points_per_step: int = 1_000_000
    """voxels in a step, over all blocks"""
    restarts: int = 0
    """how often networks that learnt nothing are fitted again, from other weights at half the rate (ours)"""
    tuning_steps: int = 0
    """steps after the weights were quantised, with rounded weights in the loss (ours)"""
    tuning_rate: float = 1e-4
    """rate of these steps"""

    @staticmethod
    def fast() -> Config:
        """Minutes on two CPU cores (ours): funnels of fewer bits a weight, tuned after quantisation."""
        return Config(
            bits=6.5,
            allocation="coefficients",
            blocks=16,
            funnel=2.0,
            seam=0.5,
            optimiser="adam",
            learning_rate=3e-3,
            rate_width=16,
            steps=3000,
            restarts=2,
            points_per_step=20_000,
            tuning_steps=500,
            tuning_rate=5e-4,
            clip_norm=1.0,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds; for tests of the plumbing, not for images."""
        return replace(
            Config.fast(), budget_bytes=2000, blocks=4, layers=3, steps=150, tuning_steps=40, points_per_step=600
        )


def supervision(config: Config) -> str:
    """What of an image the fit sees."""
    return "values"


def shared_parts(config: Config) -> int:
    """Weights whose names end in this many equal parts share a step in the file (`codec.weights`)."""
    return SHARED_PARTS


def build(config: Config, spec: Spec, generator: torch.Generator | None = None) -> BlockField:
    """A network in every block, of the widths in the spec. Without a generator the weights are all the same draw."""
    draws = torch.Generator().manual_seed(0) if generator is None else generator
    facts = spec.facts
    boxes = boxes_of(facts["cut"], spec.grid.shape)
    omegas = [config.first_omega, *[config.hidden_omega] * (config.layers - 3)]
    networks: list[nn.Module] = []
    for first, hidden in facts["widths"]:
        if first == 0:
            networks.append(Constant(hidden * LEVELS))
        else:
            sizes = [spec.domain.dims, first, *[hidden] * (config.layers - 2), 1]
            networks.append(Siren(sizes, omegas=[omegas[0], *omegas], generator=draws))
    return BlockField(spec.grid, boxes, networks, seam=config.seam, scale=spec.scale, offset=facts["offset"])


def fit(config: Config, data: Scan, run: Run, *, held_out: Scan | None = None, prior: None = None) -> Reconstruction:
    """Compresses an image: the result's field has the weights that its file will have.

    Args:
        data: an image of one channel; the voxels of its mask, where it has one, are fitted.
        held_out: the same image with a mask of voxels the fit does not see.

    Raises:
        InputError: the image has several channels, is constant, or the budget is too small for any network.
    """
    if data.values.ndim != 3:
        raise InputError("an image of one channel is compressed", where=data.source, fix="extract one channel")
    spec = spec_of(config, data)
    field = build(config, spec, run.generator("weights"))
    blocks = _Blocks(field, data, run)
    blocks.start_at_means()
    field.to(run.device)
    show_field(field, spec, run)
    unseen = None if held_out is None else held_out_error(field, held_out, run.device)

    def stage(
        name: str, steps: int, rate: float, schedule: Schedule, rungs: dict[str, int] | None, blocks: _Blocks = blocks
    ) -> FitLog:
        plan = FitConfig(steps, clip_norm=config.clip_norm, check_every=max(1, steps // 10))
        groups = [
            ParameterGroup(
                block, parameters, rate * blocks.pace(block, config), schedule, _OPTIMISERS[config.optimiser]
            )
            for block, parameters in blocks.parameters().items()
        ]
        return minimise(
            name,
            groups,
            lambda step, batch: {"values": blocks.loss(batch, rungs)},
            lambda step: blocks.batch(config.points_per_step),
            plan,
            run,
            held_out=unseen,
        )

    schedule = milestones(MILESTONES, 0.2) if config.optimiser == "adamax" else warm_up(steps=100, after=cosine(0.01))
    logs = [stage("fit", config.steps, config.learning_rate, schedule, None)]
    for attempt in range(1, config.restarts + 1):
        lost = blocks.lost()
        if run.stop.is_set() or not lost.networks:
            break
        before, errors = lost.states(), lost.errors()
        lost.redraw(run.generator(f"weights {attempt}"))
        logs.append(stage(f"again {attempt}", config.steps, config.learning_rate / 2**attempt, schedule, None, lost))
        lost.keep_better(before, errors)
    result = Reconstruction("sci", config, spec, field, logs=logs)
    state = {name: weight.detach() for name, weight in field.state_dict().items()}
    most = weight_budget(result, budget_bytes(config, data)) - TASK_BYTES
    rungs = choose_rungs(state, most, blocks.distortion, tail=SHARED_PARTS)
    if config.tuning_steps:
        logs.append(stage("quantised", config.tuning_steps, config.tuning_rate, cosine(0.05), rungs))
        rungs = coarsened(field.state_dict(), rungs, most, tail=SHARED_PARTS)
    field.load_state_dict(quantised(field.state_dict(), rungs, tail=SHARED_PARTS))
    return result


class _Blocks:
    """The blocks that have weights, with the voxels they have a say in.

    Args:
        field: the field they belong to.
        data: the image; the voxels of its mask count.
    """

    def __init__(self, field: BlockField, data: Scan, run: Run) -> None:
        shown = torch.ones(data.grid.shape, dtype=torch.bool) if data.mask is None else data.mask
        self.draws, self.device = run.generator("voxels"), run.device
        self.networks: dict[str, Siren] = {}
        self.u: list[Float[Tensor, "n d"]] = []
        self.target: list[Float[Tensor, "n 1"]] = []
        for k, (box, block) in enumerate(zip(field.boxes, field.blocks, strict=True)):
            if not isinstance(block, Siren):
                continue
            wide = field.reach(box)
            window = tuple(slice(start, stop) for start, stop in wide)
            voxel = shown[window].nonzero() + torch.tensor([start for start, _ in wide])
            target = data.values[window][shown[window]].float()[:, None]
            if len(voxel) == 0:  # the mask hides the block: any value will do
                voxel, target = torch.tensor([[start for start, _ in box]]), torch.full((1, 1), field.offset)
            self.networks[f"blocks.{k}."] = block
            self.u.append(field.local(box, voxel.float()).to(run.device))
            self.target.append(((target - field.offset) / field.scale).to(run.device))
        total = sum(map(len, self.u))
        self.share = [len(u) / total for u in self.u]

    def start_at_means(self) -> None:
        """Without this the output biases alone take tens of thousands of the published steps."""
        for network, target in zip(self.networks.values(), self.target, strict=True):
            set_output_bias(network, float(target.mean()))

    def lost(self) -> _Blocks:
        """The blocks whose networks leave (nearly) all of their variance."""
        some, errors = copy.copy(self), self.errors()
        chosen = [
            error > LOST * float(target.var(correction=0)) for error, target in zip(errors, self.target, strict=True)
        ]
        some.networks = dict(itertools.compress(self.networks.items(), chosen))
        some.u = list(itertools.compress(self.u, chosen))
        some.target = list(itertools.compress(self.target, chosen))
        some.share = list(itertools.compress(self.share, chosen))
        return some

    def errors(self) -> list[float]:
        """Mean squared error of every network, on an even part of its voxels."""
        every = max(1, sum(map(len, self.u)) // PROBES)
        with torch.no_grad():
            parts = zip(self.networks.values(), self.u, self.target, strict=True)
            return [float((network(u[::every]) - target[::every]).square().mean()) for network, u, target in parts]

    def states(self) -> list[dict[str, Tensor]]:
        """Copies of all networks' weights."""
        return [{name: w.detach().clone() for name, w in net.state_dict().items()} for net in self.networks.values()]

    def redraw(self, generator: torch.Generator) -> None:
        """Other initial weights for all networks."""
        for network in self.networks.values():
            sizes = [network.linears[0].in_features, *(layer.out_features for layer in network.linears)]
            network.load_state_dict(Siren(sizes, omegas=network.omegas, generator=generator).state_dict())
        self.start_at_means()

    def keep_better(self, before: list[dict[str, Tensor]], errors: list[float]) -> None:
        """Takes the weights of before back where they had the smaller error."""
        for network, state, old, new in zip(self.networks.values(), before, errors, self.errors(), strict=True):
            if not new < old:
                network.load_state_dict(state)

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """What is fitted, by block."""
        return {name: list(network.parameters()) for name, network in self.networks.items()}

    def pace(self, name: str, config: Config) -> float:
        """Factor of a network's rate: what one weight changes grows with the number of its neighbours."""
        width = self.networks[name].linears[-1].in_features
        return 1.0 if config.rate_width is None else min(1.0, config.rate_width / width)

    def batch(self, points: int) -> list[tuple[Tensor, Tensor]]:
        """About `points` voxels, dealt to the blocks by their sizes."""
        chosen = []
        for u, target, share in zip(self.u, self.target, self.share, strict=True):
            size = max(LEAST_POINTS, math.ceil(share * points))
            if size < len(u):
                index = random_index(len(u), size, self.draws).to(self.device)
                u, target = u[index], target[index]
            chosen.append((u, target))
        return chosen

    def loss(self, batch: list[tuple[Tensor, Tensor]], rungs: dict[str, int] | None) -> Float[Tensor, ""]:
        """sum_i |x_i| / |x| mean (n_i - target)^2, with rounded weights where there are rungs."""

        def used(name: str, weight: Tensor) -> Tensor:
            return weight if rungs is None else straight_through(weight, rungs[group_of(name, SHARED_PARTS)])

        total = torch.zeros((), device=self.device)
        for (name, network), (u, target), share in zip(self.networks.items(), batch, self.share, strict=True):
            weights = [used(f"{name}layers.{k}.weight", w) for k, w in enumerate(network.weights)]
            biases = [used(f"{name}layers.{k}.bias", b) for k, b in enumerate(network.biases)]
            assert isinstance(network.activation, Activation)
            total = total + share * regression_loss(u, target, weights, biases, network.activation)
        return total

    def distortion(self, state: dict[str, Tensor]) -> float:
        """The loss of other weights, on an even part of the voxels."""
        error, every = 0.0, max(1, sum(map(len, self.u)) // PROBES)
        with torch.no_grad():
            for (name, network), u, target, share in zip(
                self.networks.items(), self.u, self.target, self.share, strict=True
            ):
                own = {key.removeprefix(name): weight for key, weight in state.items() if key.startswith(name)}
                values = torch.func.functional_call(network, own, (u[::every],))
                error += share * float((values - target[::every]).square().mean())
        return error


def spec_of(config: Config, data: Scan) -> Spec:
    """The cut, the widths of every block, and the scale to [-1, 1]."""
    values = data.values.float()
    low, high = float(values.min()), float(values.max())
    if high == low:
        raise InputError("the image is constant: there is nothing to compress", where=data.source)
    domain = Domain.of_grid(data.grid)
    budget = budget_bytes(config, data)
    scaled = (100 * (values.double() - low) / (high - low)).numpy()  # D depends on the mean: published 0..100
    cut = _cut(config, scaled, budget)
    facts: dict[str, Any] = {"offset": (low + high) / 2, "cut": cut.code, "widths": []}
    spec = Spec(domain, data.grid, data.unit, (high - low) / 2, facts)
    weights = 8 * (budget - _overhead(config, spec, len(cut.boxes))) / config.bits
    active = list(range(len(cut.boxes)))
    widths: dict[int, list[int]] = {}
    while active:  # what a dropped block would have got goes to the others
        part = shares(scaled, [cut.boxes[k] for k in active], config.allocation, numbers=int(weights))
        found = {
            k: solve_widths(int(weights * p), inputs=domain.dims, layers=config.layers, ratio=config.funnel)
            for k, p in zip(active, part, strict=True)
        }
        dropped = [k for k, sizes in found.items() if sizes is None]
        if not dropped:
            widths = {k: sizes for k, sizes in found.items() if sizes is not None}
            break
        active.remove(min(dropped, key=lambda k: part[active.index(k)]))
    if not widths:
        raise InputError(
            f"{budget} bytes are too few for a network of {config.layers} layers",
            fix="allow more bytes, or fewer layers",
        )
    for k, box in enumerate(cut.boxes):
        mean = float(scaled[tuple(slice(a, b) for a, b in box)].mean()) / 50 - 1
        facts["widths"].append([widths[k][1], widths[k][2]] if k in widths else [0, round(mean / LEVELS)])
    return spec


def budget_bytes(config: Config, data: Scan) -> int:
    """Bytes of the whole file."""
    return data.grid.size * 2 // 64 if config.budget_bytes is None else config.budget_bytes


def _cut(config: Config, values: Float[np.ndarray, "n0 n1 n2"], budget: int) -> Cut:
    blocks = max(1, budget // (4 * 1361)) if config.blocks is None else config.blocks
    if config.partition == "single":
        blocks = 1
    if config.partition != "adaptive":
        return regular_cut(values.shape, blocks=blocks)
    dims = sum(n > 1 for n in values.shape)
    levels = int(math.log(blocks, 2**dims)) + 2 if config.tree_levels is None else config.tree_levels
    return adaptive_cut(values, blocks=blocks, levels=levels)


def _overhead(config: Config, spec: Spec, blocks: int) -> int:
    """Bytes beside the weights: header, tables, what the task adds; 3 bytes for the widths of a block."""
    empty = Reconstruction("sci", config, spec, nn.Module())
    tables = 8 * 2 * config.layers
    return -weight_budget(empty, 0) + TASK_BYTES + tables + 3 * blocks


# What every method offers -----------------------------------------------------------------------------------------

render = render_field


def predict(result: Reconstruction, data: Scan) -> Tensor:
    """The field at the voxels of `data`."""
    return render_field(result, data.grid)
