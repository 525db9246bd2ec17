"""A classifier with known regions asked on grids: classes, uncertainty, refinement, surfaces, and memory."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.fields.mesh_distance import mesh_mask
from scanfield.space.grid import Grid
from scanfield.tasks.labelling import Labeller, largest_parts

TURN = np.array([[0.8, -0.6, 0, -150], [0.6, 0.8, 0, 40], [0, 0, -1, 90], [0, 0, 0, 1.0]])
IMAGE = Grid((24, 28, 20), TURN @ np.diag([1.0, 0.8, 1.5, 1.0]))


class Balls:
    """Logits 0 for the background and radius - distance for two balls in the middle of the image, 8 mm apart."""

    def __init__(self, image: Grid = IMAGE, sharpness: float = 2.0) -> None:
        along = image.directions[:, 0]
        self.centres = torch.tensor(np.stack([image.centre_mm - 4 * along, image.centre_mm + 4 * along]))
        self.radii, self.sharpness = torch.tensor([5.0, 3.0]), sharpness
        self.largest = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, len(x))
        depth = self.radii - (x[:, None] - self.centres).norm(dim=-1)
        return torch.cat([torch.zeros(len(x), 1), self.sharpness * depth.float()], dim=1)

    def true(self, grid: Grid) -> torch.Tensor:
        return self(grid.points().double()).argmax(dim=1).reshape(grid.shape)


@pytest.mark.parametrize("grid", [IMAGE, IMAGE.resampled(0.9), IMAGE.part((4, 5, 3), (9, 8, 7), (1.3, 1.1, 0.7))])
def test_every_voxel_gets_the_class_and_the_entropy_at_its_centre(grid) -> None:
    balls = Balls()
    found = Labeller(balls, 3, IMAGE, chunk=500).label(grid)
    assert torch.equal(found.classes.long(), balls.true(grid))
    p = balls(grid.points()).softmax(dim=1)
    entropy = torch.special.entr(p).sum(dim=1) / math.log(3)
    torch.testing.assert_close(found.uncertainty.flatten(), entropy, atol=2e-5, rtol=0)
    assert found.asked == grid.size and balls.largest <= max(500, grid.size)


def test_certain_and_undecided_points_have_uncertainty_0_and_1() -> None:
    def half(x):
        return torch.stack([50 * (x[:, 0] > 0), torch.zeros(len(x)), torch.zeros(len(x))], dim=1)

    grid = Grid.centred((4, 4, 4), 1.0)
    found = Labeller(half, 3, grid).label(grid)
    torch.testing.assert_close(found.uncertainty[2:], torch.zeros(2, 4, 4))
    torch.testing.assert_close(found.uncertainty[:2], torch.full((2, 4, 4), 1.0))


def test_points_that_the_image_does_not_cover_are_background() -> None:
    image = Grid((4, 4, 1), np.diag([1.0, 1.0, 5.0, 1.0]))
    grid = Grid((8, 4, 3), np.diag([1.0, 1.0, 5.0, 1.0])).part((-2, 0, -1), (8, 4, 3))
    found = Labeller(lambda x: torch.tensor([[0.0, 3.0]]).expand(len(x), 2), 2, image).label(grid)
    assert found.asked == 16
    assert bool((found.classes[2:6, :, 1] == 1).all()) and int(found.classes.sum()) == 16
    assert float(found.uncertainty[0].max()) == 0.0


@pytest.mark.parametrize(("shape", "share"), [((72, 80, 60), 0.35), ((70, 75, 1), 0.6), ((3, 75, 5), 1.0)])
def test_refinement_gives_the_same_map_for_smooth_structures_and_asks_less(shape, share) -> None:
    image = Grid(shape, TURN @ np.diag([0.4, 0.4, 0.5, 1.0]))
    labeller = Labeller(Balls(image, sharpness=4.0), 3, image)
    whole, refined = labeller.label(image), labeller.label(image, refine=True)
    assert torch.equal(whole.classes, refined.classes)
    assert refined.asked <= share * whole.asked
    assert float((whole.uncertainty - refined.uncertainty).abs().max()) < 0.05
    boundary = whole.uncertainty > 0.5
    assert bool(boundary.any())
    torch.testing.assert_close(refined.uncertainty[boundary], whole.uncertainty[boundary])


def test_refinement_misses_what_fits_between_its_points_as_it_says() -> None:
    grid = Grid((9, 9, 9), np.eye(4))

    def dot(x):
        return torch.stack([torch.ones(len(x)), 2.0 * ((x - 2).norm(dim=1) < 0.5)], dim=1)

    labeller = Labeller(dot, 2, grid)
    assert int(labeller.label(grid).classes.sum()) == 1
    assert int(labeller.label(grid, refine=True).classes.sum()) == 0


@pytest.mark.parametrize("index", [1, 2])
def test_surfaces_lie_where_the_logits_cross_and_not_on_the_staircase(index) -> None:
    balls = Balls()
    labeller = Labeller(balls, 3, IMAGE)
    found = labeller.label(IMAGE)
    mesh = labeller.surface(found, index)
    assert (mesh.closed, mesh.components, mesh.genus) == (True, 1, 0)
    assert torch.equal(mesh_mask(mesh, IMAGE), found.classes == index)
    distance = np.linalg.norm(mesh.vertices - balls.centres[index - 1].numpy(), axis=1)
    other = np.linalg.norm(mesh.vertices - balls.centres[2 - index].numpy(), axis=1)
    mine, theirs = balls.radii[index - 1].item(), balls.radii[2 - index].item()
    free = theirs - other < -1.0  # away from the other ball
    assert np.abs(distance[free] - mine).max() < 0.12  # voxels are up to 1.5 mm long


def test_surfaces_are_closed_at_the_edge_of_the_grid_and_follow_a_filtered_map() -> None:
    whole = IMAGE.part((8, 6, 4), (8, 12, 8))  # cuts both balls
    labeller = Labeller(Balls(), 3, IMAGE)
    mesh = labeller.surface(labeller.label(whole), 1)
    assert mesh.closed and mesh.components == 1
    found = labeller.label(IMAGE)
    found.classes[0, 0, 0] = 1
    assert labeller.surface(found, 1).components == 2
    filtered, dropped = largest_parts(found)
    assert dropped == {1: 1} and int(filtered.classes[0, 0, 0]) == 0
    assert labeller.surface(filtered, 1).components == 1
    assert largest_parts(filtered)[1] == {}


def test_on_a_large_grid_it_says_how_far_it_is() -> None:
    told = []
    grid = Grid.centred((128, 128, 129), 1.0)
    labeller = Labeller(lambda x: x[:, :2], 2, grid, chunk=2**18, told=lambda done, of: told.append((done, of)))
    labeller.label(grid)
    assert told == [(2**20, grid.size), (2**21, grid.size), (grid.size, grid.size)]
    told.clear()
    labeller.label(grid.part((0, 0, 0), (9, 9, 9)))
    assert told == []


def test_what_has_no_surface_is_refused() -> None:
    flat = Grid((8, 8, 1), np.eye(4))
    labeller = Labeller(Balls(flat), 3, flat)
    with pytest.raises(InputError, match="needs a volume"):
        labeller.surface(labeller.label(flat), 1)
    found = Labeller(Balls(), 3, IMAGE).label(IMAGE)
    found.classes[found.classes == 2] = 0
    with pytest.raises(InputError, match="no voxel is of class 2"):
        Labeller(Balls(), 3, IMAGE).surface(found, 2)


def test_a_classifier_that_forgets_a_class_is_a_fault() -> None:
    with pytest.raises(ValueError, match="4 classes"):
        Labeller(Balls(), 4, IMAGE).label(IMAGE)


MEMORY = """
import resource, sys, torch
from scanfield.space.grid import Grid
from scanfield.tasks.labelling import Labeller
torch.set_num_threads(1)
wide = torch.randn(3, 250), torch.randn(250, 12)
grid = Grid.centred((int(sys.argv[1]),) * 3, 1.0)
labeller = Labeller(lambda x: torch.relu(x @ wide[0]) @ wide[1], 12, grid)
labeller.label(Grid.centred((16,) * 3, 4.0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = labeller.label(grid)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_grows_by_the_label_map_alone_on_a_finer_grid() -> None:
    """Twelve classes, 250 features a point: 128^3 voxels take 5 bytes each, not 48 of logits or 1000 of features."""
    grown = []
    for n in ("64", "128"):
        command = [sys.executable, "-c", MEMORY, n]
        grown.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    kibibyte = 1024 if sys.platform == "linux" else 1
    more = (grown[1] - grown[0]) * kibibyte / (128**3 - 64**3)
    assert more < 8, f"{more:.1f} bytes a voxel"
