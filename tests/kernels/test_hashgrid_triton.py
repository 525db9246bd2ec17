"""The Triton grid against the plain torch one: on a CUDA device where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor

from scanfield.kernels import hashgrid
from scanfield.kernels.backend import using
from scanfield.kernels.hashgrid import Levels, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Triton decides at import whether its kernels are interpreted; the tests below ask again when they run.
with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    from scanfield.kernels import hashgrid_triton as kernel

pytestmark = pytest.mark.triton

SHAPES = [
    pytest.param(dims, smoothstep, log2_table, id=f"{dims}d-{'smooth' if smoothstep else 'linear'}-{kind}")
    for dims in (2, 3, 4)
    for smoothstep in (False, True)
    for log2_table, kind in ((20, "dense"), (3, "hashed"))
]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def pyramid(dims=2, smoothstep=False, log2_table=20, features=2, levels=3, base=2, growth=1.6) -> Levels:
    return Levels.make(
        dims,
        levels=levels,
        features=features,
        base=base,
        growth=growth,
        log2_table=log2_table,
        smoothstep=smoothstep,
    )


def inputs(levels: Levels, n=19, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Points inside and outside the box, two of them in its corners; a table; a mask with a level of weight 0."""
    draw = torch.Generator().manual_seed(3)
    u = 2.4 * torch.rand(n, levels.dims, generator=draw, dtype=torch.float64) - 1.2
    u[:2] = torch.tensor([1.0, -1.0], dtype=torch.float64)[:n, None]
    table = torch.randn(levels.starts[-1], levels.features, generator=draw, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.3, 0.0][: len(levels.cells)], dtype=torch.float64)
    return tuple(x.to(dtype).to(DEVICE) for x in (u, table, weight))


def derivatives(encode, u: Tensor, table: Tensor, weight: Tensor, levels: Levels) -> list[Tensor]:
    """Value, both gradients of a nonlinear function of it, and both gradients of a nonlinear function of those."""
    u, table = u.detach().requires_grad_(), table.detach().requires_grad_()
    value = encode(u, table, weight, levels)
    first = torch.autograd.grad(value.sin().sum(), (u, table), create_graph=True)
    second = torch.autograd.grad((first[0] ** 2).sum() + first[1].double().cos().sum(), (u, table))
    return [value, *first, *second]


def assert_equal_to_reference(u, table, weight, levels, *, tolerance: float) -> None:
    ours = derivatives(kernel.encode, u, table, weight, levels)
    truth = derivatives(reference, u.double(), table.double(), weight.double(), levels)
    for one, true in zip(ours, truth, strict=True):
        scale = 1 + float(true.detach().abs().sum() / max(true.numel(), 1))
        torch.testing.assert_close(one.double() / scale, true / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dims", "smoothstep", "log2_table"), SHAPES)
def test_value_first_and_second_derivatives(dims, smoothstep, log2_table):
    levels = pyramid(dims, smoothstep, log2_table, levels=2)
    assert all(levels.dense) if log2_table == 20 else not any(levels.dense)
    assert_equal_to_reference(*inputs(levels), levels, tolerance=1e-13)


@pytest.mark.parametrize("log2_table", [20, 3], ids=["dense", "hashed"])
def test_single_precision(log2_table):
    levels = pyramid(3, True, log2_table)
    assert_equal_to_reference(*inputs(levels, dtype=torch.float32), levels, tolerance=3e-6)


@pytest.mark.parametrize("features", [1, 3, 8])
def test_numbers_of_features(features):
    levels = pyramid(2, True, features=features)
    assert_equal_to_reference(*inputs(levels), levels, tolerance=1e-13)


@pytest.mark.parametrize("n", [0, 1, 127, 129])
def test_sizes_around_a_block(n):
    levels = pyramid(levels=1)
    assert_equal_to_reference(*inputs(levels, n), levels, tolerance=1e-13)


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_narrow_tables_are_summed_in_the_dtype_of_the_points(dtype, epsilon):
    levels = pyramid(3, True)
    u, table, weight = inputs(levels, dtype=torch.float32)
    table = table.to(dtype).requires_grad_()
    value = kernel.encode(u, table, weight, levels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, reference(u, table.float(), weight, levels), atol=2e-6, rtol=0)
    (ours,) = torch.autograd.grad((value**2).sum(), table)
    wide = table.detach().float().requires_grad_()
    (truth,) = torch.autograd.grad((reference(u, wide, weight, levels) ** 2).sum(), wide)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), truth, atol=1e-5, rtol=epsilon)  # rounded once


def test_layout_of_the_inputs_does_not_matter():
    levels = pyramid(3)
    u, table, weight = inputs(levels, dtype=torch.float32)
    strided = torch.stack((u, -u), dim=1)[:, 0], table.t().contiguous().t(), torch.stack((weight, weight), 1)[:, 0]
    assert not any(x.is_contiguous() for x in strided)
    torch.testing.assert_close(kernel.encode(*strided, levels), kernel.encode(u, table, weight, levels))
    for g in (
        torch.ones(19, 6).to(DEVICE),
        torch.ones(1, 1).to(DEVICE).expand(19, 6),
        torch.ones(6, 19).to(DEVICE).t(),
    ):
        leaf = u.clone().requires_grad_()
        (slope,) = torch.autograd.grad(kernel.encode(leaf, table, weight, levels), leaf, g)
        torch.testing.assert_close(slope, kernel.run_slope(torch.ones_like(g).contiguous(), u, table, weight, levels))


