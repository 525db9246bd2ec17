"""Maps of world points: displacements, flows of velocities, compositions.

Notation: phi maps world points to world points, (*n, 3) -> (*n, 3), in mm (RAS+). For a pair of images it takes a point
of the fixed image to its place in the moving image, and the moving image is resampled at phi(x) onto the fixed grid.
u is a displacement in mm, v a velocity in mm per unit of its time.

`calculus.jacobian` and `calculus.hessian` of a map are those of phi in mm: J = 1 + grad u, and the Hessian of u. Maps
carry derivatives along (`fields.jets`) as far as their parts do: jets of a composition are the chain rule, and a step
of an integrator, being linear in x and v(x), maps jets as it maps points. `fields.inverse` inverts any map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scanfield.fields.image import ImageField
from scanfield.fields.jets import HasJets, order_of
from scanfield.kernels.jvp import Streams
from scanfield.space.domain import Domain
from scanfield.space.grid import Grid
from scanfield.space.pose import spatial_directions

Scheme = Literal["euler", "rk4"]


@runtime_checkable
class Invertible(Protocol):
    """A map that knows its inverse as a map."""

    def inverse(self) -> nn.Module: ...


class VectorHead(nn.Module):
    """A field's head that makes its outputs vectors in the world: sum_k scale_k z_k e_k.

    e_k is the direction of the domain's k-th spatial axis: a turned scan gives a turned motion. A field on a slice has
    two outputs, and its vectors lie in the slice.

    Args:
        domain: whose spatial axes count.
        scale_mm: the length (mm; for a velocity mm per unit of time) of an output of 1, one for all axes or one each.
            `domain.half_scale()` means displacements in the domain's unit coordinates.
    """

    columns: Tensor

    def __init__(self, domain: Domain, scale_mm: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        directions = spatial_directions(domain)
        scale = np.asarray(scale_mm, dtype=np.float64)
        if scale.shape not in ((), (len(directions),)) or not np.isfinite(scale).all():
            raise ValueError(f"a scale must be one finite number or {len(directions)}, got {scale_mm}")
        columns = np.broadcast_to(scale, len(directions))[:, None] * directions
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.float32), persistent=False)

    def forward(self, z: Float[Tensor, "*n k"]) -> Float[Tensor, "*n 3"]:
        return z @ self.columns.to(z.dtype)

    jet_order = 2

    def jets(self, z: Float[Tensor, "s n k"], streams: Streams) -> Float[Tensor, "s n 3"]:
        """See `fields.jets`."""
        return z @ self.columns.to(z.dtype)


class ConstantOutside(nn.Module):
    """A field that keeps, beyond its box, the value at the box's nearest point: a network there follows no data.

    Args:
        field: function of world points over `domain`.
    """

    matrix: Tensor
    limit: Tensor
    columns: Tensor

    def __init__(self, field: nn.Module, domain: Domain) -> None:
        super().__init__()
        self.field = field
        half = domain.half_scale()
        matrix = domain.matrix()
        limit = np.asarray(domain.extent) / 2 / half
        columns = matrix[:, :-1] * half[:, None] ** 2  # world steps per unit coordinate (orthogonal rows)
        for name, values in (("matrix", matrix), ("limit", limit), ("columns", columns)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n c"]:
        out: Tensor = self.field(self._clamped(x))
        return out

    @property
    def jet_order(self) -> int:
        """See `fields.jets`."""
        return order_of(self.field)

    def jets(self, x: Float[Tensor, "s n w"], streams: Streams) -> Float[Tensor, "s n c"]:
        """See `fields.jets`."""
        assert isinstance(self.field, HasJets)
        beyond = self._excess(x[0]) != 0  # a direction that leaves the box further leads nowhere
        along = x[1:] @ self.matrix[:, :-1].T.to(x.dtype) * beyond
        return self.field.jets(torch.cat([self._clamped(x[:1]), x[1:] - self._back(along)]), streams)

    def _excess(self, x: Tensor) -> Tensor:
        """How far points lie beyond the box along each of its axes, in unit coordinates; exactly 0 inside."""
        matrix, limit = self.matrix.to(x.dtype), self.limit.to(x.dtype)
        u = x @ matrix[:, :-1].T + matrix[:, -1]
        return u - torch.clamp(u, -limit, limit)

    def _clamped(self, x: Tensor) -> Tensor:
        return x - self._back(self._excess(x))

    def _back(self, u: Tensor) -> Tensor:
        """Unit coordinates -> world vectors."""
        return u @ self.columns.to(u.dtype)


class Displacement(nn.Module):
    """phi(x) = x + u(x).

    Args:
        field: u, world points (*n, 3) -> world vectors (*n, 3) in mm (`VectorHead`).
    """

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        return x + _vectors(self.field(x))

    @property
    def jet_order(self) -> int:
        """See `fields.jets`."""
        return order_of(self.field)

    def jets(self, x: Float[Tensor, "s n 3"], streams: Streams) -> Float[Tensor, "s n 3"]:
        """See `fields.jets`."""
        assert isinstance(self.field, HasJets)
        return x + _vectors(self.field.jets(x, streams))


class LatticeDisplacement(nn.Module):
    """phi(x) = x + u(x) of a displacement given at the voxels of a grid, interpolated by splines.

    Args:
        values: (n0, n1, n2, 3) mm along RAS+.
        grid: where they are; u is constant beyond.
        order: of the splines, see `ImageField`.
    """

    def __init__(self, values: Float[Tensor, "n0 n1 n2 3"], grid: Grid, *, order: Literal[1, 3] = 3) -> None:
        super().__init__()
        self.parts = nn.ModuleList(ImageField(values[..., k], grid, order=order) for k in range(3))

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        return x + torch.cat([part(x) for part in self.parts], dim=-1)


class Flow(nn.Module):
    """phi(x) = y(stop) for dy/dt = v(y, t), y(start) = x: where a velocity carries a point.

    The flow of a smooth velocity is invertible and keeps orientation, and its inverse is the same flow backwards. Both
    hold up to the error of the integrator: of order 1/steps for 'euler', 1/steps^4 for 'rk4' (the classical Runge-Kutta
    method; four evaluations of v a step). Memory during training grows with the number of evaluations.

    Args:
        velocity: v, points (*n, 3), or (*n, 4) with the time as last column where `timed`, -> vectors (*n, 3), mm per
            unit of time (`VectorHead`). Beyond its box a network follows no data: see `ConstantOutside`.
        steps: number of equal steps.
        scheme: of the integration.
        start, stop: times; start > stop runs backwards. A stationary velocity is followed for stop - start.
        timed: whether v depends on the time.
    """

    def __init__(
        self,
        velocity: nn.Module,
        *,
        steps: int,
        scheme: Scheme = "rk4",
        start: float = 0.0,
        stop: float = 1.0,
        timed: bool = False,
    ) -> None:
        super().__init__()
        if steps < 1 or not np.isfinite([start, stop]).all():
            raise ValueError(f"a flow needs at least one step and finite times, got {steps} from {start} to {stop}")
        self.velocity = velocity
        self.steps, self.scheme, self.start, self.stop, self.timed = steps, scheme, start, stop, timed

    @staticmethod
    def squaring(velocity: nn.Module, squarings: int) -> Flow:
        """exp(v) of a stationary velocity by scaling and squaring (Arsigny et al. 2006), with no lattice.

        The small-step map x + v(x) / 2^K is composed with itself K times, each time doubling the flow. On a lattice
        that takes K interpolations. Evaluated exactly, point by point, it is the 2^K-fold small step: Euler's method.
        """
        if squarings < 0:
            raise ValueError(f"the number of squarings cannot be negative, got {squarings}")
        return Flow(velocity, steps=2**squarings, scheme="euler")

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        for k in range(self.steps):
            x = self._step(x, k, self._rate)
        return x

    def path(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "times *n 3"]:
        """The points at all steps + 1 times, from `start` to `stop`."""
        points = [x]
        for k in range(self.steps):
            points.append(self._step(points[-1], k, self._rate))
        return torch.stack(points)

    @property
    def jet_order(self) -> int:
        """See `fields.jets`."""
        return order_of(self.velocity)

    def jets(self, x: Float[Tensor, "s n 3"], streams: Streams) -> Float[Tensor, "s n 3"]:
        """See `fields.jets`."""
        velocity = self.velocity
        assert isinstance(velocity, HasJets)

        def rate(y: Tensor, t: float) -> Tensor:
            if self.timed:
                time = y.new_zeros(*y.shape[:-1], 1)
                time[0] = t
                y = torch.cat([y, time], dim=-1)
            return _vectors(velocity.jets(y, streams))

        for k in range(self.steps):
            x = self._step(x, k, rate)
        return x

    def inverse(self) -> Flow:
        """The same flow backwards, with the same velocity."""
        return Flow(
            self.velocity, steps=self.steps, scheme=self.scheme, start=self.stop, stop=self.start, timed=self.timed
        )

    def _rate(self, y: Tensor, t: float) -> Tensor:
        return _vectors(self.velocity(torch.cat([y, torch.full_like(y[..., :1], t)], dim=-1) if self.timed else y))

    def _step(self, y: Tensor, k: int, rate: Callable[[Tensor, float], Tensor]) -> Tensor:
        """The state after step k, from the one before it; states are points, or jets of points."""
        h = (self.stop - self.start) / self.steps
        t = self.start + k * h
        a = rate(y, t)
        if self.scheme == "euler":
            return y + h * a
        b = rate(y + h / 2 * a, t + h / 2)
        c = rate(y + h / 2 * b, t + h / 2)
        d = rate(y + h * c, t + h)
        return y + h / 6 * (a + 2 * (b + c) + d)


class Composition(nn.Module):
    """phi(x) = last(... second(first(x))): maps in the order in which a point meets them.

    For a pair of images that are far apart, `Composition(Displacement(u), pose)` moves a fixed point by u in fixed
    space and then takes it to the moving image by a `space.pose.Pose`.

    Args:
        maps: at least one, each (*n, 3) -> (*n, 3).
    """

    def __init__(self, *maps: nn.Module) -> None:
        super().__init__()
        if not maps:
            raise ValueError("a composition needs at least one map")
        self.maps = nn.ModuleList(maps)

    def forward(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        for part in self.maps:
            x = part(x)
        return x

    @property
    def jet_order(self) -> int:
        """See `fields.jets`."""
        return order_of(*self.maps)

    def jets(self, x: Float[Tensor, "s n 3"], streams: Streams) -> Float[Tensor, "s n 3"]:
        """See `fields.jets`."""
        for part in self.maps:
            assert isinstance(part, HasJets)
            x = part.jets(x, streams)
        return x

    def inverse(self) -> Composition:
        """The inverses of the maps, last first.

        Raises:
            ValueError: a map does not know its inverse: use `fields.inverse.Inverse` on it, or on the whole.
        """
        backwards = []
        for part in reversed(self.maps):
            if not isinstance(part, Invertible):
                raise ValueError(f"a {type(part).__name__} does not know its inverse: use fields.inverse.Inverse")
            backwards.append(part.inverse())
        return Composition(*backwards)


def _vectors(values: Tensor) -> Tensor:
    if values.shape[-1] != 3:
        raise ValueError(f"a motion needs world vectors with 3 components, got {values.shape[-1]}: use VectorHead")
    return values
