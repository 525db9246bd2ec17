"""COIN++: neural compression across modalities (Dupont et al., TMLR 2022, arXiv 2201.12904).

Notation: patch i of p voxels along every axis has values I_i on coordinates u in [0, 1]^d and a latent z_i; n sine
network with shifts A z + c (`fields.networks.modulated`), shared by all patches of all images; a inner rate.

    encode    z_0 = 0,   z_{k+1} = z_k - a grad mean (n(u; z_k) - I_i)^2        K steps, nothing else is fitted
    train     n, A, c = argmin  E_i mean (n(u; z_K) - I_i)^2                    through the K steps (`regimes.meta`)
    quantise  a step for each number of the latent, with least error at the file's bytes, then every integer by rate and
              distortion (`codec.refine`)

The file holds the latents, the facts of its grid and the key of the model. The model is a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scanfield.codec.field_file import weight_budget
from scanfield.codec.mask import decode_mask, encode_mask
from scanfield.codec.refine import coded_latents
from scanfield.data.cohort import Cohort, Images, Member
from scanfield.data.intensity import Window
from scanfield.data.nifti import read_nifti
from scanfield.data.patches import FilledPatches, cut_patches, draw_patches, mean_spacing_mm, patch_counts, patch_points
from scanfield.data.scan import Scan
from scanfield.errors import InputError
from scanfield.fields.field import read_out
from scanfield.fields.networks.modulated import ModulatedSiren
from scanfield.fields.patches import PatchField, middle_of
from scanfield.fitting.groups import ParameterGroup, sgd
from scanfield.fitting.minimise import FitConfig, minimise
from scanfield.fitting.regimes.image import held_out_error
from scanfield.fitting.regimes.meta import LearnedRates, adapt, meta_loss
from scanfield.fitting.regimes.population import show_member
from scanfield.fitting.schedules import constant, cosine, warm_up
from scanfield.run import Image, Run, Shown
from scanfield.space.domain import Domain
from scanfield.tasks.model import Model, check_model, check_settings
from scanfield.tasks.result import Reconstruction, Spec, render_field, show_field

NETWORK = "network."  # prefix of the model's part of the field's weights
TASK_BYTES = 48  # what `scanfield compress` adds to the header: type, range
IMAGES_PER_STEP = 8  # of a training batch: its patches come from so many images at most
SEEN = 4  # batches of patches that are drawn at once while a training is watched
WATCHED = 256  # patches of the validation images
CHUNK = 2**16  # voxels that are evaluated at once while encoding
PROBES = 2**15  # voxels that tell how much each number of the latent matters
STRANGE_SPACING = 1.5  # an image of voxels so many times larger or smaller than those trained on deserves a warning


@dataclass(frozen=True)
class Config:
    """The published setting for brain MRI (fastMRI) where the paper and its code state one; see also `ENCODING`."""

    patch: int = 16
    """voxels of a patch along every axis"""
    latent: int = 128
    """numbers of a patch's latent (published: 16 to 128, a model each)"""
    width: int = 512
    """of the shared network's hidden layers"""
    layers: int = 10
    """linear layers of the shared network; all but the last are modulated"""
    omega: float = 50.0
    """frequency of the sine layers, in radians per patch"""
    inner_steps: int = 3
    """gradient steps on the latents that the network is trained for"""
    inner_rate: float = 1e-2
    """rate of these steps"""
    learn_rates: bool = False
    """learn a rate for each number of the latent, from `inner_rate` (ours, Meta-SGD)"""
    second_order: bool = True
    """train through the inner steps; else their gradients count as constants"""
    low_percentile: float = 0.1
    """of an image's values: -1 for the network (ours; published: the range)"""
    high_percentile: float = 99.9
    """of an image's values: 1 for the network"""
    empty: float = 0.01
    """patches that rise above the image's minimum by no more than this part of its range get no latent (ours)"""
    batch: int = 16
    """patches in a step of the training"""
    steps: int = 500_000
    """steps of the training (published: 32,000 passes over the images)"""
    learning_rate: float = 3e-6
    """rate of the training"""
    clip_norm: float | None = None
    """largest norm of the training's gradient (ours; published: none)"""
    final_rate: float = 1.0
    """the rate at the end of the training over the rate at its start: half a cosine (published: 1)"""
    validate_every: int = 1000
    """steps between looks at the validation images"""
    encode_steps: int = 10
    """gradient steps on the latents of an image (published: 3 or 10)"""
    budget_bytes: int | None = None
    """bytes of the whole file; unset: `bits` decide"""
    bits: int = 5
    """bits of a latent's largest number where there is no budget (published: 5 or 6)"""
    refine: int = 0
    """how often every quantised number may move by a step where that is worth its bits (ours)"""

    @staticmethod
    def fast() -> Config:
        """Trains in minutes on a GPU (ours): small patches, a small network, learned rates."""
        return Config(
            patch=8,
            latent=32,
            width=64,
            layers=6,
            omega=10.0,
            inner_rate=1.0,
            learn_rates=True,
            batch=32,
            steps=3000,
            learning_rate=1e-3,
            clip_norm=0.1,
            final_rate=0.02,
            validate_every=250,
            refine=2,
        )

    @staticmethod
    def tiny() -> Config:
        """Seconds; for tests of the plumbing, not for images."""
        return replace(
            Config.fast(),
            latent=8,
            width=24,
            layers=4,
            batch=16,
            steps=120,
            validate_every=40,
            learning_rate=2e-3,
            encode_steps=6,
        )


