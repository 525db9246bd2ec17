"""The Triton kernels of networks against a float64 reference: through the interpreter, and on a CUDA device if any."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402

from scanfield.errors import InputError  # noqa: E402
from scanfield.kernels import mlp_triton, mlp_triton_kernels  # noqa: E402
from scanfield.kernels.mlp import Activation, loss_of, reference  # noqa: E402
from scanfield.kernels.mlp_triton import Network, Tile, run_forward, run_train, split  # noqa: E402

pytestmark = pytest.mark.triton
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # one process either interprets or compiles
SINE = "sine"


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


class Case:
    """A network with inputs and a cotangent; `truth` is the same in float64."""

    def __init__(
        self, a: int, width: int, layers: int, b: int, kind: str, n: int = 37, dtype: torch.dtype = torch.float32
    ) -> None:
        generator = torch.Generator().manual_seed(a + width + layers)
        widths = [a, *[width] * layers, b]
        omegas = tuple(20.0 if layer == 0 else 3.0 + layer for layer in range(layers)) if kind == SINE else ()

        def uniform(*shape: int, bound: float) -> Tensor:
            return ((2 * torch.rand(*shape, generator=generator) - 1) * bound).to(DEVICE, dtype).requires_grad_()

        scale = [1 / a, *((6 / width) ** 0.5 / (w if kind == SINE else 1) for w in (*omegas[1:], 1.0))]
        scale += [(6 / width) ** 0.5] * (layers + 1 - len(scale))
        self.weights = [uniform(o, i, bound=s) for i, o, s in zip(widths[:-1], widths[1:], scale, strict=True)]
        self.biases = [uniform(o, bound=0.2) for o in widths[1:]]
        self.x = uniform(n, a, bound=1.0)
        self.cotangent = uniform(n, b, bound=1.0).detach()
        self.activation = Activation(kind, omegas)  # type: ignore[arg-type]

    def inputs(self) -> list[Tensor]:
        return [self.x, *self.weights, *self.biases]

    def truth(self) -> tuple[Tensor, list[Tensor]]:
        inputs = [t.detach().double().requires_grad_() for t in self.inputs()]
        return reference(inputs[0], *_halves(inputs[1:]), self.activation), inputs

    def output(self) -> Tensor:
        return mlp_triton.mlp(self.x, self.weights, self.biases, self.activation)


def _halves(parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]


def assert_close(found: Tensor, truth: Tensor, tolerance: float) -> None:
    """Largest error relative to the largest value."""
    assert found.shape == truth.shape
    found, truth = found.detach().double(), truth.detach()
    assert float((found - truth).abs().max()) <= tolerance * float(truth.abs().max())


SHAPES = [
    (3, 16, 1, 1, "sine"),
    (3, 16, 4, 1, "sine"),
    (1, 16, 8, 4, "sine"),
    (3, 24, 2, 2, "relu"),
    (20, 16, 3, 6, "sine"),
    (32, 64, 2, 16, "relu"),
    (4, 64, 4, 3, "sine"),
    (5, 40, 3, 1, "relu"),
    (2, 128, 3, 5, "sine"),
    (128, 16, 2, 128, "relu"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_agree_with_the_reference(shape: tuple[int, int, int, int, str]) -> None:
    case = Case(*shape)
    y = case.output()
    true_y, true_inputs = case.truth()
    assert_close(y, true_y, 3e-6)
    found = torch.autograd.grad(y, case.inputs(), case.cotangent)
    truth = torch.autograd.grad(true_y, true_inputs, case.cotangent.double())
    for one, other in zip(found, truth, strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100])
def test_ragged_numbers_of_points(n: int) -> None:
    case = Case(3, 16, 3, 1, "sine", n)
    y = case.output()
    true_y, true_inputs = case.truth()
    assert_close(y, true_y, 3e-6)
    found = torch.autograd.grad(y, case.inputs(), case.cotangent)
    for one, other in zip(found, torch.autograd.grad(true_y, true_inputs, case.cotangent.double()), strict=True):
        assert_close(one, other, 1e-5)


def test_no_points() -> None:
    case = Case(3, 16, 2, 1, "sine", n=0)
    y = case.output()
    assert y.shape == (0, 1)
    for grad, of in zip(torch.autograd.grad(y.sum(), case.inputs()), case.inputs(), strict=True):
        assert grad.shape == of.shape and not grad.any()
    loss, grads = _loss(case, case.cotangent, "l2", need_x=True)
    assert loss.isnan() and not any(g.any() for g in grads)


def test_inputs_need_not_be_contiguous() -> None:
    case = Case(3, 16, 2, 2, "sine")
    truth = case.output()
    case.x, case.weights[1] = (t.detach().T.contiguous().T.requires_grad_() for t in (case.x, case.weights[1]))
    y = case.output()
    assert torch.equal(y, truth)
    (found,) = torch.autograd.grad(y.sum(), case.weights[1])  # the cotangent has strides of zero
    true_y, true_inputs = case.truth()
    assert_close(found, torch.autograd.grad(true_y.sum(), true_inputs[2])[0], 1e-5)


def _loss(case: Case, target: Tensor, loss: str, need_x: bool) -> tuple[Tensor, list[Tensor]]:
    return mlp_triton.loss_and_gradients(
        case.x, target, case.weights, case.biases, case.activation, loss, need_x=need_x  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(3, 16, 4, 1, "sine"), (3, 24, 2, 3, "relu"), (6, 16, 2, 7, "sine")])
def test_loss_and_gradients(shape: tuple[int, int, int, int, str], loss: str) -> None:
    case = Case(*shape)
    value, (x_grad, *grads) = _loss(case, case.cotangent, loss, need_x=True)
    true_y, true_inputs = case.truth()
    truth = loss_of(loss, true_y, case.cotangent.double())  # type: ignore[arg-type]
    assert value.dtype == torch.float32 and value.shape == ()
    assert_close(value, truth, 1e-6)
    for found, true in zip([x_grad, *grads], torch.autograd.grad(truth, true_inputs), strict=True):
        assert_close(found, true, 1e-5)
    without, (empty, *same) = _loss(case, case.cotangent, loss, need_x=False)
    assert empty.numel() == 0 and torch.equal(without, value)
    assert all(torch.equal(a, b) for a, b in zip(grads, same, strict=True))


def test_l1_has_no_slope_where_the_output_is_met() -> None:
    case = Case(3, 16, 2, 1, "sine")
    value, grads = _loss(case, case.output().detach(), "l1", need_x=True)
    assert value == 0 and not any(g.any() for g in grads)


@pytest.mark.parametrize("hoist", [True, False])
@pytest.mark.parametrize("sums", [True, False])
def test_where_matrices_and_sums_lie_does_not_matter(hoist: bool, sums: bool) -> None:
    case = Case(3, 24, 4, 1, "sine", n=130)
    network = Network(tuple(case.weights), tuple(case.biases), case.activation.omegas)
    points = 16 if DEVICE == "cpu" else 64
    tile = Tile(points, 4, hoist=hoist, sums=sums)
    x_grad, flat = run_train(case.x, case.cotangent, network, "none", 3, need_x=True, tile=tile)
    weights, biases = split(flat, case.weights, case.biases)
    true_y, true_inputs = case.truth()
    truth = torch.autograd.grad(true_y, true_inputs, case.cotangent.double())
    for found, true in zip([x_grad, *weights, *biases], truth, strict=True):
        assert_close(found, true, 1e-5)


def test_the_same_bits_in_every_run() -> None:
    case = Case(3, 16, 3, 1, "sine", n=100)
    once, again = (_loss(case, case.cotangent, "l2", need_x=True) for _ in range(2))
    assert torch.equal(once[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(once[1], again[1], strict=True))


@pytest.mark.parametrize("kind", ["sine", "relu"])
def test_second_gradients(kind: str) -> None:
    """The gradient of |dy/dx|^2 + |dy/dW_1|^2, as in eikonal losses and in learning to learn."""
    case = Case(3, 16, 2, 1, kind, n=20)
    true_y, true_inputs = case.truth()

    def second(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
        slopes = torch.autograd.grad(y.sum(), [inputs[0], inputs[2]], create_graph=True)
        total = sum(s.square().sum() for s in slopes)
        return torch.autograd.grad(total, inputs, materialize_grads=True)

    truth = second(true_y, true_inputs)
    assert float(truth[1].abs().max()) > 0
    for found, true in zip(second(case.output(), case.inputs()), truth, strict=True):
        assert_close(found, true, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    case = Case(3, 16, 3, 1, "sine", dtype=dtype)
    y = case.output()
    true_y, true_inputs = case.truth()
    assert y.dtype == dtype
    assert_close(y, true_y, tolerance)
    found = torch.autograd.grad(y, case.inputs(), case.cotangent)
    for one, other in zip(found, torch.autograd.grad(true_y, true_inputs, case.cotangent.double()), strict=True):
        assert one.dtype == dtype
        assert_close(one, other, 3 * tolerance)


@pytest.mark.parametrize("width", [32] if DEVICE == "cpu" else [16, 32, 64, 128])
@pytest.mark.parametrize(("precision", "tolerance"), [("highest", 3e-6), ("high", 3e-3), ("medium", 3e-3)])
def test_products_follow_the_precision_torch_is_set_to(precision: str, tolerance: float, width: int) -> None:
    torch.set_float32_matmul_precision(precision)
    case = Case(3, width, 3, 1, "sine", n=300)
    y = case.output()
    true_y, true_inputs = case.truth()
    assert_close(y, true_y, tolerance)
    found = torch.autograd.grad(y, case.inputs(), case.cotangent)
    for one, other in zip(found, torch.autograd.grad(true_y, true_inputs, case.cotangent.double()), strict=True):
        assert_close(one, other, 3 * tolerance)
    if precision != "highest":
        assert float((y - true_y).detach().abs().max()) > 1e-5 * float(true_y.detach().abs().max())


def test_small_gradients_survive_float16() -> None:
    """The gradient of a mean over many points is below float16's smallest number until it is summed."""
    case = Case(3, 16, 2, 1, "sine", dtype=torch.float16)
    small = torch.full_like(case.cotangent, 2.0**-24)
    (found,) = torch.autograd.grad(case.output(), case.biases[-1], small)
    assert float(found) == pytest.approx(len(small) * 2.0**-24, rel=1e-3)


