"""A rigid or affine map between two images is found again, on grids that differ."""

import numpy as np
import pytest
import torch

from scanfield.data.pair import Pair
from scanfield.data.scan import Scan
from scanfield.fitting.align import align, centred_pose
from scanfield.run import Run
from scanfield.space.grid import Grid
from scanfield.space.pose import Pose

FIXED = Grid.centred((40, 36, 20), (3.0, 3.0, 5.0))
MOVING = Grid((36, 44, 30), np.array([[-3.5, 0, 0, 70], [0, 3.0, 0, -50], [0, 0, 4.0, -45], [0, 0, 0, 1.0]]))


def head(x: torch.Tensor) -> torch.Tensor:
    place = (x.double() / torch.tensor([40.0, 34.0, 30.0])).norm(dim=-1)
    inside = torch.sigmoid((1 - place) * 12)
    return (inside * (2 + (x[:, 0] / 13).sin() + (x[:, 1] / 11).cos() * (x[:, 2] / 12).sin())).float()


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_known_pose_is_found(kind: str) -> None:
    true = Pose(kind, centre_mm=(3.0, -2.0, 5.0))  # type: ignore[arg-type]
    with torch.no_grad():
        true.rotation.copy_(torch.tensor([0.12, -0.1, 0.15]))
        true.translation.copy_(torch.tensor([6.0, -8.0, 5.0]))
        if true.log_scale is not None:
            true.log_scale.copy_(torch.tensor([0.08, -0.05, 0.04]))
    x = FIXED.points()
    with torch.no_grad():
        fixed = head(true(x)).reshape(FIXED.shape)
    pair = Pair(Scan(fixed, FIXED), Scan(head(MOVING.points()).reshape(MOVING.shape), MOVING))
    found = Pose(kind, centre_mm=FIXED.centre_mm)  # type: ignore[arg-type]
    centred_pose(found, pair)
    logs = align(found, pair, Run(seed=0))
    inside = x[x.norm(dim=-1) < 35]
    with torch.no_grad():
        before = float((true(inside) - inside).norm(dim=-1).mean())
        after = float((true(inside) - found(inside)).norm(dim=-1).mean())
    assert before > 8 and after < 0.5
    assert len(logs) == 2 and logs[-1].stopped == "steps"