ENCODING = ("encode_steps", "budget_bytes", "bits", "refine")  # settings a model leaves open


def supervision(config: Config) -> str:
    """What of an image the fit sees."""
    return "values"


def shared_parts(config: Config) -> int:
    """Weights share no steps in the file."""
    return 0


# The training ---------------------------------------------------------------------------------------------------------


def train(config: Config, cohort: Cohort, run: Run) -> Model:
    """Meta-learns the shared network, and the inner rates where they are learned.

    Args:
        cohort: images of one channel, all of two or all of three axes. Those of the split 'train' are learned from,
            those of 'validation' are watched.

    Raises:
        InputError: the images do not suit each other, or one is constant.
    """
    images = Images(cohort.part("train"), lambda scan: _shown(scan, config))
    dims = images[0].dims
    network = _network(config, dims, run.generator("weights")).to(run.device)
    rates = LearnedRates({"z": torch.zeros(config.latent)}, config.inner_rate).to(run.device)
    u = patch_points(config.patch, dims).to(run.device)

    def start(batch: _Batch) -> dict[str, Tensor]:
        return {"z": torch.zeros(len(batch.target), config.latent, device=run.device)}

    def errors(fast: dict[str, Tensor], batch: _Batch) -> Float[Tensor, " b"]:
        return _errors(network, u, fast["z"], batch.target, batch.weight)

    def encoded(batch: _Batch) -> dict[str, Tensor]:
        return adapt(lambda now: errors(now, batch).sum(), start(batch), rates=rates(), steps=config.inner_steps)

    def draw(step: int) -> _Batch:
        return _Batch.drawn(images, config.batch, run.generator("patches"), run.device)

    loss = meta_loss(
        start,
        lambda fast, batch: errors(fast, batch).sum(),
        lambda fast, batch: errors(fast, batch).mean(),
        rates=rates,
        steps=config.inner_steps,
        second_order=config.second_order,
    )
    base = [*network.parameters(), *(rates.parameters() if config.learn_rates else [])]
    decay = constant if config.final_rate == 1 else warm_up(100, after=cosine(config.final_rate))
    watched = cohort.part("validation")
    show_member(run, lambda: _seen(config, (watched or cohort.part("train"))[0], network, encoded, run.device), network)
    held_out = None
    if watched:
        others = Images(watched, lambda scan: _shown(scan, config))
        unseen = _Batch.drawn(others, WATCHED, run.generator("watched"), run.device)

        def held_out() -> float:
            return float(errors(encoded(unseen), unseen).mean().sqrt())

    plan = FitConfig(config.steps, config.clip_norm, check_every=config.validate_every, keep_best=bool(watched))
    log = minimise(
        "base",
        [ParameterGroup("base", base, config.learning_rate, decay)],
        loss,
        draw,
        plan,
        run,
        held_out=held_out,
    )
    weights = _stored(network)
    spacing = [images[k].spacing_mm for k in range(min(len(images), 64))]
    facts = {"dims": dims, "spacing_mm": float(np.median(spacing))}
    return Model("coinpp", config, weights | {"rates": rates()["z"].detach().cpu()}, facts, cohort.record(), logs=[log])


@dataclass(frozen=True, eq=False)
class _Batch:
    """Patches: (b, v) values for the network, and 1 where a voxel counts."""

    target: Float[Tensor, "b v"]
    weight: Float[Tensor, "b v"]

    @staticmethod
    def drawn(images: Images[FilledPatches], count: int, generator: torch.Generator, device: torch.device) -> _Batch:
        target, weight = draw_patches(images, count, generator, most_images=IMAGES_PER_STEP)
        return _Batch(target.to(device), weight.to(device))


Encoder = Callable[[_Batch], dict[str, Tensor]]