@triton.jit
def _split(value_ptr, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    high, low, scale = mlp_triton_kernels._factor(tl.load(value_ptr + at), 3)
    tl.store(out_ptr + at, high.to(tl.float32) * scale)
    tl.store(out_ptr + ROWS * COLUMNS + at, low.to(tl.float32) * scale)


@pytest.mark.parametrize("largest", [2.0**-90, 1e-6, 1.0, 7e4, 2.0**90])
def test_factors_lose_no_more_than_stated(largest: float) -> None:
    """11 bits in one float16 and 22 in two, of numbers of any size."""
    generator = torch.Generator().manual_seed(0)
    value = largest * torch.randn(64, 128, generator=generator).clamp(-3, 3).to(DEVICE)
    value[0, 0] = 3 * largest
    value[1] *= 2.0**-20
    high, low = torch.empty(2, *value.shape, device=DEVICE)
    out = torch.stack((high, low))
    _split[1,](value, out, ROWS=64, COLUMNS=128)
    floor = 2.0**-39 * 4 * largest
    for found, bits in ((out[0].double(), 11), (out.double().sum(0), 22)):
        error = (found - value.double()).abs()
        assert (error <= 2.0**-bits * value.double().abs() + floor).all()
        assert float((error / value.double().abs()).max()) > 2.0 ** -(bits + 2)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("power", [-60, 30])
def test_the_size_of_a_cotangent_does_not_matter(power: int, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    case = Case(3, 16, 3, 2, "relu")
    scaled = case.cotangent * 2.0**power
    once = torch.autograd.grad(case.output(), case.inputs(), case.cotangent)
    for found, one in zip(torch.autograd.grad(case.output(), case.inputs(), scaled), once, strict=True):
        assert torch.equal(found, one * 2.0**power)


@triton.jit
def _sine_and_cosine_of(p_ptr, out_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p = tl.load(p_ptr + at, mask=at < n, other=0.0)
    s, c = mlp_triton_kernels.sine_and_cosine(p)
    tl.store(out_ptr + at, s, mask=at < n)
    tl.store(out_ptr + n + at, c, mask=at < n)
    tl.store(out_ptr + 2 * n + at, mlp_triton_kernels.sine(p), mask=at < n)


@pytest.mark.parametrize("largest", [1.0, 30.0, 1e3, 1e4])
def test_error_of_sine_and_cosine(largest: float) -> None:
    p = torch.linspace(-largest, largest, 1_000_001).to(DEVICE)
    p[:1000] = torch.arange(1000) * (torch.pi / 2)  # where the reduction changes sides
    out = torch.empty(3, len(p), device=DEVICE)
    _sine_and_cosine_of[triton.cdiv(len(p), 65536),](p, out, len(p), BLOCK=65536)
    for found, truth in zip(out, (p.double().sin(), p.double().cos(), p.double().sin()), strict=True):
        assert float((found - truth).abs().max()) <= 2e-7


@triton.jit
def _hardware_sine_and_cosine_of(p_ptr, out_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s, c = mlp_triton_kernels.hardware_sine_and_cosine(tl.load(p_ptr + at))
    tl.store(out_ptr + at, s)
    tl.store(out_ptr + n + at, c.to(tl.float32))


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no special function unit")
@pytest.mark.parametrize("largest", [1.0, 100.0, 1e4])
def test_error_of_the_sine_of_the_hardware(largest: float) -> None:
    p = torch.linspace(-largest, largest, 1 << 20, device=DEVICE)
    s, c = torch.empty(2, len(p), device=DEVICE)
    out = torch.stack((s, c))
    _hardware_sine_and_cosine_of[1024,](p, out, len(p), BLOCK=1024)
    assert float((out[0] - p.double().sin()).abs().max()) <= 1e-6
    assert float((out[1] - p.double().cos()).abs().max()) <= 2.0**-12 + 1e-6


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_sine_of_what_is_no_number() -> None:
    p = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0], device=DEVICE)
    out = torch.empty(3, len(p), device=DEVICE)
    _sine_and_cosine_of[1,](p, out, len(p), BLOCK=16)
    assert out[:, :3].isnan().all() and out[:, 3].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", ["sine", "relu"])
def test_operators_are_registered_well(kind: str) -> None:
    case = Case(3, 16, 2, 1, kind, n=17)
    omegas = list(case.activation.omegas)
    torch.library.opcheck(mlp_triton._forward, (case.x, case.weights, case.biases, omegas))
    plain = [t.detach() for t in case.inputs()]
    weights, biases = _halves(plain[1:])
    checks = ("test_schema", "test_faketensor")
    for need_x in (True, False):
        torch.library.opcheck(
            mlp_triton._backward, (case.cotangent, plain[0], weights, biases, omegas, need_x), test_utils=checks
        )
        torch.library.opcheck(
            mlp_triton._loss, (plain[0], case.cotangent, weights, biases, omegas, "l2", need_x), test_utils=checks
        )


def test_torch_compile_takes_network_and_loss_into_one_graph() -> None:
    """In a process of its own, without the type checks of these tests, which cannot be captured."""
    program = f"""
import torch
from scanfield.kernels.backend import using
from scanfield.kernels.mlp import Activation, mlp, regression_loss
draw = torch.Generator().manual_seed(0)
make = lambda *shape: torch.rand(*shape, generator=draw).to("{DEVICE}").requires_grad_()
weights, biases = [make(16, 2), make(16, 16), make(3, 16)], [make(16), make(16), make(3)]
x, target, activation = make(30, 2), make(30, 3).detach(), Activation("sine", (3.0, 2.0))
with using("triton"):
    for step in (
        lambda x: mlp(x, weights, biases, activation).square().mean(),
        lambda x: regression_loss(x, target, weights, biases, activation),
    ):
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        both = (torch.autograd.grad(run(x), [x, *weights, *biases]) for run in (step, compiled))
        print(all(torch.equal(one, other) for one, other in zip(*both)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["True", "True"], run.stderr[-3000:]


def test_a_device_with_little_shared_memory_gets_smaller_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(3, 16, 2, 1, "sine")
    network = Network(tuple(case.weights), tuple(case.biases), case.activation.omegas)
    real, asked = mlp_triton_kernels.forward, []

    class Device:
        """Holds 32 points, or nothing."""

        limit = 32

        def __getitem__(self, grid: object) -> object:
            def run(*args: object, POINTS: int, **others: object) -> None:
                asked.append(POINTS)
                if self.limit < POINTS:
                    raise OutOfResources(POINTS, self.limit, "shared memory")
                real[grid](*args, POINTS=POINTS, **others)

            return run

    device = Device()
    monkeypatch.setattr(mlp_triton_kernels, "forward", device)
    monkeypatch.setattr(mlp_triton, "_fitting", {})
    found = [run_forward(case.x, network, 3, Tile(128, 4)) for _ in range(2)]
    assert asked == [128, 64, 32, 32]  # the second time it is known
    for y in found:
        assert_close(y, case.truth()[0], 3e-6)
    device.limit = 8
    with pytest.raises(InputError, match="does not fit this device"):
        run_forward(case.x, network, 3, Tile(64, 4))


def test_gradients_that_plain_torch_computes_faster_are_left_to_it() -> None:
    case, narrow = Case(3, 72, 2, 1, "sine", n=1), Case(3, 64, 2, 1, "sine", n=1)
    assert not mlp_triton.fits(case.x, case.weights)
    assert mlp_triton.fits(narrow.x, narrow.weights)
    with torch.no_grad():
        assert mlp_triton.fits(case.x, case.weights)
    assert mlp_triton.fits(case.x.detach(), [w.detach() for w in case.weights])
    torch.set_float32_matmul_precision("high")
    assert mlp_triton.fits(case.x, case.weights)


def test_what_does_not_fit_is_refused() -> None:
    case = Case(3, 16, 2, 1, "sine")
    assert mlp_triton.fits(case.x, case.weights)
    wide = Case(3, 144, 2, 1, "sine", n=1)
    assert not mlp_triton.fits(wide.x, wide.weights)
    with pytest.raises(ValueError, match="nothing wider than 128"):
        wide.output()
    with pytest.raises(ValueError, match="1 to 8 hidden layers"):
        Case(3, 16, 9, 1, "sine", n=1).output()
    with pytest.raises(ValueError, match="as many omegas"):
        mlp_triton.mlp(case.x, case.weights, case.biases, Activation("sine", (30.0,)))
    with pytest.raises(ValueError, match="do not follow each other"):
        mlp_triton.mlp(case.x[:, :2], case.weights, case.biases, case.activation)
    with pytest.raises(ValueError, match="share one of the dtypes"):
        mlp_triton.mlp(case.x.half(), case.weights, case.biases, case.activation)
    with pytest.raises(ValueError, match="the target is"):
        _loss(case, case.cotangent[:-1], "l2", need_x=False)
