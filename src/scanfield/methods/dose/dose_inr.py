"""Dose-INR (Vasudevan et al., Phys. Med. Biol. 67:125014, 2022): a dose distribution as a small sine network.

The rate is the input: b bits per voxel of the box that holds all dose give the bytes, the bytes and the number of
layers give the width. One network per plan is fitted to the dose itself:

    mean over voxels of (f(x) - D(x))^2 / D_max^2  ->  min,      f = D_max / 2 (1 + SIREN(u(x)))

Two accountings of the same bytes. 'float32', as published: b N / 32 parameters, all voxels of the box are fitted.
'written', ours: what the file holds. Where there is no dose at all (outside the body) is stored as a mask and neither
fitted nor rendered; weights are rounded to steps that the budget allows, which makes the network about four times as
large, and the last part of the fit runs on the rounded weights (straight-through gradients, Bengio et al. 2013).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from scanfield.codec.mask import encode_mask
from scanfield.codec.quantise import straight_through
from scanfield.codec.text import compress_text
from scanfield.codec.weights import quantised, rungs_for_bits, size_of
from scanfield.data.dose import Dose, box_of, cropped
from scanfield.errors import InputError
from scanfield.fields.encodings.frequency import Identity
from scanfield.fields.field import Field, read_out
from scanfield.fields.heads import LinearHead
from scanfield.fields.image import nearest
from scanfield.fields.networks.init import set_output_bias, spread_biases
from scanfield.fields.networks.layers import FullyConnected
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.siren import Siren
from scanfield.fitting.groups import ParameterGroup, adam
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.schedules import Schedule, cosine, warm_up
from scanfield.kernels.mlp import Activation, regression_loss
from scanfield.losses.values import value_loss
from scanfield.methods.config import to_json
from scanfield.run import Run
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.samples import random_index
from scanfield.tasks.result import Reconstruction, Spec, show_field

BITS_A_NUMBER = 8.1  # that a rounded weight takes in the file: decides the width; the steps then meet the budget
FINEST_BITS, FINER_BIASES, FINER = 12, 12, 4  # 4 rungs are a bit
MARGIN = 1.0  # of the bytes for weights; they shrink a little while the rounded weights are fitted
OVERHEAD = 80  # bytes of the file besides its facts, weights and mask
FINAL_RATE = 0.01
WIDEST_AT_RATE = 96  # of units: at 193 the full rate cost 8 dB
CHECKED = 2**15  # voxels that choose the best state
CHUNK = 2**16


@dataclass(frozen=True)
class Config:
    """The published setting; depth, frequencies and steps are not stated in its abstract and are ours."""

    bits_per_voxel: float = 1.0
    """the rate: bits of the model per voxel of the box that holds all dose"""
    accounting: Literal["float32", "written"] = "float32"
    """what the rate counts: 32 bits a parameter, as published, or the bytes of the file with rounded weights (ours)"""
    activation: Literal["sine", "relu"] = "sine"
    """sine, or the network it is compared with"""
    hidden_layers: int = 5
    """layers with an activation; `scanfield dose --architecture` searches for the best number at the rate"""
    width: int | None = None
    """width of the hidden layers; unset: what the rate allows"""
    first_omega: float = 30.0
    """frequency of the first sine layer: the bandwidth, in radians per half extent of the box's longest side"""
    hidden_omega: float = 30.0
    """frequency of the other sine layers"""
    steps: int = 20_000
    """optimisation steps"""
    learning_rate: float = 1e-4
    """Adam's rate at the beginning, of networks up to 96 wide; wider ones begin lower, by 96 / width (ours)"""
    points_per_step: int = 16_384
    """voxels drawn per step"""
    rounded_share: float = 0.25
    """with written accounting: the last part of the steps, taken with rounded weights"""

    def __post_init__(self) -> None:
        if not self.bits_per_voxel > 0:
            raise InputError(f"the bits per voxel must be positive, got {self.bits_per_voxel:g}")
        if self.hidden_layers < 1 or (self.width is not None and self.width < 1):
            raise InputError("a network needs at least one hidden layer of at least one unit")
        if not 0 < self.rounded_share < 1:
            raise InputError(f"the share of steps with rounded weights lies between 0 and 1, got {self.rounded_share}")

    @staticmethod
    def fast() -> Config:
        """A minute or two on two CPU cores; written accounting, three layers, a ten times higher rate (ours)."""
        return Config(accounting="written", hidden_layers=3, steps=4000, learning_rate=1.5e-3, points_per_step=4096)

    @staticmethod
    def tiny() -> Config:
        """Seconds; for tests of the plumbing. Small phantoms have few voxels, so the rate is high."""
        return Config(bits_per_voxel=64.0, hidden_layers=2, steps=60, learning_rate=2e-3, points_per_step=512)