def test_levels_of_weight_zero_are_never_read():
    levels = pyramid(2)
    u, table, weight = inputs(levels)
    table[levels.starts[2] :] = torch.nan
    value = kernel.encode(u, table, weight, levels)
    assert value.isfinite().all() and (value[:, 4:] == 0).all() and (value[:, :4] != 0).any()


def test_outside_is_clamped_and_pulls_nothing():
    levels = pyramid(3, levels=1)
    _, table, weight = inputs(levels)
    u = torch.tensor([[1.5, 0.2, -0.4], [7.0, 9.0, -8.0], [torch.inf, 0.0, 0.1]], dtype=torch.float64, device=DEVICE)
    u.requires_grad_()
    value = kernel.encode(u, table, weight, levels)
    torch.testing.assert_close(value, kernel.encode(u.detach().clamp(-1, 1), table, weight, levels))
    (slope,) = torch.autograd.grad(value.sum(), u)
    assert slope[0, 0] == 0 and (slope[1] == 0).all() and slope[2, 0] == 0 and (slope[0, 1:] != 0).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_a_point_that_is_not_a_number_spoils_only_itself():
    levels = pyramid(2)
    u, table, weight = inputs(levels)
    truth = kernel.encode(u, table, weight, levels)
    u[4, 1] = torch.nan
    value = kernel.encode(u, table, weight, levels)
    assert value[4, :4].isnan().all()
    rest = torch.arange(len(u), device=DEVICE) != 4
    torch.testing.assert_close(value[rest], truth[rest], atol=0, rtol=0)


def test_rows_beyond_32_bits_use_wider_offsets(monkeypatch):
    """The wide path, forced on a table that does not need it."""
    levels = pyramid(3, log2_table=3)
    u, table, weight = inputs(levels)
    g = torch.ones(len(u), 6, dtype=torch.float64, device=DEVICE)
    narrow = kernel.run_encode(u, table, weight, levels), kernel.run_scatter(g, u, weight, levels)
    forced = []

    def run(self, *arguments, **options):
        if "WIDE" in options:
            forced.append(options["WIDE"])
            options["WIDE"] = True
        return original(self, *arguments, **options)

    original = type(kernel._encode).run
    monkeypatch.setattr(type(kernel._encode), "run", run)
    wide = kernel.run_encode(u, table, weight, levels), kernel.run_scatter(g, u, weight, levels)
    assert forced == [False, False]
    torch.testing.assert_close(wide, narrow)


