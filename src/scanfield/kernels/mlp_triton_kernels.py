"""The Triton kernels of `kernels.mlp`; notation of that module, and a = inputs, b = outputs.

A program holds `points` rows, and activations never leave it: `forward` goes from x to y in registers. `train` is
persistent: each of its programs takes every P-th tile, goes forward, and walks back with dz_l = dh_{l+1} act'(z_l),

    dW_l += dz_l^T h_l      db_l += sum dz_l      dh_l = dz_l W_l.

dy is the cotangent of y, or comes from a loss in the same pass. Of the hidden layers' z only those between the first
(three multiplications of x) and the last (still at hand) are kept, in registers or in a piece of memory per program
that does not grow with n and stays in the L2 cache. Every program adds to gradients of its own, always in the same
order, and torch sums the programs': no atomics, the same bits in every run.

Layers are padded with zeros to a power of two, at least 16. Padded units have z = 0, and zero weights to and from them.
Inputs and outputs up to 4 wide would waste a matrix unit: they are multiplied and summed as vectors, in float32.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

NARROW = 4
"""Inputs and outputs up to this many are no matrix product."""

_NARROW = tl.constexpr(NARROW)
_INVERSE_PI = tl.constexpr(0.31830988618379067)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves an integer in the low bits of a float32
# pi in three parts (Cody and Waite 1980); k times the first two is exact for integers |k| <= 2^12.
_PI_A = tl.constexpr(3.140625)
_PI_B = tl.constexpr(9.675025939941406e-4)
_PI_C = tl.constexpr(1.5099579909783765e-07)


# Kernels. `no_type_check` keeps run-time type checkers away from functions that are not Python.


@triton.jit
@no_type_check
def _half_turns(p):
    """r in about [-pi/2, pi/2] and a sign bit s with sin p = (-1)^s sin r, cos p = (-1)^s cos r."""
    shifted = p * _INVERSE_PI + _ROUND
    k = shifted - _ROUND
    r = tl.fma(k, -_PI_A, p)
    r = tl.fma(k, -_PI_B, r)
    r = tl.fma(k, -_PI_C, r)
    return r, shifted.to(tl.int32, bitcast=True) << 31


@triton.jit
@no_type_check
def _signed(value, sign):
    return (value.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _sine_of(r):
    """Minimax on [-pi/2, pi/2], error 4.7e-9 before rounding."""
    q = r * r
    series = tl.fma(tl.fma(tl.fma(q, 2.5999031549872598e-06, -0.00019806546333711594), q, 0.008333016186952591), q,
                    -0.16666656732559204)  # fmt: skip
    return tl.fma(series * q, r, r)


@triton.jit
@no_type_check
def _cosine_of(r):
    """Minimax on [-pi/2, pi/2], error 2.5e-10 before rounding."""
    q = r * r
    series = tl.fma(tl.fma(q, -2.6075662162838853e-07, 2.476180816302076e-05), q, -0.0013888402609154582)
    return tl.fma(tl.fma(tl.fma(series, q, 0.04166664183139801), q, -0.5), q, 1.0)


@triton.jit
@no_type_check
def sine(p):
    """sin p; absolute error at most 2e-7 for |p| <= 1e4, and growing beyond."""
    r, sign = _half_turns(p)
    return _signed(_sine_of(r), sign)


@triton.jit
@no_type_check
def sine_and_cosine(p):
    """sin p and cos p; absolute errors at most 2e-7 for |p| <= 1e4, and growing beyond."""
    r, sign = _half_turns(p)
    return _signed(_sine_of(r), sign), _signed(_cosine_of(r), sign)


@triton.jit
@no_type_check
def _act(z, omega, SINE: tl.constexpr):
    if SINE:
        return sine(omega * z)
    else:
        return tl.where(z > 0, z, 0.0)


@triton.jit
@no_type_check
def _act_and_slope(z, omega, SINE: tl.constexpr):
    if SINE:
        s, c = sine_and_cosine(omega * z)
        return s, omega * c
    else:
        return tl.where(z > 0, z, 0.0), tl.where(z > 0, 1.0, 0.0)


@triton.jit
@no_type_check
def _dot(a, b, DOT: tl.constexpr, acc=None):
    """a b + acc in float32, of operands rounded to what DOT says."""
    if DOT == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    elif DOT == "bf16 interpreted":  # the interpreter would multiply the bit patterns
        return tl.dot(a.to(tl.bfloat16).to(tl.float32), b.to(tl.bfloat16).to(tl.float32), acc)
    elif DOT == "fp16":
        return tl.dot(a.to(tl.float16), b.to(tl.float16), acc)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=DOT)


@triton.jit
@no_type_check
def _vector(at, index, count, stride: tl.constexpr = 1):
    return tl.load(at + index * stride, mask=index < count, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _matrix(at, row, rows, column, columns):
    """A row-major matrix, padded with zeros."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(at + row[:, None] * columns + column[None, :], mask=mask, other=0.0)


