"""The Triton kernels of `kernels.mlp`; notation of that module, and a = inputs, b = outputs, p_l = omega_l z_l.

A program holds `points` rows, and activations never leave it: `forward` goes from x to y in registers. `train` is
persistent: each of its programs takes every P-th tile, goes forward, and walks back with dz_l = dh_{l+1} act'(z_l),

    dW_l += dz_l^T h_l      db_l += dz_l^T 1      dh_l = dz_l W_l.

dy is the cotangent of y, or comes from a loss in the same pass. Gradients of a program are its own (in registers, or in
memory that no other program touches), always added up in the same order, and torch sums the programs': the same bits in
every run. Nothing that is kept between the passes grows with n.

All products run on the matrix units with float16 factors and float32 sums. Each factor is scaled by a power of two such
that its largest number lies in [2^14, 2^15): numbers down to 2^-28 of the largest keep 11 significant bits, as many as
TF32 has, which moves twice the bytes and costs twice the time. A second float16 holds what the first one lost where
three products stand for one. Sines are bounded by 1 and need no scale.

Layers are padded with zeros to a power of two, at least 16. Padded units have p = 0, and zero weights to and from them.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

NARROW = 4
"""Inputs up to this many are coordinates: omega x is large and is always multiplied with 22 significant bits."""

_NARROW = tl.constexpr(NARROW)
_EDGE = tl.constexpr(16)
_INVERSE_PI = tl.constexpr(0.31830988618379067)
_INVERSE_TURN = tl.constexpr(0.15915494309189535)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves an integer in the low bits of a float32
# pi in three parts (Cody and Waite 1980); k times the first two is exact for integers |k| <= 2^12.
_PI_A = tl.constexpr(3.140625)
_PI_B = tl.constexpr(9.675025939941406e-4)
_PI_C = tl.constexpr(1.5099579909783765e-07)
# 2 pi in two parts; the first product is rounded only after the subtraction, which leaves few bits.
_TURN_A = tl.constexpr(6.2831854820251465)
_TURN_B = tl.constexpr(-1.7484556000744883e-07)


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
def hardware_sine(p):
    """sin p by the special function unit of an NVIDIA device; absolute error at most 1e-6 for |p| <= 1e4."""
    return _unit_sine(_one_turn(p))


@triton.jit
@no_type_check
def hardware_sine_and_cosine(p):
    """As `hardware_sine`, and cos p rounded to float16."""
    r = _one_turn(p)
    return _unit_sine(r), _unit_cosine(r)


@triton.jit
@no_type_check
def _one_turn(p):
    """p less a whole number of turns, in about [-pi, pi]; the unit's own reduction loses 2^-23 |p|."""
    k = (p * _INVERSE_TURN + _ROUND) - _ROUND
    return tl.fma(k, -_TURN_B, tl.fma(k, -_TURN_A, p))


