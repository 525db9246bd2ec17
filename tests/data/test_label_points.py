"""Points of label maps: where they lie, what class they have, how often every kind comes."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation

from scanfield.data.label_points import LabelPoints, Shares
from scanfield.fields.image import nearest
from scanfield.space.grid import Grid


def oblique(shape):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [12, -25, 40], degrees=True).as_matrix() @ np.diag([-1.0, 2.0, 1.5])
    affine[:3, 3] = (30, -12, 80)
    return Grid(shape, affine)


def labels(shape=(20, 18, 16)):
    """A large block of class 1 with a small one of class 2 inside."""
    classes = torch.zeros(shape, dtype=torch.uint8)
    classes[3:17, 3:15, 2:14] = 1
    classes[8:13, 6:11, 5:10] = 2
    return classes


def points(band_mm=0.0, classes=None, grid=None):
    classes = labels() if classes is None else classes
    return LabelPoints(classes, grid or oblique(tuple(classes.shape)), band_mm=band_mm)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_class_of_a_point_is_that_of_the_voxel_it_lies_in():
    drawn = points(band_mm=2.0)
    x, classes = drawn.draw(Shares(200, 200, 200), generator())
    assert x.shape == (600, 3)
    assert torch.equal(classes, nearest(labels(), drawn.grid, x).long())


def test_kinds_come_as_often_as_asked_and_do_not_overlap():
    band_mm, sampler = 2.0, points(band_mm=2.0)
    x, classes = sampler.draw(Shares(300, 200, 100), generator())
    edge = np.zeros(labels().shape, dtype=bool)
    for axis in range(3):
        for step in (1, -1):
            edge |= np.roll(labels().numpy(), step, axis) != labels().numpy()  # nothing lies at the border: no wrap
    near = torch.from_numpy(distance_transform_edt(~edge, sampling=sampler.grid.spacing_mm) <= band_mm)
    in_band = nearest(near.to(torch.uint8), sampler.grid, x).bool()
    assert not in_band[:300].any()
    assert in_band[300:500].all()
    assert not in_band[500:].any()
    assert bool((classes[:300] > 0).all())
    assert bool((classes[500:] == 0).all())
    assert set(classes[300:500].tolist()) == {0, 1, 2}


def test_inside_a_small_class_is_as_likely_as_a_large_one():
    _, classes = points().draw(Shares(4000, 0, 0), generator())
    counts = torch.bincount(classes, minlength=3)
    assert counts[0] == 0
    assert abs(int(counts[1]) - 2000) < 160  # five standard deviations


def test_the_band_holds_both_sides_as_its_voxels_do():
    """What makes balance cost no bias: no class is preferred where a network is in doubt."""
    sampler = points(band_mm=2.0)
    classes = sampler.draw(Shares(0, 8000, 0), generator())[1]
    voxels = torch.bincount(sampler._classes[1], minlength=3).double()
    expected = voxels / voxels.sum()
    assert torch.allclose(torch.bincount(classes, minlength=3).double() / 8000, expected, atol=0.03)


def test_points_lie_anywhere_in_their_voxels():
    sampler = points()
    x, _ = sampler.draw(Shares(2000, 500, 500), generator())
    place = sampler.grid.to_voxel(x.double())
    offset = place - place.round()
    assert float(offset.min()) < -0.48
    assert float(offset.max()) > 0.48
    assert offset.mean(dim=0).abs().max() < 0.03


def test_points_of_a_slice_lie_in_its_plane():
    classes = labels()[:, :, 7:8].clone()
    sampler = points(band_mm=1.0, classes=classes)
    x, found = sampler.draw(Shares(50, 50, 50), generator())
    place = sampler.grid.to_voxel(x.double())
    torch.testing.assert_close(place[:, 2], torch.zeros(150, dtype=torch.double), atol=1e-4, rtol=0)
    assert torch.equal(found, nearest(classes, sampler.grid, x).long())


def test_in_a_crop_all_voxels_of_the_points_have_their_centre_there():
    sampler = points(band_mm=1.5)
    crop = sampler.grid.part((6.3, 4.2, 3.0), (8, 8, 8))
    x, classes = sampler.draw(Shares(100, 100, 100), generator(), within=crop)
    centre = sampler.grid.to_world(sampler.grid.to_voxel(x.double()).round())
    place = crop.to_voxel(centre)
    assert bool(((place >= -0.5) & (place <= 7.5)).all())
    assert torch.equal(classes, nearest(labels(), sampler.grid, x).long())


def test_what_is_missing_is_made_up_by_the_other_kinds():
    sampler = points(band_mm=1.5)
    corner = sampler.grid.part((0, 0, 0), (2, 2, 2))
    x, classes = sampler.draw(Shares(40, 30, 31), generator(), within=corner)
    assert len(x) == 101
    assert not classes.any()
    empty = LabelPoints(torch.zeros(4, 4, 4, dtype=torch.uint8), Grid.centred((4, 4, 4), 1.0), band_mm=1.0)
    x, classes = empty.draw(Shares(5, 5, 5), generator())
    assert len(x) == 15
    assert not classes.any()
    assert empty.centre(generator()) is None


def test_a_box_between_the_voxel_centres_gets_points_anywhere_in_it():
    sampler = points()
    tiny = sampler.grid.part((10.2, 9.2, 8.2), (2, 2, 2), 0.1)
    x, classes = sampler.draw(Shares(10, 10, 10), generator(), within=tiny)
    place = tiny.to_voxel(x.double())
    assert bool(((place > -0.51) & (place < 1.51)).all())
    assert torch.equal(classes, nearest(labels(), sampler.grid, x).long())


def test_the_generator_decides_everything():
    sampler = points(band_mm=1.0)
    torch.manual_seed(0)
    first = sampler.draw(Shares(20, 20, 20), generator())[0]
    torch.manual_seed(1)
    assert torch.equal(first, points(band_mm=1.0).draw(Shares(20, 20, 20), generator())[0])
    assert not torch.equal(first, sampler.draw(Shares(20, 20, 20), generator(1))[0])


def test_of_very_many_voxels_some_are_kept_of_every_class(monkeypatch):
    monkeypatch.setattr("scanfield.data.label_points.KEPT", 50)
    sampler = points()
    assert [len(v) for v in sampler._voxels] == [25 + 25, 50, 50]  # of the two classes inside as many
    x, classes = sampler.draw(Shares(100, 100, 100), generator())
    assert torch.equal(classes, nearest(labels(), sampler.grid, x).long())


def test_the_centre_of_a_crop_lies_in_a_structure():
    sampler = points(band_mm=1.0)
    for seed in range(5):
        x = sampler.centre(generator(seed))
        assert int(nearest(labels(), sampler.grid, x[None])) > 0
    thin = torch.zeros(6, 6, 6, dtype=torch.uint8)
    thin[3, 3, 3] = 1
    sampler = points(band_mm=9.0, classes=thin)
    assert int(nearest(thin, sampler.grid, sampler.centre(generator())[None])) == 1


@pytest.mark.parametrize("shares", [(-1, 1, 1), (0, 0, 0)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError, match="at least one point"):
        Shares(*shares)


def test_classes_and_grid_must_fit():
    with pytest.raises(ValueError, match="do not fit a grid"):
        LabelPoints(torch.zeros(3, 3, 3, dtype=torch.uint8), Grid.centred((3, 3, 4), 1.0), band_mm=0.0)
