from __future__ import annotations

import pytest
import torch

from scanfield.losses.data import huber, l1, l2

P, Y = torch.tensor([[1.0, 2.0], [3.0, -4.0]]), torch.tensor([[1.5, 2.0], [0.0, -2.0]])


def test_by_hand():
    assert l1(P, Y).item() == pytest.approx((0.5 + 0 + 3 + 2) / 4)
    assert l2(P, Y).item() == pytest.approx((0.25 + 0 + 9 + 4) / 4)
    assert huber(P, Y, 1.0).item() == pytest.approx((0.125 + 0 + 2.5 + 1.5) / 4)
    assert huber(P, Y, 10.0).item() == pytest.approx(l2(P, Y).item() / 2)


@pytest.mark.parametrize("loss", [l1, l2, lambda p, y: huber(p, y, 0.7)])
def test_a_mean_does_not_depend_on_the_batch_size(loss):
    torch.testing.assert_close(loss(P.repeat(5, 1), Y.repeat(5, 1)), loss(P, Y))