@triton.jit
@no_type_check
def _unit_sine(r):
    return tl.inline_asm_elementwise("sin.approx.ftz.f32 $0, $1;", "=f,f", [r], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
@no_type_check
def _unit_cosine(r):
    """In float16, two at a time. Not pure: else the compiler keeps r instead, and cosines wait for the way back."""
    return tl.inline_asm_elementwise(
        "{.reg .f32 a, b; cos.approx.ftz.f32 a, $1; cos.approx.ftz.f32 b, $2; cvt.rn.f16x2.f32 $0, b, a;}",
        "=r,f,f", [r], dtype=tl.float16, is_pure=False, pack=2,
    )  # fmt: skip


@triton.jit
@no_type_check
def _act(p, SINE: tl.constexpr, HARDWARE: tl.constexpr):
    if not SINE:
        return tl.where(p > 0, p, 0.0)
    elif HARDWARE:
        return hardware_sine(p)
    else:
        return sine(p)


@triton.jit
@no_type_check
def _act_and_slope(p, SINE: tl.constexpr, HARDWARE: tl.constexpr):
    """The activation, and its derivative with respect to p."""
    if not SINE:
        return tl.where(p > 0, p, 0.0), tl.where(p > 0, 1.0, 0.0)
    elif HARDWARE:
        return hardware_sine_and_cosine(p)
    else:
        return sine_and_cosine(p)


@triton.jit
@no_type_check
def _factor(value, PRODUCTS: tl.constexpr, BOUNDED: tl.constexpr = False):
    """Of a matrix product: (high, low, scale) with value = scale (high + low), nearly; low only for three products.

    BOUNDED: no number is larger than 1.
    """
    if BOUNDED:
        scaled = value
        scale = 1.0
    else:
        largest = tl.max(tl.max(tl.abs(value), axis=1), axis=0)
        exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
        exponent = tl.minimum(tl.maximum(exponent, 27 << 23), 227 << 23)  # 2^-100 to 2^100: so the inverse is finite
        scaled = value * (((254 << 23) - exponent).to(tl.float32, bitcast=True) * 16384.0)
        scale = (exponent - (14 << 23)).to(tl.float32, bitcast=True)
    high = scaled.to(tl.float16)
    if PRODUCTS == 1:
        return high, high, scale
    else:
        return high, (scaled - high.to(tl.float32)).to(tl.float16), scale


@triton.jit
@no_type_check
def _turned(a, PRODUCTS: tl.constexpr):
    """The transpose of a factor."""
    high = tl.trans(a[0])
    if PRODUCTS == 1:
        return high, high, a[2]
    else:
        return high, tl.trans(a[1]), a[2]


@triton.jit
@no_type_check
def _product(a, b, PRODUCTS: tl.constexpr):
    """a b over both scales, in float32."""
    if PRODUCTS == 1:
        return tl.dot(a[0], b[0])
    else:
        return tl.dot(a[0], b[0], tl.dot(a[0], b[1], tl.dot(a[1], b[0])))


@triton.jit
@no_type_check
def _matrix(at, row, rows, column, columns):
    """A row-major matrix, padded with zeros."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(at + row[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def factors(
    weights, factors_ptr, scales_ptr,
    WIDTH: tl.constexpr, PAD: tl.constexpr, A: tl.constexpr, A_PAD: tl.constexpr, B: tl.constexpr, B_PAD: tl.constexpr,
    LAYERS: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    """Every matrix as a factor, padded: program l writes W_l to the slots 2 l (high) and 2 l + 1 (low)."""
    for layer in tl.static_range(LAYERS + 1):
        if tl.program_id(0) == layer:
            row = tl.arange(0, B_PAD if layer == LAYERS else PAD)
            column = tl.arange(0, A_PAD if layer == 0 else PAD)
            w = _matrix(weights[layer], row, B if layer == LAYERS else WIDTH, column, A if layer == 0 else WIDTH)
            w = _factor(w, 3)
            at = factors_ptr + 2 * layer * SLOT + row[:, None] * column.shape[0] + column[None, :]
            tl.store(at, w[0])
            tl.store(at + SLOT, w[1])
            tl.store(scales_ptr + layer, w[2])


@triton.jit
@no_type_check
def _weight(at, scales, layer: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, SLOT: tl.constexpr,
            PRODUCTS: tl.constexpr):  # fmt: skip
    """W_l as `factors` left it."""
    at += 2 * layer * SLOT + tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :]
    high = tl.load(at)
    if PRODUCTS == 1:
        return high, high, tl.load(scales + layer)
    else:
        return high, tl.load(at + SLOT), tl.load(scales + layer)


@triton.jit
@no_type_check
def _layer(h, w, bias, omega, columns: tl.constexpr, PRODUCTS: tl.constexpr):
    """p = omega (W h + b)."""
    column = tl.arange(0, w[0].shape[0])
    b = omega * tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
    return _product(h, _turned(w, PRODUCTS), PRODUCTS) * (omega * h[2] * w[2]) + b[None, :]


@triton.jit(do_not_specialize=["n"])
@no_type_check
def forward(
    x_ptr, y_ptr, factors_ptr, scales, biases, omegas, n,
    WIDTH: tl.constexpr, PAD: tl.constexpr, A: tl.constexpr, A_PAD: tl.constexpr, B: tl.constexpr, B_PAD: tl.constexpr,
    LAYERS: tl.constexpr, SLOT: tl.constexpr, SINE: tl.constexpr, PRODUCTS: tl.constexpr, HARDWARE: tl.constexpr,
    POINTS: tl.constexpr,
):  # fmt: skip
    """The network's output for one tile of points."""
    row = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    output = tl.arange(0, B_PAD)
    FIRST: tl.constexpr = 3 if A <= _NARROW else PRODUCTS
    x = _factor(_matrix(x_ptr, row, n, tl.arange(0, A_PAD), A), FIRST)
    w = _weight(factors_ptr, scales, 0, PAD, A_PAD, SLOT, FIRST)
    p = _layer(x, w, biases[0], omegas[0], WIDTH, FIRST)
    for layer in tl.static_range(1, LAYERS):
        h = _factor(_act(p, SINE, HARDWARE), PRODUCTS, SINE)
        w = _weight(factors_ptr, scales, layer, PAD, PAD, SLOT, PRODUCTS)
        p = _layer(h, w, biases[layer], omegas[layer], WIDTH, PRODUCTS)
    h = _factor(_act(p, SINE, HARDWARE), PRODUCTS, SINE)
    w = _weight(factors_ptr, scales, LAYERS, B_PAD, PAD, SLOT, PRODUCTS)
    y = _layer(h, w, biases[LAYERS], 1.0, B, PRODUCTS)
    tl.store(y_ptr + row[:, None] * B + output[None, :], y, mask=(row < n)[:, None] & (output < B)[None, :])


@triton.jit
@no_type_check
def _cotangent(y, given, inside, LOSS: tl.constexpr):
    """The loss of values y (a sum, not a mean) and its cotangent; without a loss, `given` is the cotangent."""
    if LOSS == "none":
        return tl.zeros_like(y), given
    elif LOSS == "l2":
        away = tl.where(inside, y - given, 0.0)
        return away * away, 2 * away
    else:
        away = tl.where(inside, y - given, 0.0)
        return tl.abs(away), tl.where(away > 0, 1.0, 0.0) - tl.where(away < 0, 1.0, 0.0)


@triton.jit
@no_type_check
def _put(at, place, inside, value, ADD: tl.constexpr):
    """Stores or adds to a gradient of this program's own.

    Nobody waits for an addition, and since the same thread adds to a place every time, additions keep their order.
    """
    if ADD:
        tl.atomic_add(at + place, value, mask=inside, sem="relaxed")
    else:
        tl.store(at + place, value, mask=inside)


@triton.jit
@no_type_check
def _put_matrix(at, value, rows, columns, row_stride, column_stride, ADD: tl.constexpr):
    row = tl.arange(0, value.shape[0])[:, None]
    column = tl.arange(0, value.shape[1])[None, :]
    _put(at, row * row_stride + column * column_stride, (row < rows) & (column < columns), value, ADD)


@triton.jit
@no_type_check
def _put_column(at, value, rows, which: tl.constexpr, ADD: tl.constexpr):
    row = tl.arange(0, value.shape[0])[:, None]
    column = tl.arange(0, value.shape[1])[None, :]
    _put(at, row + 0 * column, (row < rows) & (column == which), value, ADD)


@triton.jit(do_not_specialize=["n"])
@no_type_check
def train(
    x_ptr, given_ptr, x_grad_ptr, sums_ptr, factors_ptr, scales, biases, omegas, n, scale,
    WIDTH: tl.constexpr, PAD: tl.constexpr, A: tl.constexpr, A_PAD: tl.constexpr, B: tl.constexpr, B_PAD: tl.constexpr,
    LAYERS: tl.constexpr, SLOT: tl.constexpr, SINE: tl.constexpr, PRODUCTS: tl.constexpr, HARDWARE: tl.constexpr,
    POINTS: tl.constexpr, LOSS: tl.constexpr, X_GRAD: tl.constexpr, SUMS: tl.constexpr, HOIST: tl.constexpr,
    OWN: tl.constexpr,
):  # fmt: skip
    """SUMS: gradients are added up in registers, not in memory. HOIST: hidden matrices stay in shared memory."""
    first: tl.constexpr = WIDTH * A + WIDTH  # numbers of W_0 and b_0, of W_l and b_l
    each: tl.constexpr = WIDTH * WIDTH + WIDTH
    last: tl.constexpr = first + (LAYERS - 1) * each
    ADD: tl.constexpr = not SUMS
    FIRST: tl.constexpr = 3 if A <= _NARROW else PRODUCTS
    SPARE: tl.constexpr = A < A_PAD  # a column of x is free for the ones that sum dz to db
    ONE: tl.constexpr = A if SPARE else 0
    sums = sums_ptr + tl.program_id(0).to(tl.int64) * OWN
    input = tl.arange(0, A_PAD)
    output = tl.arange(0, B_PAD)
    # Always outside the loop: ptxas 12.8 took the address of a W_0 loaded inside from a register nothing had written.
    w_first = _weight(factors_ptr, scales, 0, PAD, A_PAD, SLOT, FIRST)
    w_last = _weight(factors_ptr, scales, LAYERS, B_PAD, PAD, SLOT, PRODUCTS)
    hoisted = ()
    squares = ()  # sums of dW_l of the hidden layers
    edges = ()  # sums of dz_l^T (x, 1), or of dz_l^T 1 where x has no column to spare
    for layer in tl.static_range(0, LAYERS):
        if SUMS:
            edges += (tl.zeros([PAD, A_PAD if SPARE else _EDGE], tl.float32),)
        if SUMS and layer > 0:
            squares += (tl.zeros([PAD, PAD], tl.float32),)
        if HOIST and layer > 0:
            hoisted += (_weight(factors_ptr, scales, layer, PAD, PAD, SLOT, PRODUCTS),)
    if SUMS:
        last_sum = tl.zeros([PAD, B_PAD], tl.float32)
        if not SPARE:
            first_sum = tl.zeros([PAD, A_PAD], tl.float32)
    y_sum = tl.zeros([POINTS, B_PAD], tl.float32)
    loss_sum = tl.zeros([POINTS], tl.float32)
    tile = tl.program_id(0)
    while tile < tl.cdiv(n, POINTS):
        row = tile.to(tl.int64) * POINTS + tl.arange(0, POINTS)
        zero = tile >> 31  # of which the compiler knows no better: it keeps loads of biases in the loop
        # Forward.
        x = _matrix(x_ptr, row, n, input, A)
        if SPARE:
            x = _factor(tl.where((input == A)[None, :], 1.0, x), FIRST)
            ones = x
        else:
            x = _factor(x, FIRST)
            ones = _factor(tl.full([POINTS, _EDGE], 1.0, tl.float32), PRODUCTS, True)
        p = _layer(x, w_first, biases[0] + zero, omegas[0], WIDTH, FIRST)
        kept = ()
        slopes = ()
        for layer in tl.static_range(1, LAYERS):
            h, slope = _act_and_slope(p, SINE, HARDWARE)
            h = _factor(h, PRODUCTS, SINE)
            kept += (h,)
            slopes += (slope.to(tl.float16) if PRODUCTS == 1 else slope,)
            w = hoisted[layer - 1] if HOIST else _weight(factors_ptr, scales, layer, PAD, PAD, SLOT, PRODUCTS)
            p = _layer(h, w, biases[layer] + zero, omegas[layer], WIDTH, PRODUCTS)
        # The last layer, forward and back.
        h, slope = _act_and_slope(p, SINE, HARDWARE)
        h = _factor(h, PRODUCTS, SINE)
        y = _layer(h, w_last, biases[LAYERS] + zero, 1.0, B, PRODUCTS)
        inside = (row < n)[:, None] & (output < B)[None, :]
        loss, dy = _cotangent(y, _matrix(given_ptr, row, n, output, B), inside, LOSS)
        loss_sum += tl.sum(loss, axis=1)
        y_sum += dy
        dy = _factor(dy, PRODUCTS)
        value = _product(_turned(h, PRODUCTS), dy, PRODUCTS) * (h[2] * dy[2])
        if SUMS:
            last_sum += value
        else:
            _put_matrix(sums + last, value, WIDTH, B, 1, WIDTH, ADD)
        dh = _product(dy, w_last, PRODUCTS)
        factor = dy[2] * w_last[2]  # what dh lacks
        # Back through the hidden layers.
        new_squares = ()
        new_edges = ()
        for layer in tl.static_range(LAYERS - 1, -1, -1):
            dz = _factor(dh * slope.to(tl.float32), PRODUCTS)
            factor = factor * omegas[layer] * dz[2]
            turned = _turned(dz, PRODUCTS)
            at = sums + (0 if layer == 0 else first + (layer - 1) * each)
            value = _product(turned, ones, PRODUCTS) * (factor * ones[2])
            if SUMS:
                new_edges += (edges[layer] + value,)
            else:
                _put_column(at + WIDTH * (A if layer == 0 else WIDTH), value, WIDTH, ONE, ADD)
                if layer == 0 and SPARE:
                    _put_matrix(sums, value, WIDTH, A, A, 1, ADD)
            if layer > 0:
                h = kept[layer - 1]
                value = _product(turned, h, PRODUCTS) * (factor * h[2])
                if SUMS:
                    new_squares += (squares[layer - 1] + value,)
                else:
                    _put_matrix(at, value, WIDTH, WIDTH, WIDTH, 1, ADD)
                w = hoisted[layer - 1] if HOIST else _weight(factors_ptr, scales, layer, PAD, PAD, SLOT, PRODUCTS)
                dh = _product(dz, w, PRODUCTS)
                factor = factor * w[2]
                slope = slopes[layer - 1]
        if SUMS:
            squares = new_squares[::-1]
            edges = new_edges[::-1]
        if not SPARE:
            value = _product(turned, x, PRODUCTS) * (factor * x[2])
            if SUMS:
                first_sum += value
            else:
                _put_matrix(sums, value, WIDTH, A, A, 1, ADD)
        if X_GRAD:
            dx = _product(dz, w_first, PRODUCTS) * (scale * factor * w_first[2])
            tl.store(x_grad_ptr + row[:, None] * A + input[None, :], dx, mask=(row < n)[:, None] & (input < A)[None, :])
        tile += tl.num_programs(0)
    tl.store(sums + last + B * WIDTH + output, tl.sum(y_sum, axis=0), mask=output < B)
    tl.store(sums + last + B * WIDTH + B, tl.sum(loss_sum, axis=0))
    if SUMS:
        _put_matrix(sums + last, last_sum, WIDTH, B, 1, WIDTH, ADD)
        _put_matrix(sums, edges[0] if SPARE else first_sum, WIDTH, A, A, 1, ADD)
        _put_column(sums + WIDTH * A, edges[0], WIDTH, ONE, ADD)
        for layer in tl.static_range(1, LAYERS):
            at = sums + first + (layer - 1) * each
            _put_matrix(at, squares[layer - 1], WIDTH, WIDTH, WIDTH, 1, ADD)
            _put_column(at + WIDTH * WIDTH, edges[layer], WIDTH, ONE, ADD)
