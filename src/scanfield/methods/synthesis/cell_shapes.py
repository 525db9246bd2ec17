"""Implicit neural representations of living cell shapes (Wiesner et al., MICCAI 2022, arXiv 2207.06283).

Notation: sequence i has masks M_it at moments t and a code z_i; d_it their signed distance (mm, negative inside, cut at
`clamp` outside); u(x, t) in [-1, 1]^4; n the network (`fields.networks.reinjected`); U the largest |d| of the cohort.

    n(u(x, t), z_i) = d_it(x) / U          the same network for all sequences, one code for a whole sequence
    n, z = argmin mean |n(u, z_i) - d_it / U| + lambda min(1, epoch / ramp) mean |z_i|
    new sequences    z ~ N(mean, covariance) of the learned codes; U n(u(x, t), z) < 0 at any x, t

Sequences are brought into one frame by their centres of mass. The points of a frame are voxel centres, `near_share` of
them with d <= `near` U, which the inside belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scanfield.data.cohort import Cohort
from scanfield.data.distance_points import DistancePoints
from scanfield.data.sequences import MaskSequence, check_duration, read_sequence
from scanfield.errors import InputError
from scanfield.fields.condition import LatentTable
from scanfield.fields.networks.reinjected import NetworkActivation, ReinjectedNetwork
from scanfield.fields.shape import signed_distance
from scanfield.fields.space_time import SpaceTimeShape, distance_at, space_time_domain
from scanfield.fitting.groups import ParameterGroup
from scanfield.fitting.minimise import FitConfig
from scanfield.fitting.regimes.population import Draw, Epochs, auto_decode, infer, ramp, show_member
from scanfield.fitting.schedules import halve_every
from scanfield.run import Image, Run, Shown
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.tasks.model import Model, built_from

NETWORK = "network."  # prefix of the network's weights in a model
MOST_CLAMP = 0.4  # the box is then five times as wide as what it holds
MOST_VOXELS = 2**31  # of a frame that is drawn
WATCHED_FRAMES, WATCHED_POINTS = 6, 512  # of an unseen sequence: to find its code, and as many to judge it


@dataclass(frozen=True)
class Config:
    """The published setting, as far as paper and released code state it."""

    latent: int = 192
    """numbers of a sequence's code"""
    width: int = 124
    """units of a hidden layer (published as 128, of which 4 are the coordinates)"""
    layers: int = 10
    """hidden layers"""
    inject: tuple[int, ...] = (4, 7)
    """hidden layers that code and coordinates enter again, counted from 0"""
    activation: NetworkActivation = "sine"
    """sine, or relu for the published comparison"""
    omega: float = 30.0
    """frequency of the sine layers, in radians per half of the box"""
    frame_step: float | None = None
    """unit time from frame to frame (ours); unset: the frames fill [-1, 1] (published, at 30 frames: 0.069)"""
    clamp: float = 0.125
    """distances outside are cut at this part of the box's edge (published: 32 of 256 voxels)"""
    near: float = 0.3
    """points up to this distance, in units of the largest distance, are near"""
    near_share: float = 0.7
    """part of the points that are near"""
    batch: int = 2
    """frames in a step"""
    points: int = 1_000_000
    """points of a frame in a step (published: 6 % of the voxels of 256^3)"""
    epochs: int = 1000
    """passes over all frames (published: up to 15,000)"""
    learning_rate: float = 1e-4
    """rate of the network"""
    code_rate: float = 1e-3
    """rate of the codes"""
    halve_epochs: int = 350
    """epochs after which both rates are halved"""
    prior: float = 1e-4
    """weight of the codes' norms"""
    ramp_epochs: int = 100
    """epochs in which that weight rises from zero"""
    validate_every: int = 1000
    """steps between looks at the validation sequences (ours)"""
    infer_steps: int = 200
    """steps that find the code of an unseen sequence (ours)"""
    infer_rate: float = 5e-3
    """rate of these steps (ours)"""

    def __post_init__(self) -> None:
        if min(self.latent, self.width, self.layers, self.batch, self.points, self.epochs, self.halve_epochs) < 1:
            raise InputError("code, width, layers, batch, points, epochs and the epochs of a halving are at least 1")
        if not 0 < self.clamp <= MOST_CLAMP:
            raise InputError(f"distances are cut at a part of the box above 0, at most {MOST_CLAMP}, got {self.clamp}")
        if not 0 <= self.near_share <= 1:
            raise InputError(f"the share of near points lies between 0 and 1, got {self.near_share}")
        if not min(self.prior, self.ramp_epochs) >= 0:
            raise InputError(f"weight and ramp of the prior cannot be negative, got {self.prior}, {self.ramp_epochs}")
        if not self.omega > 0:
            raise InputError(f"the frequency of the sine layers must be positive, got {self.omega}")
        if self.frame_step is not None and not self.frame_step > 0:
            raise InputError(f"the unit time from frame to frame must be positive, got {self.frame_step}")

    @staticmethod
    def fast() -> Config:
        """Minutes on a CPU for a dozen sequences of 32^3 voxels (ours): half of width and frequency, higher rates."""
        return Config(
            latent=32,
            width=64,
            layers=8,
            inject=(4,),
            omega=15.0,
            batch=8,
            points=512,
            epochs=600,
            learning_rate=5e-4,
            code_rate=2e-3,
            halve_epochs=150,
            ramp_epochs=60,
            validate_every=500,
            infer_steps=100,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds; for tests of the plumbing, not for shapes."""
        return replace(
            Config.fast(),
            latent=6,
            width=24,
            layers=4,
            inject=(2,),
            batch=6,
            points=128,
            epochs=120,
            learning_rate=2e-3,
            code_rate=5e-3,
            halve_epochs=50,
            ramp_epochs=10,
            validate_every=100,
            infer_steps=10,
        )


@dataclass(frozen=True)
class _Space:
    """The frame of all sequences, and the units of the network; kept in a model's facts.

    Args:
        edge_mm: of the cube around the centre.
        duration_s: of every sequence.
        unit_time: what times fill is [-unit_time, unit_time].
        clamp_mm: where distances are cut.
        unit_mm: U.
    """

    edge_mm: float
    duration_s: float
    unit_time: float
    clamp_mm: float
    unit_mm: float = 1.0

    @property
    def domain(self) -> Domain:
        return space_time_domain(self.edge_mm, self.duration_s, unit_time=self.unit_time)


# The training ---------------------------------------------------------------------------------------------------------


def train(config: Config, cohort: Cohort, run: Run) -> Model:
    """Learns the network and a code for every sequence of the split 'train'; those of 'validation' are watched: a code
    is found for each by `infer`, and judged at other points.

    Raises:
        InputError: a sequence cannot be read, does not last as long as the others, or does not fit the others' box.
    """
    sequences = [read_sequence(member.path) for member in cohort.part("train")]
    others = [read_sequence(member.path) for member in cohort.part("validation")]
    duration = check_duration([*sequences, *others])
    space = _space(config, sequences, duration)
    points, unit = _points(config, space, sequences, run.device)
    space = replace(space, unit_mm=unit)
    owner = [k for k, sequence in enumerate(sequences) for _ in sequence.frames]

    network = _network(config, run.generator("weights")).to(run.device)
    deviation = config.latent**-0.5
    table = LatentTable(len(sequences), config.latent, deviation=deviation, generator=run.generator("codes"))
    table.to(run.device)
    members = Epochs(len(points), config.batch, run)
    domain = space.domain
    show_member(run, lambda: _shown(space, sequences[0], network, table), network)

    def loss(step: int, codes: Float[Tensor, "b k"], drawn: list[Draw]) -> dict[str, Tensor]:
        x, distance = _draw(config, points, drawn)
        return {"distance": (network(domain.to_unit(x), codes[:, None])[..., 0] - distance / unit).abs().mean()}

    decay = halve_every(members.steps(config.halve_epochs))
    log = auto_decode(
        "shapes",
        [
            ParameterGroup("network", list(network.parameters()), config.learning_rate, decay),
            ParameterGroup("codes", [table.free], config.code_rate, decay),
        ],
        table,
        loss,
        members,
        FitConfig(members.steps(config.epochs), check_every=config.validate_every),
        run,
        prior=ramp(members.steps(config.ramp_epochs), config.prior),
        squared=False,
        subjects=owner,
        held_out=_watching(config, space, others, network, table, run) if others else None,
    )
    tensors = {f"{NETWORK}{name}": value.detach().cpu() for name, value in network.state_dict().items()}
    facts = asdict(space) | {
        "frames": int(np.median([len(sequence.frames) for sequence in sequences])),
        "spacing_mm": float(np.median([sequence.grid.spacing_mm for sequence in sequences])),
    }
    codes = table.codes().detach().cpu()
    return Model("cell_shapes", config, tensors | {"codes": codes}, facts, cohort.record(), logs=[log])


def _space(config: Config, sequences: Sequence[MaskSequence], duration_s: float) -> _Space:
    """The smallest cube that leaves `clamp` of its edge on all sides of every object at every moment."""
    reach = 0.0
    for sequence in sequences:
        inside = torch.nonzero(sequence.frames.any(dim=0)).double()
        low, high = inside.min(dim=0).values - 0.5, inside.max(dim=0).values + 0.5
        corners = torch.cartesian_prod(*torch.stack([low, high], dim=1))
        reach = max(reach, float((sequence.grid.to_world(corners) - torch.from_numpy(sequence.centre_mm)).abs().max()))
    edge = 2 * reach / (1 - 2 * config.clamp)
    steps = float(np.median([len(sequence.frames) - 1 for sequence in sequences]))
    unit_time = 1.0 if config.frame_step is None else config.frame_step * steps / 2
    return _Space(edge, duration_s, unit_time, config.clamp * edge)


def _points(
    config: Config, space: _Space, sequences: Sequence[MaskSequence], device: torch.device
) -> tuple[DistancePoints, float]:
    """The points of all frames, sequence by sequence, in the common frame; and the largest distance in mm."""
    distances: list[Tensor] = []
    grids: list[Grid] = []
    times: list[float] = []
    for sequence in sequences:
        frames, grid = _in_cube(sequence, space.edge_mm)
        distances += [signed_distance(frame, grid).clamp(max=space.clamp_mm) for frame in frames]
        grids += [grid] * len(frames)
        times += sequence.times_s.tolist()
    unit = max(float(values.abs().max()) for values in distances)
    return DistancePoints(distances, grids, times, near_mm=config.near * unit, device=device), unit


def _in_cube(sequence: MaskSequence, edge_mm: float) -> tuple[Bool[Tensor, "t n0 n1 n2"], Grid]:
    """The frames on the voxels that cover the cube, and where these are in the common frame."""
    shift = np.eye(4)
    shift[:3, 3] = -sequence.centre_mm
    half = torch.tensor([-edge_mm / 2, edge_mm / 2], dtype=torch.float64)
    corners = sequence.grid.moved(shift).to_voxel(torch.cartesian_prod(half, half, half))
    low, high = corners.min(dim=0).values.ceil().int(), corners.max(dim=0).values.floor().int()
    part = sequence.part(low.tolist(), (high - low + 1).tolist())
    if int(part.frames.sum()) != int(sequence.frames.sum()):
        raise InputError(
            f"the object does not fit into the cube of {edge_mm:.4g} mm around the sequences that are learned from",
            where=sequence.source,
            fix="learn from sequences as large, or leave this one out",
        )
    return part.frames, part.grid.moved(shift)


def _shown(space: _Space, sequence: MaskSequence, network: nn.Module, table: LatentTable) -> Shown:
    """The signed distance of the first sequence halfway through it, mm."""
    _, grid = _in_cube(sequence, space.edge_mm)
    moment = space.duration_s / 2

    def prepare() -> Image:
        code = table.codes()[0]
        shape = SpaceTimeShape(space.domain, network, code, space.unit_mm).to(code.device)
        return lambda plane: distance_at(shape, plane, moment, device=code.device).clamp(max=space.clamp_mm)

    return Shown(prepare, grid, "mm", f"signed distance of the first sequence at {moment:.4g} s")


def _draw(config: Config, points: DistancePoints, drawn: list[Draw]) -> tuple[Tensor, Tensor]:
    """Points (b, p, 4) of the frames of a batch, and their distances in mm."""
    uniform = torch.stack([torch.rand(config.points, generator=draw.generator) for draw in drawn])
    return points.at(torch.tensor([draw.index for draw in drawn]), uniform, near_share=config.near_share)


def _network(config: Config, generator: torch.Generator) -> ReinjectedNetwork:
    return ReinjectedNetwork(
        dims=4,
        latent=config.latent,
        width=config.width,
        layers=config.layers,
        inject=config.inject,
        activation=config.activation,
        omega=config.omega,
        generator=generator,
    )


# Codes of sequences that were not learned from ------------------------------------------------------------------------


def encode(model: Model, sequences: Sequence[MaskSequence], run: Run) -> Float[Tensor, "sequences k"]:
    """Codes of new sequences, with the network as it is: the model's nearest members.

    Raises:
        InputError: a sequence does not last as long as the model's, or does not fit its box.
    """
    space = _space_of(model)
    if abs(check_duration(sequences) - space.duration_s) > 0.01 * space.duration_s:
        what = f"sequences of {check_duration(sequences):.4g} s do not suit a model of {space.duration_s:.4g} s"
        raise InputError(what, where=sequences[0].source)
    network, table = _network_of(model).to(run.device), LatentTable.of(codes(model).to(run.device))
    found, _ = _fitted(model.config, space, sequences, network, table, run)()
    return found.cpu()


def _watching(
    config: Config, space: _Space, others: Sequence[MaskSequence], network: nn.Module, table: LatentTable, run: Run
) -> Callable[[], float]:
    """Mean |error| (mm) at points of unseen sequences, for codes that were found at other points of them."""
    find = _fitted(config, space, others, network, table, run.again(quiet=True))

    def held_out() -> float:
        found, judged = find()
        with torch.no_grad():
            return float(judged(found).mean()) * space.unit_mm

    return held_out


def _fitted(
    config: Config, space: _Space, sequences: Sequence[MaskSequence], network: nn.Module, table: LatentTable, run: Run
) -> Callable[[], tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """A function that finds codes of sequences with the network as it then is, starting from the mean of the table:
    codes, and codes -> mean errors (b,) at other points. Always at the same points."""
    points, _ = _points(config, space, sequences, run.device)
    generator = torch.Generator().manual_seed(0)
    domain, count = space.domain, len(sequences)
    first = np.cumsum([0, *(len(sequence.frames) for sequence in sequences)])

    def some() -> tuple[Tensor, Tensor]:
        frames = [
            start + torch.randint(len(sequence.frames), (WATCHED_FRAMES,), generator=generator)
            for start, sequence in zip(first[:-1].tolist(), sequences, strict=True)
        ]
        uniform = torch.rand(count * WATCHED_FRAMES, WATCHED_POINTS, generator=generator)
        x, distance = points.at(torch.cat(frames), uniform, near_share=config.near_share)
        return domain.to_unit(x).reshape(count, -1, 4), distance.reshape(count, -1) / space.unit_mm

    (seen, target), (unseen, truth) = some(), some()

    def errors(codes: Tensor, u: Tensor, distance: Tensor) -> Tensor:
        return (network(u, codes[:, None])[..., 0] - distance).abs().mean(dim=1)

    def find() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        start = table.spread()[0].expand(count, -1)
        found, _ = infer(
            network,
            start,
            lambda step, codes: {"distance": errors(codes, seen, target).sum()},
            FitConfig(config.infer_steps),
            run.again(quiet=True),
            rate=config.infer_rate,
            prior=config.prior,
            squared=False,
        )
        return found, lambda codes: errors(codes, unseen, truth)

    return find


# What the task asks for -----------------------------------------------------------------------------------------------


def codes(model: Model) -> Float[Tensor, "sequences k"]:
    """The codes of the sequences that were learned from."""
    with built_from(model):
        learned = model.tensors["codes"].float()
        if learned.ndim != 2 or not len(learned) or learned.shape[1] != model.config.latent:
            raise ValueError(f"codes of shape {tuple(learned.shape)}, of {model.config.latent} numbers each")
    return learned


def draw(model: Model, count: int, generator: torch.Generator, *, spread: float = 1.0) -> Float[Tensor, "count k"]:
    """New codes: N(mean, spread^2 covariance) of the learned ones (published: independent numbers of a fixed sigma)."""
    return LatentTable.of(codes(model)).draw(count, generator, scale=spread, correlated=True)


def shape(model: Model, code: Float[Tensor, " k"], device: torch.device | str = "cpu") -> SpaceTimeShape:
    """The signed distance (mm) in space and time that a code stands for, `(*n, 4) -> (*n, 1)`."""
    space = _space_of(model)
    return SpaceTimeShape(space.domain, _network_of(model), code, space.unit_mm).to(device).eval()


def canvas(model: Model) -> tuple[Grid, list[float]]:
    """The voxels and the moments (s) that suit the sequences it was learned from; shapes are defined between them."""
    space = _space_of(model)
    with built_from(model):
        spacing, frames = float(model.facts["spacing_mm"]), int(model.facts["frames"])
        voxels = int(np.ceil(space.edge_mm / spacing - 1e-6))
        if frames < 2 or voxels**3 > MOST_VOXELS:
            raise ValueError(f"{frames} frames of {voxels} voxels an axis")
    return Grid.centred((voxels,) * 3, spacing), np.linspace(0, space.duration_s, frames).tolist()


def _space_of(model: Model) -> _Space:
    with built_from(model):
        space = _Space(**{name: float(model.facts[name]) for name in _Space.__dataclass_fields__})
        if not all(0 < value < np.inf for value in asdict(space).values()):
            raise ValueError(f"lengths and times are positive, got {space}")
    return space


def _network_of(model: Model) -> ReinjectedNetwork:
    own = {name.removeprefix(NETWORK): t for name, t in model.tensors.items() if name.startswith(NETWORK)}
    with built_from(model):
        network = _network(model.config, torch.Generator().manual_seed(0))
        network.load_state_dict(own)
    return network.requires_grad_(False)