def test_private_copies_fill_their_share_and_add_up():
    levels = pyramid(2, base=2, growth=2.0, log2_table=20)  # 9, 25 and 81 rows of 2 numbers
    cpu = torch.device(DEVICE)
    assert kernel.plan(levels, cpu, 0).private_rows == 0
    layout = kernel.plan(levels, cpu, 200)  # 200 // 18 = 11 -> 8, 200 // 50 -> 4, 200 // 162 -> 1
    assert layout.constants.tolist() == [
        [0, 2, 9, 1, 115, 8],
        [9, 4, 25, 1, 187, 4],
        [34, 8, 81, 1, 34, 1],
    ]
    assert (layout.private_rows, layout.widest) == (8 * 9 + 4 * 25, 25)
    assert kernel.plan(levels, cpu).constants[:, -1].tolist() == [32, 32, 32]
    u, _, weight = inputs(levels, 300)
    g = torch.randn(300, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    sums = [kernel.run_scatter(g, u, weight, levels, kernel.Tuning(private=private)) for private in (0, 200, 2**18)]
    assert [len(x) for x in sums] == [115] * 3
    torch.testing.assert_close(sums[1], sums[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(sums[2], sums[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_second_derivatives_one_at_a_time(wanted):
    levels = pyramid(2, True)
    u, table, weight = inputs(levels)
    g, v = torch.ones(len(u), 6, dtype=u.dtype, device=DEVICE), torch.ones_like(u)
    together = kernel.run_slope_backward(v, g, u, table, weight, levels, (True, True, True))
    alone = kernel.run_slope_backward(v, g, u, table, weight, levels, wanted)
    for want, one, all_ in zip(wanted, alone, together, strict=True):
        torch.testing.assert_close(one, all_ if want else one.new_empty(0), atol=1e-12, rtol=0)


def test_the_dispatcher_takes_it():
    levels = pyramid(2)
    u, table, weight = inputs(levels)
    with using("triton"):
        value = hashgrid.encode(u, table.requires_grad_(), weight, levels)
    assert "hashgrid_triton" in type(value.grad_fn).__name__
    torch.testing.assert_close(value, reference(u, table, weight, levels))


def test_a_third_derivative_names_the_backend_that_has_it():
    levels = pyramid(2, True)
    u, table, weight = inputs(levels)
    u.requires_grad_()
    (first,) = torch.autograd.grad(kernel.encode(u, table, weight, levels).sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="'reference'"):
        torch.autograd.grad(second.sum(), u)


def test_tensors_that_do_not_fit_are_refused():
    levels = pyramid(2)
    u, table, weight = inputs(levels)
    for wrong in ((u[:, :1], table, weight), (u, table[1:], weight), (u, table[:, :1], weight), (u, table, weight[1:])):
        with pytest.raises(ValueError, match="do not fit"):
            kernel.encode(*wrong, levels)
    with pytest.raises(ValueError, match="float64 table"):
        kernel.encode(u.float(), table, weight, levels)
    odd = Levels(2, 2, (4,), (False,), (0, 12))
    with pytest.raises(ValueError, match="power of two"):
        kernel.encode(u, table[:12], weight[:1], odd)


@pytest.mark.parametrize("n", [0, 3])
def test_operators_keep_the_rules_of_torch(n):
    levels = pyramid(2, True, levels=2)
    u, table, weight = inputs(levels, n)
    numbers = (list(levels.cells), list(levels.dense), list(levels.starts), True)
    g, v = torch.randn(n, 4, dtype=u.dtype, device=DEVICE), torch.ones_like(u)
    u, table, g = (x.requires_grad_() for x in (u, table, g))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, tensors in (("", (u, table)), ("_scatter", (g, u)), ("_slope", (g, u, table))):
        name = getattr(torch.ops.scanfield, f"hashgrid_triton{operator}").default
        torch.library.opcheck(name, (*tensors, weight, *numbers), test_utils=tests)
    last = torch.ops.scanfield.hashgrid_triton_slope_backward.default
    for wanted in ([True, True, True], [False, True, False]):
        torch.library.opcheck(last, (wanted, v, g, u, table, weight, *numbers), test_utils=tests)


def run_alone(program: str, *, interpret: bool) -> str:
    """What a Python program prints, in a process of its own: without the type checks of these tests."""
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "TRITON_INTERPRET": "01"[interpret]}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_captured_graph():
    program = """
        import torch
        from scanfield.kernels import hashgrid_triton as kernel
        from scanfield.kernels.hashgrid import Levels, reference

        device = "DEVICE"
        levels = Levels.make(2, levels=2, features=2, base=2, growth=1.6, log2_table=20, smoothstep=True)
        draw = torch.Generator().manual_seed(3)
        u = (2.4 * torch.rand(19, 2, generator=draw, dtype=torch.float64) - 1.2).to(device)
        table = torch.randn(levels.starts[-1], 2, generator=draw, dtype=torch.float64).to(device)
        weight = torch.tensor([1.0, 0.3], dtype=torch.float64, device=device)

        def loss(u, table, encode=kernel.encode):
            return encode(u, table, weight, levels).sin().sum()

        leaves = u.requires_grad_(), table.requires_grad_()
        expected = torch.autograd.grad(loss(*leaves, reference), leaves)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), expected)
        print("equal")
    """
    assert run_alone(program.replace("DEVICE", DEVICE), interpret=DEVICE == "cpu") == "equal\n"


@pytest.mark.skipif(DEVICE == "cuda", reason="the tests above have compiled them")
def test_kernels_compile_for_a_gpu_that_is_not_here():
    """The interpreter accepts more than the compiler does; rows must be vectors, and additions return nothing."""
    program = """
        import re
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from scanfield.kernels import hashgrid_triton as kernel

        SHAPE = {"D": 3, "F": 2, "PADDED": 2, "SMOOTH": True, "WIDE": False, "BLOCK": 128}
        WANTS = {"TO_G": True, "TO_TABLE": True, "TO_U": True}

        def ptx(function, **constants):
            constants |= {name: 1 for name in ("out_number", "g_number") if name in function.arg_names}
            types = {"n": "i32", "levels_ptr": "*i64", "out_point": "i32", "g_point": "i32"}
            types = {
                name: "constexpr" if name in constants else types.get(name, "*fp32") for name in function.arg_names
            }
            even = [i for i, (name, t) in enumerate(types.items()) if t[0] == "*" or name.endswith("_point")]
            aligned = {(i,): [["tt.divisibility", 16]] for i in even}
            source = ASTSource(function, types, constants, aligned)
            built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
            assert built.metadata.shared == 0, function
            return built.asm["ptx"]

        assert len(re.findall(r"ld.global.v2", ptx(kernel._encode, **SHAPE))) >= 8
        assert len(re.findall(r"add.v2.f32", ptx(kernel._scatter, **SHAPE))) == 8
        assert len(re.findall(r"ld.global.v2", ptx(kernel._slope, **SHAPE))) >= 8
        last = ptx(kernel._slope_backward, **SHAPE, **WANTS)
        assert len(re.findall(r"add.v2.f32", last)) == 8 and "relaxed" in last and "acq_rel" not in last
        ptx(kernel._slope_backward, **(SHAPE | {"WIDE": True}), **(WANTS | {"TO_U": False}))
        ptx(kernel._fold, F=2, BLOCK=256)
    """
    run_alone(program, interpret=False)
