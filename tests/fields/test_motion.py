"""Maps of points against closed-form flows, their Jacobians against automatic differentiation, and their inverses."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from scanfield.fields import calculus
from scanfield.fields.encodings.frequency import Identity
from scanfield.fields.field import Field
from scanfield.fields.heads import LinearHead
from scanfield.fields.jets import carries, order_of
from scanfield.fields.motion import Composition, ConstantOutside, Displacement, Flow, VectorHead
from scanfield.fields.networks.mlp import MLP
from scanfield.fields.networks.siren import Siren
from scanfield.space.domain import Axis, Domain
from scanfield.space.grid import Grid
from scanfield.space.pose import Pose, spatial_directions


def oblique(shape: tuple[int, int, int] = (20, 24, 16), *, mirrored: bool = False) -> Grid:
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([2.0, -3.0 if mirrored else 3.0, 4.0])
    affine[:3, 3] = (30.0, -60.0, 11.0)
    return Grid(shape, affine)


def smooth(
    domain: Domain, *, scale_mm: float = 4.0, omega: float = 3.0, seed: int = 0, activation: str = "sine"
) -> Field:
    """A random smooth vector field in float64, a few mm large."""
    generator = torch.Generator().manual_seed(seed)
    outputs = len(spatial_directions(domain))
    widths = [domain.dims, 16, 16, outputs]
    network: nn.Module
    if activation == "sine":
        network = Siren(widths, omegas=[omega, omega], generator=generator)
    else:
        network = MLP(widths, generator=generator, activation=torch.nn.functional.softplus)
    return Field(domain, Identity(domain.dims), network, VectorHead(domain, scale_mm)).double()


def inside(domain: Domain, count: int = 12, *, reach: float = 0.7) -> torch.Tensor:
    u = reach * (2 * torch.rand(count, domain.dims, generator=torch.Generator().manual_seed(9)).double() - 1)
    return domain.from_unit(u * torch.tensor(np.asarray(domain.extent) / 2 / domain.half_scale()))[:, :3]


class Linear(nn.Module):
    """v(x) = M (x - c)."""

    def __init__(self, matrix: torch.Tensor, centre: torch.Tensor) -> None:
        super().__init__()
        self.m, self.c = matrix, centre

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.c) @ self.m.T

    jet_order = 2

    def jets(self, x: torch.Tensor, streams: object) -> torch.Tensor:
        return torch.cat([self(x[:1]), x[1:] @ self.m.T])


class Spinning(nn.Module):
    """v(x, t) = w t (-y, x, 0): turns by w (t1^2 - t0^2) / 2 between two times."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, _, t = x.unbind(-1)
        return torch.stack([-b * t, a * t, torch.zeros_like(t)], dim=-1)


MATRIX = torch.tensor([[0.2, -0.9, 0.1], [0.8, -0.1, 0.3], [0.0, 0.2, 0.4]], dtype=torch.float64)
CENTRE = torch.tensor([5.0, -3.0, 8.0], dtype=torch.float64)


def exponential(time: float) -> Pose:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.linalg.matrix_exp(time * MATRIX)
    affine[:3, 3] = CENTRE - affine[:3, :3] @ CENTRE
    return Pose.of_matrix(affine.numpy(), centre_mm=CENTRE.numpy()).double()


def test_vectors_are_counted_along_the_axes_of_the_scan() -> None:
    for mirrored in (False, True):
        grid = oblique(mirrored=mirrored)
        head = VectorHead(Domain.of_grid(grid), 2.0).double()
        expected = torch.tensor(2.0 * grid.directions.T)
        torch.testing.assert_close(head(torch.eye(3, dtype=torch.float64)), expected, atol=1e-6, rtol=0)
    head = VectorHead(Domain.of_grid(oblique((20, 1, 16))), (2.0, 5.0)).double()
    expected = torch.tensor(oblique().directions.T[[0, 2]] * [[2.0], [5.0]])
    torch.testing.assert_close(head(torch.eye(2, dtype=torch.float64)), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="one finite number or 2"):
        VectorHead(Domain.of_grid(oblique((20, 1, 16))), (1.0, 2.0, 3.0))