def build(config: Config, spec: Spec) -> Field:
    """The network on the unit coordinates of the box that holds all dose, scaled to Gy."""
    generator = torch.Generator().manual_seed(spec.facts["weights_seed"])
    dims, hidden = spec.domain.dims, [int(spec.facts["width"])] * config.hidden_layers
    network: FullyConnected
    if config.activation == "sine":
        omegas = [config.first_omega, *[config.hidden_omega] * (config.hidden_layers - 1)]
        network = Siren([dims, *hidden, 1], omegas=omegas, generator=generator)
    else:
        network = MLP([dims, *hidden, 1], generator=generator)
        spread_biases(network, generator)
    return Field(spec.domain, Identity(dims), network, LinearHead(spec.scale, spec.scale))


def fit(config: Config, data: Dose, run: Run, *, held_out: Dose | None = None, prior: None = None) -> Reconstruction:
    """Fits a network to a dose.

    Args:
        data: the dose; the voxels of its mask, where it has one, are fitted.
        held_out: the same dose with a mask of voxels the fit does not see. Without it the state is kept that is nearest
            to the dose itself, which is what is to be stored.

    Raises:
        InputError: the bytes do not hold a network.
    """
    box = cropped(data)
    mask = _support(box)
    whole = bool(mask.all()) or config.accounting == "float32"
    spec = _spec(config, data, box, None if whole else mask, run)
    field = build(config, spec).to(run.device)
    show_field(field, spec, run)
    x, target = _targets(box, None if whole else mask, run.device)
    assert isinstance(field.network, FullyConnected)
    set_output_bias(field.network, float(target.mean()) / spec.scale - 1)
    seen = (x, target)
    if held_out is not None:
        seen = _targets(_cropped_like(held_out, data), None if whole else mask, run.device)
    check = _check(config, field, spec, seen, run)
    draws, peak = run.generator("voxels"), 2 * spec.scale

    def batches(step: int) -> Int[Tensor, " m"]:
        return random_index(len(x), config.points_per_step, draws).to(run.device)

    def loss(step: int, index: Int[Tensor, " m"]) -> dict[str, Tensor]:
        return {"dose": value_loss(field, x[index], target[index]) / peak**2}

    def rounded_loss(step: int, index: Int[Tensor, " m"]) -> dict[str, Tensor]:
        return {"dose": _rounded_loss(field, chosen, x[index], target[index]) / peak**2}

    rounds = config.accounting == "written"
    last = round(config.steps * config.rounded_share) if rounds else 0
    first = config.steps - last
    curve = warm_up(max(1, config.steps // 20), cosine(FINAL_RATE))
    plan = FitConfig(first, check_every=max(1, first // 4), keep_best=not rounds)
    group = _group(config, field, lambda step, _: curve(step, config.steps))
    logs = [minimise("fit", [group], loss, batches, plan, run, held_out=check(None))]
    result = Reconstruction("dose_inr", config, spec, field, logs=logs)
    if not whole:
        result.tensors["support"] = mask
    if not rounds or run.stop.is_set():
        return result

    chosen = _rungs(field, spec.facts["weight_bytes"])
    plan = FitConfig(last, check_every=max(1, last // 4), keep_best=True)
    group = _group(config, field, lambda step, _: curve(first + step, config.steps))
    logs.append(minimise("rounded", [group], rounded_loss, batches, plan, run, held_out=check(chosen)))
    field.load_state_dict(quantised(field.state_dict(), chosen))
    spec.facts["rungs"] = list(chosen.values())
    return result


# The budget -----------------------------------------------------------------------------------------------------------


def parameters(width: int, hidden_layers: int, dims: int = 3) -> int:
    """Numbers of a network with one output: (d + 1) h + (L - 1) (h + 1) h + h + 1."""
    return (dims + 1) * width + (hidden_layers - 1) * (width + 1) * width + width + 1


def widest(count: float, hidden_layers: int, dims: int = 3) -> int:
    """The largest width whose network has at most `count` numbers; 0 where there is none."""
    a, b = hidden_layers - 1, dims + 1 + hidden_layers - 1 + 1
    if a == 0:
        return max(0, math.floor((count - 1) / b))
    width = max(0, math.floor((-b + math.sqrt(max(0.0, b * b + 4 * a * (count - 1)))) / (2 * a)) + 1)
    while width > 0 and parameters(width, hidden_layers, dims) > count:
        width -= 1
    return width


def _spec(config: Config, data: Dose, box: Dose, mask: Tensor | None, run: Run) -> Spec:
    """What the field is built from. Bytes: of the budget; those of header and mask are not for weights."""
    dims = sum(n > 1 for n in box.grid.shape)
    facts: dict[str, Any] = {
        "weights_seed": int(torch.randint(2**31, (), generator=run.generator("weights"))),
        "box": [low for low, _ in box_of(data)],
    }
    spec = Spec(Domain.of_grid(box.grid), data.grid, "Gy", data.highest_gy / 2, facts)
    size = config.bits_per_voxel * box.grid.size / 8
    bytes_left = size
    if config.accounting == "written":
        header = compress_text(json.dumps({"config": to_json(config), "spec": spec.to_json()}))
        bytes_left -= len(header) + OVERHEAD + (0 if mask is None else len(encode_mask(mask)))
        facts["weight_bytes"] = max(0, round(bytes_left))
    bits = 32.0 if config.accounting == "float32" else BITS_A_NUMBER
    facts["width"] = config.width or widest(8 * bytes_left / bits, config.hidden_layers, dims)
    if facts["width"] < 1:
        raise InputError(
            f"{config.bits_per_voxel:g} bits a voxel are {size:.0f} bytes, too few for {config.hidden_layers} hidden "
            "layers of one unit",
            where=data.source,
            fix="allow more bits per voxel, or fewer hidden layers",
        )
    return spec


def _rungs(field: Field, most: int) -> dict[str, int]:
    """The finest steps with which the weights take at most `most` bytes; those of biases are eight times finer."""
    state = field.state_dict()
    finest = rungs_for_bits(state, FINEST_BITS)
    for coarser in range(4 * FINEST_BITS):
        rungs = {name: rung + coarser for name, rung in finest.items()}
        for name in rungs:
            if name.endswith(".bias"):
                rungs[name] = rungs[name.removesuffix("bias") + "weight"] - FINER_BIASES
        if size_of(state, rungs) <= MARGIN * most:
            break
    else:
        return rungs
    for name in sorted(rungs, key=lambda name: state[name].numel()):
        if name.endswith(".weight"):
            for finer in range(FINER, 0, -1):
                tried = rungs | {name: rungs[name] - finer}
                if size_of(state, tried) <= MARGIN * most:
                    rungs = tried
                    break
    return rungs


# The fit --------------------------------------------------------------------------------------------------------------


def _group(config: Config, field: Field, schedule: Schedule) -> ParameterGroup:
    """Adam with a short memory of squares: 0.6 dB over the usual 0.999 on doses no default was judged on."""
    optimiser = adam(betas=(0.9, 0.99))
    assert isinstance(field.network, FullyConnected)
    rate = config.learning_rate * min(1.0, WIDEST_AT_RATE / field.network.linears[0].out_features)
    return ParameterGroup("field", list(field.parameters()), rate, schedule, optimiser)


def _rounded_loss(field: Field, rungs: dict[str, int], x: Tensor, target: Tensor) -> Tensor:
    """mean (f(x) - D)^2 with rounded weights; the gradient is that of the weights themselves."""
    network, head = field.network, field.head
    assert isinstance(network, FullyConnected) and isinstance(head, LinearHead)
    assert isinstance(network.activation, Activation)
    named = dict(field.named_parameters())
    rounded = {name: straight_through(named[name], rung) for name, rung in rungs.items()}
    layers = range(len(network.linears))
    weights = [rounded[f"network.layers.{k}.weight"] for k in layers]
    biases = [rounded[f"network.layers.{k}.bias"] for k in layers]
    inner = (target - head.offset) / head.scale
    return regression_loss(field.features(x), inner, weights, biases, network.activation) * head.scale**2


def _check(config: Config, field: Field, spec: Spec, seen: tuple[Tensor, Tensor], run: Run) -> Any:
    """Makes the error by which the best state is kept: root mean square in Gy, with rounded weights where given."""
    x, target = seen
    if len(x) > CHECKED:
        index = random_index(len(x), CHECKED, run.generator("checked voxels")).to(x.device)
        x, target = x[index], target[index]

    def make(rungs: dict[str, int] | None) -> Any:
        def error() -> float:
            state = field.state_dict()
            state = state if rungs is None else quantised(state, rungs)
            with torch.no_grad():
                found = torch.func.functional_call(field, state, (x,)).clamp(min=0)
            return float((found - target).square().mean().sqrt())

        return error

    return make


def _targets(box: Dose, mask: Tensor | None, device: torch.device) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 1"]]:
    """Where the field is asked, and the dose there."""
    chosen = torch.ones(box.grid.shape, dtype=torch.bool) if box.mask is None else box.mask
    index = (chosen if mask is None else chosen & mask).flatten().nonzero()[:, 0]
    x = box.grid.to_world(box.grid.voxels(index).double()).float()
    return x.to(device), box.values.flatten()[index][:, None].to(device)


def _support(box: Dose) -> Bool[Tensor, "n0 n1 n2"]:
    """Where there is dose; voxels that the fit does not see are as the nearest one that it sees."""
    found = box.values > 0
    if box.mask is None or bool(box.mask.all()):
        return found
    nearest_seen = distance_transform_edt(
        ~box.mask.numpy(), sampling=box.grid.spacing_mm, return_distances=False, return_indices=True
    )
    i, j, k = (torch.from_numpy(np.asarray(part)).long() for part in nearest_seen)
    return found[i, j, k]


def _cropped_like(dose: Dose, other: Dose) -> Dose:
    """`dose` in the box of another one on the same grid."""
    return cropped(Dose(other.values, other.grid, dose.mask, dose.plan, dose.source))


# What every method offers ---------------------------------------------------------------------------------------------


class ContinuousDose(nn.Module):
    """The dose (Gy) at world points, (*n, 1): the field where there is dose, not below zero; zero elsewhere.

    Differentiable in x; its gradient is Gy/mm. It steps to zero where the dose did, along the faces of voxels.
    """

    def __init__(self, field: nn.Module, domain: Domain, mask: Tensor | None, box: Grid | None) -> None:
        super().__init__()
        self.field, self.domain, self.mask, self.box = field, domain, mask, box

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        inside = self.domain.inside(x)
        if self.mask is not None and self.box is not None:
            inside = inside & (nearest(self.mask.to(torch.uint8), self.box, x.detach()) > 0)
        out: Tensor = self.field(x).clamp(min=0) * inside[..., None]
        return out


def dose(result: Reconstruction) -> ContinuousDose:
    """The fitted dose as a function of world position."""
    mask, box = result.tensors.get("support"), None
    if mask is not None:
        box = result.spec.grid.part(result.spec.facts["box"], mask.shape)
    return ContinuousDose(result.field, result.spec.domain, mask, box)


def candidates(config: Config) -> list[dict[str, Any]]:
    """The architectures that compete at a rate; their widths follow from it."""
    return [{"hidden_layers": layers} for layers in range(2, 7)]


def rungs(result: Reconstruction) -> dict[str, int]:
    """The steps of the weights, by name: those of the fit, or 16 bits a number where it did not round."""
    state = result.field.state_dict()
    chosen = result.spec.facts.get("rungs")
    return rungs_for_bits(state, 16) if chosen is None else dict(zip(state, chosen, strict=True))


def render(result: Reconstruction, grid: Grid) -> Float[Tensor, "n0 n1 n2"]:
    """The dose (Gy) on any grid."""
    return read_out(dose(result), grid, chunk=CHUNK, device=next(result.field.parameters()).device)


def predict(result: Reconstruction, data: Dose) -> Float[Tensor, "n0 n1 n2"]:
    """The fitted dose at the voxels of `data`."""
    return render(result, data.grid)
