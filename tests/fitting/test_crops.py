"""Crops of labelled images: the image, the points and the classes belong to the same places in the world."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scanfield.data.cohort import read_cohort
from scanfield.data.nifti import write_nifti
from scanfield.data.standard import Intensities, StandardImage, ras_grid
from scanfield.errors import InputError
from scanfield.fields.image import ImageField, nearest
from scanfield.fitting.crops import CropConfig, CropSource, _around, batch, check_axes, draw_crop, whole_image
from scanfield.space.grid import Grid

PLAIN = CropConfig(
    size=10,
    interior=20,
    boundary=30,
    background=10,
    band=1.0,
    rotation_deg=0.0,
    scale=1.0,
    shift=0.0,
    contrast=1.0,
    noise=0.0,
)
AUGMENTED = replace(PLAIN, rotation_deg=30.0, scale=1.2, shift=2.0, mirror=(0,))


def oblique(shape, spacing=(-1.0, 1.5, 2.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [5, -9, 12], degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = (30, -12, 80)
    return Grid(shape, affine)


def ball(grid, radius_mm=6.0):
    """A bright ball off the middle, and its label (1)."""
    distance = (grid.points() - torch.from_numpy(grid.centre_mm).float() - torch.tensor([2.0, -1.0, 1.0])).norm(dim=1)
    values = (100 * (radius_mm - distance).clamp(-3, 3) / 3).reshape(grid.shape)
    return values, (distance <= radius_mm).reshape(grid.shape).to(torch.uint8)


def cohort(folder, *grids, splits=("train", "train", "validation")):
    lines = ["path,label,subject,split"]
    for k, (grid, split) in enumerate(zip(grids, splits, strict=True)):
        values, label = ball(grid)
        write_nifti(folder / f"{k}.nii.gz", values + k, grid)
        write_nifti(folder / f"{k}_label.nii.gz", label, grid)
        lines.append(f"{k}.nii.gz,{k}_label.nii.gz,{k},{split}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    return read_cohort(folder / "cohort.csv")


GRIDS = (oblique((18, 20, 16)), oblique((16, 22, 14)), oblique((14, 16, 12)))
SLICES = tuple(oblique((n, 20, 1)) for n in (18, 16, 14))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grids", [GRIDS, SLICES], ids=["volumes", "slices"])
@pytest.mark.parametrize("config", [PLAIN, AUGMENTED], ids=["plain", "augmented"])
def test_image_and_points_of_a_crop_are_those_of_the_world(tmp_path, grids, config):
    source = CropSource(config, cohort(tmp_path, *grids))
    for seed in range(4):
        image = source.train[seed % 2]
        crop = draw_crop(image, source, generator(seed))
        (grid,) = crop.grids
        assert tuple(crop.image.shape) == (1, *source.thick)
        expected = ImageField(image.image.values, image.image.grid)(grid.points())
        torch.testing.assert_close(crop.image.reshape(-1), expected.reshape(-1))
        assert torch.equal(crop.classes, nearest(image.classes, image.grid, crop.x).long())
        place = grid.to_voxel(image.grid.to_world(image.grid.to_voxel(crop.x.double()).round()))
        size = torch.tensor(grid.shape)
        assert bool(((place >= -0.51) & (place <= size - 0.49))[:, size > 1].all())


def test_a_slice_stays_in_its_plane_when_it_is_moved(tmp_path):
    source = CropSource(AUGMENTED, cohort(tmp_path, *SLICES))
    image = source.train[0]
    (grid,) = draw_crop(image, source, generator()).grids
    assert image.image.grid.to_voxel(grid.points().double())[:, 2].abs().max() < 1e-4


def test_without_augmentation_a_crop_is_a_box_of_voxels_inside_the_image(tmp_path):
    source = CropSource(PLAIN, cohort(tmp_path, *GRIDS))
    whole = source.train[0].image
    firsts = set()
    for seed in range(20):
        crop = draw_crop(source.train[0], source, generator(seed))
        first = whole.grid.to_voxel(torch.tensor(crop.grids[0].affine[:3, 3]))
        assert torch.allclose(first, first.round(), atol=1e-6)
        a, b, c = (int(n) for n in first.round())
        assert min(a, b, c) >= 0
        expected = whole.values[a : a + 10, b : b + 10, c : c + 10]
        torch.testing.assert_close(crop.image[0], expected, atol=1e-4, rtol=1e-4)
        firsts.add((a, b, c))
    assert len(firsts) > 10


def test_augmentation_changes_the_look_and_the_place(tmp_path):
    looks = replace(PLAIN, contrast=1.5, noise=0.2)
    plain, loud = (
        draw_crop(s.train[0], s, generator())
        for s in (CropSource(config, cohort(tmp_path, *GRIDS)) for config in (PLAIN, looks))
    )
    assert np.array_equal(plain.grids[0].affine, loud.grids[0].affine)
    assert float((plain.image - loud.image).abs().mean()) > 0.01
    source = CropSource(AUGMENTED, cohort(tmp_path, *GRIDS))
    spacings = [draw_crop(source.train[0], source, generator(k)).grids[0].spacing_mm[0] for k in range(6)]
    assert max(spacings) > 1.03
    assert min(spacings) < 0.97


def test_crops_are_as_large_as_the_median_image_at_most(tmp_path):
    source = CropSource(replace(PLAIN, size=64), cohort(tmp_path, *GRIDS))
    assert source.shape == (17, 21, 15)
    assert source.spacing_mm == pytest.approx((1.0, 1.5, 2.0))
    small = CropSource(replace(PLAIN, spacing_mm=(2.0, 3.0, 4.0)), cohort(tmp_path, *GRIDS))
    assert small.shape == (8, 10, 7)
    assert small.train[0].image.grid.spacing_mm == pytest.approx((2.0, 3.0, 4.0))
    assert small.train[0].grid.spacing_mm == pytest.approx((1.0, 1.5, 2.0)), "labels stay as they are"


@pytest.mark.parametrize("grids", [GRIDS, SLICES], ids=["volumes", "slices"])
def test_with_detail_a_crop_has_finer_voxels_around_the_encoder_s(tmp_path, grids):
    config = replace(AUGMENTED, detail=2, spacing_mm=(2.0, 3.0, 4.0), size=6)
    source = CropSource(config, cohort(tmp_path, *grids))
    image = source.train[0]
    assert image.image.grid.same_as(ras_grid(image.grid)), "the image as it came"
    crop = draw_crop(image, source, generator())
    (grid,) = crop.grids
    assert tuple(n for n in grid.shape if n > 1) == source.thick
    assert tuple(crop.image.shape[1:]) == tuple(2 * n for n in source.thick)
    factors = np.array(source.factors)
    fine = grid.part((1 - factors) / (2 * factors), np.array(grid.shape) * factors, 1 / factors)
    expected = ImageField(image.image.values, image.image.grid)(fine.points())
    torch.testing.assert_close(crop.image.reshape(-1), expected.reshape(-1), atol=1e-4, rtol=1e-4)
    assert torch.equal(crop.classes, nearest(image.classes, image.grid, crop.x).long())


def test_a_whole_image_fills_the_encoder_s_last_voxels():
    grid = oblique((7, 6, 5))
    values = torch.randn(7, 6, 5, generator=generator())
    whole, coarse = whole_image(StandardImage(values, grid, (-1.0, 1.0)), (2, 2, 2))
    assert tuple(whole.shape) == (1, 1, 8, 6, 6)
    assert coarse.shape == (4, 3, 3)
    assert torch.equal(whole[0, 0, :7, :, :5], values)
    assert torch.equal(whole[0, 0, 7, :, :5], values[6])
    assert torch.allclose(coarse.to_world(torch.zeros(3)), grid.to_world(torch.full((3,), 0.5)))
    same, unchanged = whole_image(StandardImage(values, grid, (-1.0, 1.0)), (1, 1, 1))
    assert torch.equal(same[0, 0], values)
    assert unchanged.same_as(grid)


def test_an_image_smaller_than_the_crop_goes_on_with_its_edge(tmp_path):
    tiny = oblique((6, 6, 6))
    source = CropSource(replace(PLAIN, size=64), cohort(tmp_path, GRIDS[0], tiny, GRIDS[1], splits=("train",) * 3))
    crop = draw_crop(source.train[1], source, generator())
    assert tuple(crop.image.shape[1:]) == source.shape
    assert bool(torch.isfinite(crop.image).all())
    assert torch.equal(crop.classes, nearest(source.train[1].classes, tiny, crop.x).long())


def test_the_generator_decides_a_crop(tmp_path):
    source = CropSource(AUGMENTED, cohort(tmp_path, *GRIDS))
    one, same, other = (draw_crop(source.train[0], source, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.image, same.image)
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.x, other.x)


def test_a_batch_keeps_the_order_of_its_crops(tmp_path):
    source = CropSource(PLAIN, cohort(tmp_path, *GRIDS))
    crops = [draw_crop(source.train[k], source, generator(k)) for k in (1, 0)]
    whole = batch(crops, torch.device("cpu"))
    assert whole.image.shape == (2, 1, 10, 10, 10)
    for k, crop in enumerate(crops):
        assert torch.equal(whole.image[k], crop.image)
        assert torch.equal(whole.x[k], crop.x)
        assert torch.equal(whole.classes[k], crop.classes)
        assert whole.grids[k] is crop.grids[0]


def test_a_model_learns_what_intensities_are_usual(tmp_path):
    facts = CropSource(PLAIN, cohort(tmp_path, *GRIDS)).facts()
    (a, b), (c, d) = facts["intensity"]["ends"]
    assert (a, b) == pytest.approx((-100, -99), abs=0.2), "the second image is brighter by one"
    assert (c, d) == pytest.approx((100, 101), abs=0.2)
    assert (facts["dims"], facts["axes"]) == (3, [0, 1, 2])
    assert facts["spacing_mm"] == pytest.approx([1.0, 1.5, 2.0])
    assert json.loads(json.dumps(facts)) == facts
    absolute = replace(PLAIN, intensities=Intensities(window=(-50.0, 50.0)))
    source = CropSource(absolute, cohort(tmp_path, *GRIDS))
    assert source.facts()["intensity"]["ends"] == [pytest.approx(pair, abs=0.2) for pair in [(a, b), (c, d)]]
    assert float(source.train[0].image.values.max()) == pytest.approx(2, abs=0.1)


def test_the_part_of_an_image_that_a_crop_needs_is_enough(tmp_path):
    source = CropSource(replace(AUGMENTED, size=5), cohort(tmp_path, *GRIDS))
    image = source.train[0]
    for seed in range(10):
        (grid,) = draw_crop(image, source, generator(seed)).grids
        near = _around(image.image, grid)
        assert near.image.numel() < image.image.values.numel()
        whole = ImageField(image.image.values, image.image.grid)
        torch.testing.assert_close(near(grid.points()), whole(grid.points()), atol=1e-4, rtol=1e-4)


def test_watched_voxels_spread_through_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr("scanfield.fitting.crops._WATCHED", 500)
    image = CropSource(PLAIN, cohort(tmp_path, *GRIDS)).validation[0]
    x, classes = image.watched()
    assert 400 < len(x) <= 500
    assert torch.equal(classes, nearest(image.classes, image.grid, x).long())


@pytest.mark.parametrize("grids", [GRIDS, tuple(oblique((n, 400, 1)) for n in (400, 401, 402))])
def test_what_stays_in_memory_is_counted_with_the_points(tmp_path, monkeypatch, grids):
    monkeypatch.setattr("scanfield.fitting.crops._KEPT_BYTES", 2**24)
    source = CropSource(PLAIN, cohort(tmp_path, *grids))
    used = 0
    for kept in (source.train[0], source.train[1]):
        tensors = [kept.image.values, kept.classes, *kept.points._voxels, *kept.points._classes]
        used += sum(tensor.untyped_storage().nbytes() for tensor in tensors) // 2
    assert 0.3 * 2**24 < source.train.keep * used <= 2**24


def test_slices_and_volumes_do_not_mix(tmp_path):
    with pytest.raises(InputError, match="the image extends along right, anterior; those the network learns from"):
        CropSource(PLAIN, cohort(tmp_path, GRIDS[0], SLICES[0], GRIDS[1]))
    with pytest.raises(InputError, match="slices of one orientation, or volumes"):
        CropSource(PLAIN, cohort(tmp_path, GRIDS[0], GRIDS[1], SLICES[0]))
    check_axes(SLICES[0], [0, 1], "")


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"spacing_mm": (1.0,)}, "three positive numbers"),
        ({"spacing_mm": (1.0, 1.0, 0.0)}, "three positive numbers"),
        ({"size": 3}, "four voxels"),
        ({"detail": 0}, "at least as fine"),
        ({"mirror": (2,)}, "axes that can be mirrored are 0 to 1"),
        ({"scale": 0.9}, "factor of 1 or more"),
        ({"contrast": 0.5}, "factor of 1 or more"),
        ({"rotation_deg": -1.0}, "cannot be negative"),
        ({"interior": 0, "boundary": 0, "background": 0}, "nor all of them zero"),
        ({"interior": -1}, "nor all of them zero"),
        ({"spacing_mm": (50.0, 1.0, 1.0)}, "voxels of 50 x 1 x 1 mm leave 1 x 30 x 1 of the image"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, setting, what):
    with pytest.raises(InputError, match=what):
        CropSource(replace(PLAIN, **setting), cohort(tmp_path, *SLICES))