@triton.jit
@no_type_check
def _first_layer(x_ptr, row, n, weight, bias, unit, WIDTH: tl.constexpr, A: tl.constexpr, A_PAD: tl.constexpr,
                 DOT: tl.constexpr):  # fmt: skip
    z = tl.zeros([row.shape[0], unit.shape[0]], tl.float32) + _vector(bias, unit, WIDTH)[None, :]
    if A <= _NARROW:
        for k in tl.static_range(A):
            z += _vector(x_ptr + k, row, n, A)[:, None] * _vector(weight + k, unit, WIDTH, A)[None, :]
    else:
        column = tl.arange(0, A_PAD)
        x, w = _matrix(x_ptr, row, n, column, A), _matrix(weight, unit, WIDTH, column, A)
        z = _dot(x, tl.trans(w), DOT, z)
    return z


@triton.jit
@no_type_check
def _hidden_layer(h, weight, bias, unit, WIDTH: tl.constexpr, DOT: tl.constexpr):
    w = _matrix(weight, unit, WIDTH, unit, WIDTH)
    z = tl.zeros([h.shape[0], unit.shape[0]], tl.float32) + _vector(bias, unit, WIDTH)[None, :]
    return _dot(h, tl.trans(w), DOT, z)


@triton.jit
@no_type_check
def forward(
    x_ptr, y_ptr, weights, biases, omegas, n,
    WIDTH: tl.constexpr, PAD: tl.constexpr, A: tl.constexpr, A_PAD: tl.constexpr, B: tl.constexpr, B_PAD: tl.constexpr,
    LAYERS: tl.constexpr, SINE: tl.constexpr, DOT: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """The network's output for one tile of points."""
    row = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    unit = tl.arange(0, PAD)
    z = _first_layer(x_ptr, row, n, weights[0], biases[0], unit, WIDTH, A, A_PAD, DOT)
    for layer in tl.static_range(1, LAYERS):
        z = _hidden_layer(_act(z, omegas[layer - 1], SINE), weights[layer], biases[layer], unit, WIDTH, DOT)
    h = _act(z, omegas[LAYERS - 1], SINE)
    if B <= _NARROW:
        for j in tl.static_range(B):
            w = _vector(weights[LAYERS] + j * WIDTH, unit, WIDTH)
            y = tl.sum(h * w[None, :], axis=1) + tl.load(biases[LAYERS] + j).to(tl.float32)
            tl.store(y_ptr + row * B + j, y, mask=row < n)
    else:
        column = tl.arange(0, B_PAD)
        w = _matrix(weights[LAYERS], column, B, unit, WIDTH)
        y = _dot(h, tl.trans(w), DOT) + _vector(biases[LAYERS], column, B)[None, :]
        tl.store(y_ptr + row[:, None] * B + column[None, :], y, mask=(row < n)[:, None] & (column < B)[None, :])


@triton.jit
@no_type_check
def _cotangent(y, given, valid, LOSS: tl.constexpr):
    """The loss of values y (a sum, not a mean) and its cotangent; without a loss, `given` is the cotangent."""
    if LOSS == "none":
        return 0.0, given
    elif LOSS == "l2":
        away = tl.where(valid, y - given, 0.0)
        return tl.sum(away * away), 2 * away
    else:
        away = tl.where(valid, y - given, 0.0)
        return tl.sum(tl.abs(away)), tl.where(away > 0, 1.0, 0.0) - tl.where(away < 0, 1.0, 0.0)


@triton.jit
@no_type_check
def _add(at, value, again, mask):
    """Adds to a gradient of this program's own; overwrites it unless `again`. A barrier ends every tile."""
    tl.store(at, tl.load(at, mask=mask & again, other=0.0) + value, mask=mask)


@triton.jit
@no_type_check
def _add_product(at, a, b, again, row, rows, column, columns, DOT: tl.constexpr):
    """`_add` of the rows x columns matrix a^T b."""
    place = at + row[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    total = tl.load(place, mask=mask & again, other=0.0)
    tl.store(place, _dot(tl.trans(a), b, DOT, total), mask=mask)


@triton.jit
@no_type_check
def train(
    x_ptr, given_ptr, x_grad_ptr, sums_ptr, kept_ptr, weights, biases, omegas, n, scale,
    WIDTH: tl.constexpr, PAD: tl.constexpr, A: tl.constexpr, A_PAD: tl.constexpr, B: tl.constexpr, B_PAD: tl.constexpr,
    LAYERS: tl.constexpr, SINE: tl.constexpr, DOT: tl.constexpr, GRAD_DOT: tl.constexpr, POINTS: tl.constexpr,
    LOSS: tl.constexpr, X_GRAD: tl.constexpr, KEEP: tl.constexpr, SUMS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """KEEP: z of the middle layers stay in registers. SUMS: so do the gradients of the hidden matrices."""
    first: tl.constexpr = WIDTH * A + WIDTH  # numbers of W_0 and b_0, of W_l and b_l
    each: tl.constexpr = WIDTH * WIDTH + WIDTH
    last: tl.constexpr = first + (LAYERS - 1) * each
    program = tl.program_id(0)
    sums = sums_ptr + program.to(tl.int64) * OWN
    unit = tl.arange(0, PAD)
    lane = tl.arange(0, POINTS)
    kept_at = kept_ptr + program.to(tl.int64) * (LAYERS * POINTS * PAD) + lane[:, None] * PAD + unit[None, :]
    products = ()
    if SUMS:
        for _layer in tl.static_range(1, LAYERS):
            products += (tl.zeros([PAD, PAD], tl.float32),)
    tile = program
    while tile < tl.cdiv(n, POINTS):
        again = tile != program
        row = tile.to(tl.int64) * POINTS + lane
        # Forward.
        z = _first_layer(x_ptr, row, n, weights[0], biases[0], unit, WIDTH, A, A_PAD, DOT)
        kept = ()
        for layer in tl.static_range(1, LAYERS):
            z = _hidden_layer(_act(z, omegas[layer - 1], SINE), weights[layer], biases[layer], unit, WIDTH, DOT)
            if layer < LAYERS - 1:
                if KEEP:
                    kept += (z,)
                else:
                    tl.store(kept_at + layer * POINTS * PAD, z)
        if not KEEP:
            tl.debug_barrier()  # other threads may read what this one has kept
        # The last layer, forward and back.
        h, slope = _act_and_slope(z, omegas[LAYERS - 1], SINE)
        dh = tl.zeros([POINTS, PAD], tl.float32)
        if B <= _NARROW:
            loss = 0.0
            for j in tl.static_range(B):
                w = _vector(weights[LAYERS] + j * WIDTH, unit, WIDTH)
                y = tl.sum(h * w[None, :], axis=1) + tl.load(biases[LAYERS] + j).to(tl.float32)
                part, dy = _cotangent(y, _vector(given_ptr + j, row, n, B), row < n, LOSS)
                loss += part
                dh += dy[:, None] * w[None, :]
                _add(sums + last + j * WIDTH + unit, tl.sum(dy[:, None] * h, axis=0), again, unit < WIDTH)
                _add(sums + last + B * WIDTH + j, tl.sum(dy), again, n > 0)
        else:
            column = tl.arange(0, B_PAD)
            w = _matrix(weights[LAYERS], column, B, unit, WIDTH)
            y = _dot(h, tl.trans(w), DOT) + _vector(biases[LAYERS], column, B)[None, :]
            given = _matrix(given_ptr, row, n, column, B).to(tl.float32)
            loss, dy = _cotangent(y, given, (row < n)[:, None] & (column < B)[None, :], LOSS)
            dh = _dot(dy, w, GRAD_DOT, dh)
            _add_product(sums + last, dy, h, again, column, B, unit, WIDTH, GRAD_DOT)
            _add(sums + last + B * WIDTH + column, tl.sum(dy, axis=0), again, column < B)
        if LOSS != "none":
            _add(sums + last + B * WIDTH + B, loss, again, n > 0)
        # Back through the hidden layers.
        totals = ()
        for layer in tl.static_range(LAYERS - 1, 0, -1):
            dz = dh * slope
            if layer == 1:
                z = _first_layer(x_ptr, row, n, weights[0], biases[0], unit, WIDTH, A, A_PAD, DOT)
            elif KEEP:
                z = kept[layer - 2]
            else:
                z = tl.load(kept_at + (layer - 1) * POINTS * PAD)
            h, slope = _act_and_slope(z, omegas[layer - 1], SINE)
            at = sums + first + (layer - 1) * each
            _add(at + WIDTH * WIDTH + unit, tl.sum(dz, axis=0), again, unit < WIDTH)
            if SUMS:
                totals += (_dot(tl.trans(dz), h, GRAD_DOT, products[layer - 1]),)
            else:
                _add_product(at, dz, h, again, unit, WIDTH, unit, WIDTH, GRAD_DOT)
            dh = _dot(dz, _matrix(weights[layer], unit, WIDTH, unit, WIDTH), GRAD_DOT)
        products = totals[::-1]
        # The first layer.
        dz = dh * slope
        _add(sums + WIDTH * A + unit, tl.sum(dz, axis=0), again, unit < WIDTH)
        if A <= _NARROW:
            for k in tl.static_range(A):
                x = _vector(x_ptr + k, row, n, A)
                _add(sums + k + unit * A, tl.sum(dz * x[:, None], axis=0), again, unit < WIDTH)
                if X_GRAD:
                    w = _vector(weights[0] + k, unit, WIDTH, A)
                    tl.store(x_grad_ptr + row * A + k, scale * tl.sum(dz * w[None, :], axis=1), mask=row < n)
        else:
            column = tl.arange(0, A_PAD)
            x = _matrix(x_ptr, row, n, column, A)
            _add_product(sums, dz, x, again, unit, WIDTH, column, A, GRAD_DOT)
            if X_GRAD:
                dx = _dot(dz, _matrix(weights[0], unit, WIDTH, column, A), GRAD_DOT)
                place = x_grad_ptr + row[:, None] * A + column[None, :]
                tl.store(place, scale * dx, mask=(row < n)[:, None] & (column < A)[None, :])
        tile += tl.num_programs(0)
        tl.debug_barrier()  # before the next tile adds to the same sums and keeps in the same place
    if SUMS:
        for layer in tl.static_range(1, LAYERS):
            inside = (unit < WIDTH)[:, None] & (unit < WIDTH)[None, :]
            place = sums + first + (layer - 1) * each + unit[:, None] * WIDTH + unit[None, :]
            tl.store(place, products[layer - 1], mask=inside)
