"""A field cut into patches of one size: one network for all, a latent for each.

Patch i covers the voxels [a_i, a_i + p) along every axis of more than one voxel; its own coordinates are
u = (v - a_i + 1/2) / p in [0, 1], v the continuous voxel index. The last patch along an axis may reach beyond the
grid; its coordinates are those of a whole one. Patches that are not coded have one value.

    f(x) = scale * n(u_i(x); z_i) + offset        where x lies in patch i
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scanfield.data.intensity import Window
from scanfield.data.patches import cut_patches, middle_block, patch_axes, patch_counts
from scanfield.data.scan import Scan
from scanfield.fields.networks.modulated import ModulatedSiren
from scanfield.space.grid import Grid

_SURE = 1e-4  # voxels: rounding of coordinates must not move a point on a face into the next patch


class PatchField(nn.Module):
    """A function of world coordinates, (*n, 3) -> (*n, 1). There are jumps between patches.

    Args:
        grid: the lattice that is cut.
        size: voxels of a patch along every axis of more than one voxel.
        network: what all patches share.
        latent: size of a patch's latent.
        coded: which patches have a latent, in the lattice of patches.
        scale, offset: from the network's output to physical units.
        background: value of the other patches, in physical units.
    """

    world_to_voxel: Tensor
    slot: Tensor

    def __init__(
        self,
        grid: Grid,
        size: int,
        network: ModulatedSiren,
        latent: int,
        coded: Bool[Tensor, "p0 p1 p2"],
        *,
        scale: float = 1.0,
        offset: float = 0.0,
        background: float = 0.0,
    ) -> None:
        super().__init__()
        if tuple(coded.shape) != patch_counts(grid.shape, size):
            raise ValueError(f"{tuple(coded.shape)} patches do not cover a grid of {grid.shape}")
        self.grid, self.size, self.counts = grid, size, patch_counts(grid.shape, size)
        self.scale, self.offset, self.background = scale, offset, background
        self.axes = patch_axes(grid.shape)
        self.network = network
        # One parameter per number of the latent: in a file each has a step and a table of its own.
        self.latents = nn.ParameterList(torch.zeros(int(coded.sum())) for _ in range(latent))
        inverse = torch.linalg.inv(torch.tensor(grid.affine))[:3]
        self.register_buffer("world_to_voxel", inverse, persistent=False)
        slot = torch.full((coded.numel(),), -1).masked_scatter(coded.flatten(), torch.arange(int(coded.sum())))
        self.register_buffer("slot", slot, persistent=False)

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        flat = x.reshape(-1, 3)
        matrix = self.world_to_voxel.double()
        voxel = flat.double() @ matrix[:, :3].T + matrix[:, 3]
        patch = ((voxel + 0.5 + _SURE) / self.size).floor().long()
        patch = torch.minimum(patch.clamp(min=0), torch.tensor(self.counts, device=x.device) - 1)
        flat_patch = (patch[:, 0] * self.counts[1] + patch[:, 1]) * self.counts[2] + patch[:, 2]
        slot = self.slot[flat_patch]
        chosen = (slot >= 0).nonzero()[:, 0]
        out = flat.new_full((len(flat), 1), self.background)
        if len(chosen):
            u = ((voxel - self.size * patch + 0.5) / self.size)[chosen][:, self.axes].to(x.dtype)
            shifts = self.network.shifts(self.latent())[slot[chosen]]
            out = out.index_copy(0, chosen, self.scale * self.network(u, shifts) + self.offset)
        return out.reshape(*x.shape[:-1], 1)

    def latent(self) -> Float[Tensor, "m k"]:
        """The latents of all coded patches."""
        return torch.stack(list(self.latents), dim=-1)

    def fill(self, latents: Float[Tensor, "m k"]) -> None:
        """Gives the coded patches other latents."""
        self.load_state_dict({f"latents.{k}": z for k, z in enumerate(latents.T)}, strict=False)


def middle_of(
    scan: Scan, window: Window, size: int, network: ModulatedSiren, latent: int, *, most: int
) -> tuple[PatchField, Float[Tensor, "m v"], Float[Tensor, "m v"]]:
    """The middle of an image (`data.patches.middle_block`) as a field with latents of zero; the values of its patches,
    in units of the window; and 1 where a voxel counts.

    Args:
        most: patches.
    """
    first, shape = middle_block(scan.grid.shape, size, most)
    here = tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))
    coded = torch.ones(patch_counts(shape, size), dtype=torch.bool)
    grid, scale, offset = scan.grid.part(first, shape), window.scale, window.offset
    field = PatchField(grid, size, network, latent, coded, scale=scale, offset=offset)
    target = cut_patches(window.normalised(scan.values)[here], size)
    return field, target, cut_patches(window.seen[here].float(), size)