def test_a_turned_scan_gives_the_turned_motion() -> None:
    turn = Pose.of_matrix(np.array([[0.0, -1, 0, 3], [1, 0, 0, -8], [0, 0, 1, 1], [0, 0, 0, 1]])).double()
    grid = oblique()
    here = Displacement(smooth(Domain.of_grid(grid)))
    there = Displacement(smooth(Domain.of_grid(grid.moved(turn.matrix().detach().numpy()))))
    x = inside(Domain.of_grid(grid))
    torch.testing.assert_close(there(turn(x)), turn(here(x)), atol=1e-4, rtol=0)


def test_a_slice_moves_within_itself() -> None:
    domain = Domain.of_grid(oblique((20, 24, 1)))
    phi = Composition(Displacement(smooth(domain)), Flow(smooth(domain, seed=1), steps=3))
    x = inside(domain)
    normal = torch.tensor(np.cross(*spatial_directions(domain)))
    moved = phi(x) - x
    assert float(moved.detach().norm(dim=-1).min()) > 0.05 and float((moved @ normal).detach().abs().max()) < 1e-5
    _, matrix = calculus.jacobian(phi, x)
    torch.testing.assert_close(matrix @ normal, normal.expand(len(x), 3), atol=1e-6, rtol=0)


def test_the_flow_of_nothing_is_the_identity() -> None:
    domain = Domain.of_grid(oblique())
    x = inside(domain)
    still = smooth(domain, scale_mm=0.0)
    for phi in (Displacement(still), Flow(still, steps=3), Flow.squaring(still, 4), Flow(smooth(domain), steps=2)):
        if isinstance(phi, Flow) and phi.velocity is not still:
            phi = Flow(phi.velocity, steps=2, start=0.4, stop=0.4)
        value, matrix = calculus.jacobian(phi, x)
        assert torch.equal(value, x)
        torch.testing.assert_close(matrix, torch.eye(3).double().expand(12, 3, 3), atol=1e-15, rtol=0)


@pytest.mark.parametrize("time", [1.0, 0.5, -1.0])
def test_the_flow_of_a_linear_velocity_is_the_matrix_exponential(time: float) -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30
    truth = exponential(time)
    flow = Flow(Linear(MATRIX, CENTRE), steps=16, stop=time)
    torch.testing.assert_close(flow(x), truth(x), atol=2e-4, rtol=0)
    value, first, second = calculus.hessian(flow, x)
    torch.testing.assert_close(value, flow(x))
    torch.testing.assert_close(first, torch.linalg.matrix_exp(time * MATRIX).expand(6, 3, 3), atol=1e-5, rtol=0)
    assert second.abs().max() == 0


def error(flow: Flow) -> float:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30
    affine = torch.linalg.matrix_exp(MATRIX)
    return float((flow(x) - ((x - CENTRE) @ affine.T + CENTRE)).norm(dim=-1).max())


@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("rk4", 4)])
def test_integrators_have_their_order(scheme: str, order: int) -> None:
    coarse, fine = (error(Flow(Linear(MATRIX, CENTRE), steps=steps, scheme=scheme)) for steps in (16, 32))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_scaling_and_squaring_is_the_composed_small_step_and_converges_to_the_exponential() -> None:
    velocity = Linear(MATRIX, CENTRE)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30

    def squared(y: torch.Tensor, k: int) -> torch.Tensor:
        return y + velocity(y) / 2**6 if k == 0 else squared(squared(y, k - 1), k - 1)

    torch.testing.assert_close(Flow.squaring(velocity, 6)(x), squared(x, 6))
    errors = [error(Flow.squaring(velocity, k)) for k in (6, 8, 10)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1) and errors[1] / errors[2] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.5), (0.5, 2.0), (2.0, 0.5)])
