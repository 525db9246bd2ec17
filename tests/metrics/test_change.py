"""How much of a change a result shows: exact cases, noise, and what is refused."""

import numpy as np
import pytest
import torch

from scanfield.errors import InputError
from scanfield.metrics.change import changed_voxels, recovered

SHAPE = (8, 6, 2)


def images():
    prior = np.random.default_rng(0).uniform(size=SHAPE)
    reference = prior.copy()
    reference[2:4, 1:3] += 0.5
    reference[6, 5, 0] -= 0.1  # 0.1^2 of 8 x 0.25 + 0.1^2 is less than a tenth
    return prior, reference


def test_the_region_holds_the_largest_changes_and_no_more():
    prior, reference = images()
    changed = changed_voxels(prior, reference)
    assert changed[2:4, 1:3].all() and changed.sum() == 8
    assert changed_voxels(prior, reference, share=1.0).sum() == 9
    mask = np.zeros(SHAPE)
    mask[6] = 1
    assert np.argwhere(changed_voxels(prior, reference, mask)).tolist() == [[6, 5, 0]]


@pytest.mark.parametrize("part", [0.0, 0.4, 1.0, 1.3])
def test_a_part_of_the_change_is_that_part(part):
    prior, reference = images()
    image = torch.tensor(prior + part * (reference - prior))
    assert recovered(image, prior, reference, changed_voxels(prior, reference)) == pytest.approx(part, abs=1e-9)


def test_noise_does_not_count_on_average():
    prior, reference = images()
    changed = changed_voxels(prior, reference)
    draws = np.random.default_rng(1)
    values = [recovered(prior + draws.normal(scale=0.5, size=SHAPE), prior, reference, changed) for _ in range(2000)]
    assert np.mean(values) == pytest.approx(0.0, abs=0.05)


def test_what_cannot_be_judged_is_refused():
    prior, reference = images()
    with pytest.raises(InputError, match="nothing changed"):
        changed_voxels(prior, prior)
    with pytest.raises(InputError, match="differ in shape"):
        changed_voxels(prior[:4], reference)
    with pytest.raises(InputError, match="differ in shape"):
        recovered(prior, prior, reference, np.ones((2, 2, 2)))
    with pytest.raises(InputError, match="nothing changed"):
        recovered(prior, prior, reference, np.zeros(SHAPE))
    with pytest.raises(ValueError, match="share"):
        changed_voxels(prior, reference, share=0.0)
