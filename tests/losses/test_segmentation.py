"""Losses of classes against values worked out by hand."""

import math

import pytest
import torch

from scanfield.losses.segmentation import cross_entropy, mean_dice, soft_dice


def certain(classes, count):
    return 50.0 * torch.nn.functional.one_hot(classes, count).float()


def test_cross_entropy_is_the_mean_of_the_surprise():
    logits = torch.tensor([[[0.0, 0.0], [math.log(3.0), 0.0]]])
    classes = torch.tensor([[0, 1]], dtype=torch.uint8)
    assert float(cross_entropy(logits, classes)) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_soft_dice_of_even_probabilities_is_known():
    classes = torch.tensor([0, 0, 1, 2])
    found = float(soft_dice(torch.zeros(4, 3), classes))
    one = (2 / 3 + 1) / (4 / 3 + 1 + 1)  # 2 sum p g + e over sum p + sum g + e, the same for both classes
    assert found == pytest.approx(1 - one)


def test_soft_dice_is_zero_where_all_is_right_and_near_one_where_all_is_wrong():
    classes = torch.tensor([0, 1, 1, 2] * 100)
    assert float(soft_dice(certain(classes, 3), classes)) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice(certain((classes + 1) % 3, 3), classes)) > 0.99


def test_a_class_that_is_absent_costs_what_probability_it_gets():
    classes = torch.zeros(50, dtype=torch.long)
    assert float(soft_dice(certain(classes, 2), classes)) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice(certain(classes + 1, 2), classes)) == pytest.approx(1 - 1 / 51, abs=1e-6)


def test_soft_dice_does_not_depend_on_the_order_of_the_points_and_is_the_mean_over_images():
    generator = torch.Generator().manual_seed(0)
    logits, classes = torch.randn(6, 4, 3, generator=generator), torch.randint(3, (6, 4), generator=generator)
    order = torch.randperm(4, generator=generator)
    torch.testing.assert_close(soft_dice(logits, classes), soft_dice(logits[:, order], classes[:, order]))
    each = torch.stack([soft_dice(a, b) for a, b in zip(logits, classes, strict=True)])
    torch.testing.assert_close(soft_dice(logits, classes), each.mean())


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, generator=generator, dtype=torch.double).requires_grad_()
    classes = torch.randint(3, (7,), generator=generator)
    assert torch.autograd.gradcheck(soft_dice, (logits, classes))
    assert torch.autograd.gradcheck(cross_entropy, (logits, classes))


def test_dice_needs_a_class_beside_the_background():
    with pytest.raises(ValueError, match="beside background"):
        soft_dice(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))


def test_mean_dice_counts_the_classes_that_are_there():
    true = torch.tensor([0, 0, 1, 1, 2, 2])
    assert mean_dice(true, true) == 1
    assert mean_dice(torch.tensor([0, 1, 1, 0, 2, 2]), true) == pytest.approx((0.5 + 1) / 2)
    assert mean_dice(torch.tensor([0, 0, 1, 1, 3, 3]), true) == pytest.approx(0.5)
    assert mean_dice(torch.zeros(3, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)) == 1
    assert mean_dice(torch.tensor([0, 1]), torch.tensor([0, 0])) == 0