def test_a_time_varying_velocity_is_followed_between_two_times(start: float, stop: float) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20
    flow = Flow(Spinning(), steps=40, start=start, stop=stop, timed=True)
    angle = (stop**2 - start**2) / 2
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1.0]])
    turn = turn.double()
    torch.testing.assert_close(flow(x), x @ turn.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(flow.inverse()(flow(x)), x, atol=1e-4, rtol=0)
    torch.testing.assert_close(calculus.jacobian(flow, x)[1], turn.expand(5, 3, 3), atol=1e-5, rtol=0)


def test_a_flow_that_runs_on_is_the_composition_and_a_path_ends_where_it_does() -> None:
    velocity = smooth(Domain.of_grid(oblique()).with_axis(Axis("t", "s", 0.0, 2.0)))
    x = inside(Domain.of_grid(oblique()))
    first = Flow(velocity, steps=6, start=0.0, stop=0.75, timed=True)
    second = Flow(velocity, steps=10, start=0.75, stop=2.0, timed=True)
    whole = Flow(velocity, steps=16, start=0.0, stop=2.0, timed=True)
    torch.testing.assert_close(Composition(first, second)(x), whole(x))
    path = whole.path(x.reshape(3, 4, 3))
    assert path.shape == (17, 3, 4, 3)
    torch.testing.assert_close(path[6].reshape(12, 3), first(x))
    torch.testing.assert_close(path[-1].reshape(12, 3), whole(x))


@pytest.mark.parametrize("timed", [False, True])
def test_backwards_undoes_a_flow_to_the_order_of_the_integrator(timed: bool) -> None:
    box = Domain.of_grid(oblique())
    domain = box.with_axis(Axis("t", "s", 0.0, 1.0)) if timed else box
    velocity = smooth(domain, scale_mm=20.0)
    x = inside(box, 50)
    errors = {}
    for scheme in ("euler", "rk4"):
        flow = Flow(velocity, steps=8, scheme=scheme, timed=timed)
        assert float((flow(x) - x).detach().norm(dim=-1).mean()) > 2
        errors[scheme] = float((flow.inverse()(flow(x)) - x).detach().norm(dim=-1).max())
        assert (calculus.determinant(calculus.jacobian(flow, x)[1]) > 0).all()
    assert errors["rk4"] < 1e-3 and errors["rk4"] < errors["euler"] / 100, errors


def every_map() -> dict[str, nn.Module]:
    box = Domain.of_grid(oblique())
    timed = box.with_axis(Axis("t", "s", 0.0, 1.0))
    pose = Pose("affine", centre_mm=box.from_unit(torch.zeros(1, 3))[0].numpy()).double()
    with torch.no_grad():
        pose.rotation.copy_(torch.tensor([0.2, -0.1, 0.3]))
        pose.log_scale.copy_(torch.tensor([0.1, -0.1, 0.05]))
        pose.translation.copy_(torch.tensor([9.0, -4.0, 2.0]))
    displacement = Displacement(ConstantOutside(smooth(box, seed=4), box))
    return {
        "displacement": Displacement(smooth(box)),
        "outside": displacement,
        "euler": Flow(smooth(box, seed=1), steps=3, scheme="euler"),
        "rk4": Flow(smooth(box, seed=2), steps=2),
        "timed": Flow(smooth(timed, seed=3), steps=2, timed=True),
        "composition": Composition(displacement, pose, Flow(smooth(box, seed=5), steps=1)),
        "backwards": Composition(pose, Flow(smooth(box, seed=5), steps=1)).inverse(),
    }


@pytest.mark.parametrize("name", every_map())
def test_jacobians_and_hessians_equal_automatic_differentiation(name: str) -> None:
    phi = every_map()[name]
    assert carries(phi, 2)
    x = inside(Domain.of_grid(oblique()), reach=1.2)
    for mine, other in zip(calculus.hessian(phi, x), calculus.hessian(lambda x: phi(x), x), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["outside", "timed", "composition"])
def test_losses_on_derivatives_are_differentiable_in_parameters_and_points(name: str) -> None:
    """By central differences along random directions: the whole gradcheck would take minutes."""
    phi = every_map()[name]
    x = inside(Domain.of_grid(oblique()), 4, reach=1.2)

    def energy(x: torch.Tensor) -> torch.Tensor:
        _, first, second = calculus.hessian(phi, x)
        return (calculus.determinant(first) - 1).square().sum() + 100 * second.square().sum()

    variables = [x.requires_grad_(), *phi.parameters()]
    gradients = torch.autograd.grad(energy(x), variables, allow_unused=True)
    generator = torch.Generator().manual_seed(1)
    for variable, gradient in zip(variables, gradients, strict=True):
        if gradient is None:
            continue  # the bias of a last layer moves all points alike
        way = torch.randn(variable.shape, generator=generator, dtype=torch.float64)
        step = 1e-5
        with torch.no_grad():
            variable += step * way
            above = energy(x)
            variable -= 2 * step * way
            below = energy(x)
            variable += step * way
        slope = float((above - below) / (2 * step))
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_maps_without_jets_fall_back_to_automatic_differentiation() -> None:
    domain = Domain.of_grid(oblique())
    plain = smooth(domain, activation="softplus")
    x = inside(domain)
    for phi in (
        Displacement(plain),
        Flow(plain, steps=2),
        Composition(Displacement(smooth(domain)), Flow(plain, steps=1)),
    ):
        assert order_of(phi) == 0
        value, matrix = calculus.jacobian(phi, x)
        step = 1e-5
        columns = [(phi(x + step * e) - phi(x - step * e)) / (2 * step) for e in torch.eye(3, dtype=torch.float64)]
        torch.testing.assert_close(value, phi(x))
        torch.testing.assert_close(matrix, torch.stack(columns, dim=-1), atol=1e-7, rtol=0)


@pytest.mark.parametrize("shape", [(20, 24, 16), (20, 24, 1)])
def test_beyond_its_box_a_field_can_be_kept_constant(shape: tuple[int, int, int]) -> None:
    domain = Domain.of_grid(oblique(shape))
    field = smooth(domain)
    kept = ConstantOutside(field, domain)
    within, beyond = inside(domain, reach=0.99), inside(domain, 50, reach=3.0)
    assert torch.equal(kept(within), field(within))
    torch.testing.assert_close(kept(beyond), field(domain.clamp(beyond)), atol=1e-5, rtol=0)
    assert float((kept(beyond) - field(beyond)).detach().abs().max()) > 0.1
    value, matrix = calculus.jacobian(kept, beyond)
    torch.testing.assert_close(value, kept(beyond))
    out = domain.to_unit(beyond).abs() > torch.tensor(np.asarray(domain.extent) / 2 / domain.half_scale())
    along = matrix @ torch.tensor(spatial_directions(domain)).T  # derivatives along the box's axes
    assert float(along.detach().abs().amax(dim=1)[out].max()) < 1e-6
    assert float(along.detach().abs().amax(dim=1)[~out].min()) > 1e-6


def test_poses_join_motions_in_the_order_a_point_meets_them() -> None:
    domain = Domain.of_grid(oblique())
    u, pose = smooth(domain), exponential(0.3)
    x = inside(domain)
    torch.testing.assert_close(Composition(Displacement(u), pose)(x), pose(x + u(x)))
    torch.testing.assert_close(Composition(pose, Displacement(u))(x), pose(x) + u(pose(x)))
    both = Composition(Flow(u, steps=8), pose)
    torch.testing.assert_close(both.inverse()(both(x)), x, atol=1e-4, rtol=0)
    assert {id(p) for p in both.inverse().parameters()} == {id(p) for p in both.parameters()}


def test_shapes_are_kept_also_without_points_and_in_float32() -> None:
    for phi in every_map().values():
        x = inside(Domain.of_grid(oblique()))
        assert phi(x.reshape(2, 6, 3)).shape == (2, 6, 3)
        assert phi(x[:0]).shape == (0, 3)
        torch.testing.assert_close(phi.float()(x.float()).double(), phi.double()(x), atol=1e-3, rtol=0)


def test_what_is_no_motion_is_refused() -> None:
    domain = Domain.of_grid(oblique())
    scalar = Field(
        domain, Identity(3), Siren([3, 4, 1], omegas=[1.0], generator=torch.Generator().manual_seed(0)), LinearHead()
    )
    x = inside(domain).float()
    for phi in (Displacement(scalar), Flow(scalar, steps=1)):
        with pytest.raises(ValueError, match="3 components, got 1"):
            phi(x)
        with pytest.raises(ValueError, match="3 components, got 1"):
            calculus.jacobian(phi, x)
    with pytest.raises(ValueError, match="at least one step"):
        Flow(scalar, steps=0)
    with pytest.raises(ValueError, match="finite times"):
        Flow(scalar, steps=1, stop=math.inf)
    with pytest.raises(ValueError, match="negative"):
        Flow.squaring(scalar, -1)
    with pytest.raises(ValueError, match="at least one map"):
        Composition()
    with pytest.raises(ValueError, match="Displacement does not know its inverse"):
        Composition(Displacement(scalar)).inverse()