def as_drawn(config: Config, dims: int, run: Run) -> dict[str, Tensor]:
    """The shared network's weights before a training with this run: what the training is compared with."""
    return _stored(_network(config, dims, run.generator("weights")))


def _stored(network: ModulatedSiren) -> dict[str, Tensor]:
    return {f"{NETWORK}{name}": t.detach().cpu().half() for name, t in network.state_dict().items()}


def _shown(scan: Scan, config: Config) -> FilledPatches:
    """A training image as the network sees it."""
    window = Window(scan, config.low_percentile, config.high_percentile)
    return FilledPatches(scan, window, config.patch, above=_threshold(window, config))


def _seen(config: Config, member: Member, network: ModulatedSiren, encoded: Encoder, device: torch.device) -> Shown:
    """A slice through the middle of an image as its latents and the network have it: so many patches, no more."""
    scan = read_nifti(member.path)
    window = Window(scan, config.low_percentile, config.high_percentile)
    field, *patches = middle_of(scan, window, config.patch, network, config.latent, most=SEEN * config.batch)
    field, batch = field.to(device), _Batch(*(part.to(device) for part in patches))

    def prepare() -> Image:
        field.fill(encoded(batch)["z"])
        return lambda plane: read_out(field, plane, device=device)

    grid = field.grid.slice(field.grid.shape[2] // 2) if len(field.axes) == 3 else field.grid
    return Shown(prepare, grid, scan.unit, "a validation image" if member.split == "validation" else "")


def _network(config: Config, dims: int, generator: torch.Generator) -> ModulatedSiren:
    return ModulatedSiren(
        dims=dims,
        width=config.width,
        layers=config.layers,
        latent=config.latent,
        omega=config.omega,
        generator=generator,
    )


def _errors(
    network: ModulatedSiren,
    u: Float[Tensor, "v d"],
    z: Float[Tensor, "b k"],
    target: Float[Tensor, "b v"],
    weight: Float[Tensor, "b v"],
) -> Float[Tensor, " b"]:
    """Mean square error of every patch over its voxels that count."""
    difference = network(u, network.shifts(z)[:, None])[..., 0] - target
    return (weight * difference.square()).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


# One image ------------------------------------------------------------------------------------------------------------


def build(config: Config, spec: Spec) -> PatchField:
    """The field of an image, with a network drawn from a fixed seed and latents of zero."""
    facts = spec.facts
    coded = torch.ones(patch_counts(spec.grid.shape, config.patch), dtype=torch.bool)
    if facts["coded"]:
        coded = decode_mask(bytes.fromhex(facts["coded"]))
    network = _network(config, spec.domain.dims, torch.Generator().manual_seed(0))
    return PatchField(
        spec.grid,
        config.patch,
        network,
        config.latent,
        coded,
        scale=spec.scale,
        offset=facts["offset"],
        background=facts["background"],
    )


def fit(
    config: Config, data: Scan, run: Run, *, held_out: Scan | None = None, prior: Model | None = None
) -> Reconstruction:
    """Compresses an image with a trained model: its latents, quantised as the file will hold them.

    Args:
        data: an image of one channel; the voxels of its mask, where it has one, are fitted.
        held_out: the same image with a mask of voxels the fit does not see.
        prior: the model. Its settings and those of `config` agree up to `ENCODING`.

    Raises:
        InputError: there is no model, it was trained with other settings or for another number of axes; the image has
            several channels or is constant; the budget is too small.
    """
    check_model("coinpp", prior)
    assert prior is not None
    check_settings(config, prior, left_open=ENCODING)
    window = Window(data, config.low_percentile, config.high_percentile)
    spec, coded = _spec_of(config, data, window, prior, run)
    field = build(config, spec)
    own = {name.removeprefix(NETWORK): t.float() for name, t in prior.tensors.items() if name.startswith(NETWORK)}
    field.network.load_state_dict(own)
    field.network.requires_grad_(False)
    field.to(run.device)
    show_field(field, spec, run)
    patches = _Patches(field, data, window, coded, run.device)
    unseen = None if held_out is None else held_out_error(field, held_out, run.device)
    rates = prior.tensors["rates"].tolist()

    # The loss is a mean over patches: a patch's own gradient is as many times larger.
    groups = [
        ParameterGroup(f"latents.{k}", [z], rate * len(patches), optimiser=sgd())
        for k, (z, rate) in enumerate(zip(field.latents, rates, strict=True))
    ]
    log = minimise(
        "latents",
        groups,
        lambda step, batch: {"values": patches.loss()},
        lambda step: None,
        FitConfig(config.encode_steps),
        run,
        held_out=unseen,
    )
    result = Reconstruction("coinpp", config, spec, field, logs=[log])
    most = None
    if config.budget_bytes is not None:
        most = weight_budget(result, config.budget_bytes, model=prior) - TASK_BYTES
    state = {f"latents.{k}": z.detach() for k, z in enumerate(field.latents)}
    written = coded_latents(state, patches.slopes, patches.errors, most=most, bits=config.bits, sweeps=config.refine)
    field.load_state_dict(written, strict=False)
    return result


def _threshold(window: Window, config: Config) -> float:
    return window.least + config.empty * (window.most - window.least)


def _coded(data: Scan, window: Window, config: Config) -> tuple[Bool[Tensor, "p0 p1 p2"], float]:
    """Which patches get a latent, and the mean of the others' voxels that count."""
    filled = window.seen & (data.values > _threshold(window, config))
    coded = cut_patches(filled, config.patch).any(dim=1)
    seen = cut_patches(window.seen, config.patch)[~coded]
    empty = cut_patches(data.values.double(), config.patch)[~coded][seen]
    background = float(f"{float(empty.mean()):.4g}") if len(empty) else window.offset
    return coded.reshape(patch_counts(data.grid.shape, config.patch)), background


class _Patches:
    """The patches of an image that have latents, and what they should become."""

    def __init__(
        self, field: PatchField, data: Scan, window: Window, coded: Bool[Tensor, "p0 p1 p2"], device: torch.device
    ) -> None:
        self.field, chosen = field, coded.flatten()
        self.target = cut_patches(window.normalised(data.values), field.size)[chosen].to(device)
        self.weight = cut_patches(window.seen.float(), field.size)[chosen].to(device)
        self.u = patch_points(field.size, len(field.axes)).to(device)

    def __len__(self) -> int:
        return len(self.target)

    def loss(self) -> Float[Tensor, ""]:
        """Mean over the patches of their errors, as a function of the latents; takes the memory of one chunk."""
        z = self.field.latent()
        value, slope = torch.zeros((), device=z.device), torch.zeros_like(z)
        for part in self._chunks():
            own = z[part].detach().requires_grad_()
            error = self._errors(own, part).sum()
            (slope[part],) = torch.autograd.grad(error, own)
            value = value + error.detach()
        return (value + (slope * (z - z.detach())).sum()) / len(self)  # the value and the gradient of all chunks

    def errors(self, z: Float[Tensor, "m k"]) -> Float[Tensor, " m"]:
        """Mean square error of every patch with other latents."""
        with torch.no_grad():
            return torch.cat([self._errors(z[part], part) for part in self._chunks()])

    def slopes(self) -> list[float]:
        """s_k = mean (d n / d z_k)^2 for every number of the latent, over some patches, by differences."""
        every = max(1, len(self) * self.target.shape[1] // PROBES)
        network, found = self.field.network, []
        with torch.no_grad():
            z = self.field.latent()[::every]
            before = network(self.u, network.shifts(z)[:, None])
            for k in range(z.shape[1]):
                step = 0.1 * float(z[:, k].std(correction=0)) + 1e-6
                moved = z.clone()
                moved[:, k] += step
                after = network(self.u, network.shifts(moved)[:, None])
                found.append(float((after - before).square().mean()) / step**2)
        return found

    def _chunks(self) -> list[slice]:
        size = max(1, CHUNK // self.target.shape[1])
        return [slice(start, start + size) for start in range(0, len(self), size)]

    def _errors(self, z: Float[Tensor, "b k"], part: slice) -> Float[Tensor, " b"]:
        return _errors(self.field.network, self.u, z, self.target[part], self.weight[part])


def _spec_of(
    config: Config, data: Scan, window: Window, model: Model, run: Run
) -> tuple[Spec, Bool[Tensor, "p0 p1 p2"]]:
    domain, dims, usual = Domain.of_grid(data.grid), model.facts["dims"], model.facts["spacing_mm"]
    if domain.dims != dims:
        what = f"the model was trained on images of {dims} axes, this one has {domain.dims}"
        raise InputError(what, where=data.source)
    spacing = mean_spacing_mm(data)
    if not 1 / STRANGE_SPACING < spacing / usual < STRANGE_SPACING:
        run.warn(f"The model was trained on voxels of {usual:.3g} mm, these have {spacing:.3g} mm: expect less.")
    coded, background = _coded(data, window, config)
    text = "" if bool(coded.all()) else encode_mask(coded).hex()
    facts = {"offset": window.offset, "background": background, "coded": text}
    return Spec(domain, data.grid, data.unit, window.scale, facts), coded


# What every method offers -----------------------------------------------------------------------------------------

render = render_field


def predict(result: Reconstruction, data: Scan) -> Tensor:
    """The field at the voxels of `data`."""
    return render_field(result, data.grid)
