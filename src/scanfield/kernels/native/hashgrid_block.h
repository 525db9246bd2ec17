// One block of points on one level of a hash grid: the rows of its corners and their coefficients, points side by side
// so that the compiler turns every loop over `b` into vector instructions.
//
// Notation of kernels/hashgrid.py: corner c of a cell has the weight w_c = prod_k a_k, where a_k is 1 - s_k or s_k.
// Derivatives are carried along while the corners double with every axis, as in forward-mode differentiation.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace scanfield {

// One row of the table that Python packs (hashgrid_cpu.py).
struct Level {
    int64_t cells;
    int64_t dense;
    int64_t start;
    int64_t rows;
};

// Compiled once per type and number of axes, not into every kernel.
#define SCANFIELD_ONCE __attribute__((noinline))

constexpr int BLOCK = 32;
constexpr uint32_t PRIMES[4] = {1u, 2654435761u, 805459861u, 3674653429u};

// Column k of the points of a chunk is columns[k * stride ..].
template <class T>
struct Points {
    const T* columns;
    int64_t stride;
};

template <class T, int D>
struct Block {
    static constexpr int corners = 1 << D;
    int count;
    uint32_t low[D][BLOCK];          // i_k
    T s[D][BLOCK], ds[D][BLOCK], dds[D][BLOCK];  // s_k and its derivatives with respect to u_k
    uint32_t row[corners][BLOCK];    // within the level
    T coef[corners][BLOCK];

    // Finds cell and place in the cell of points [first, first + n) of a chunk; n <= BLOCK. Places outside the box are
    // clamped and have no derivative. The rest of the block repeats the last point.
    SCANFIELD_ONCE void locate(const Level& level, Points<T> u, int64_t first, int n, bool smooth) {
        count = n;
        const T half = static_cast<T>(level.cells) / 2, last = static_cast<T>(level.cells - 1);
        for (int k = 0; k < D; ++k) {
            // Many small loops, each a select or an operation: so written, all of them become vector instructions.
            T x[BLOCK], inside[BLOCK], t[BLOCK];
            int32_t cell[BLOCK];
            load(u, k, first, x);
            for (int b = 0; b < BLOCK; ++b) inside[b] = std::abs(x[b]) <= 1 ? half : T(0);
            for (int b = 0; b < BLOCK; ++b) x[b] = x[b] < -1 ? T(-1) : x[b];
            for (int b = 0; b < BLOCK; ++b) x[b] = x[b] > 1 ? T(1) : x[b];
            for (int b = 0; b < BLOCK; ++b) x[b] = (x[b] + 1) * half;
            // Not negative, so truncation is floor; "> 0" also sends NaN to cell 0.
            for (int b = 0; b < BLOCK; ++b) t[b] = x[b] > 0 ? x[b] : T(0);
            for (int b = 0; b < BLOCK; ++b) t[b] = t[b] < last ? t[b] : last;
            for (int b = 0; b < BLOCK; ++b) cell[b] = static_cast<int32_t>(t[b]);
            for (int b = 0; b < BLOCK; ++b) low[k][b] = static_cast<uint32_t>(cell[b]);
            for (int b = 0; b < BLOCK; ++b) t[b] = x[b] - static_cast<T>(cell[b]);
            if (smooth) {
                for (int b = 0; b < BLOCK; ++b) s[k][b] = t[b] * t[b] * (3 - 2 * t[b]);
                for (int b = 0; b < BLOCK; ++b) ds[k][b] = inside[b] * 6 * t[b] * (1 - t[b]);
                for (int b = 0; b < BLOCK; ++b) dds[k][b] = inside[b] * half * (6 - 12 * t[b]);
            } else {
                std::copy_n(t, BLOCK, s[k]);
                std::copy_n(inside, BLOCK, ds[k]);
                std::fill_n(dds[k], BLOCK, T(0));
            }
        }
        rows(level);
    }

    // coef_c = weight * w_c
    SCANFIELD_ONCE void weights(T weight) {
        for (int b = 0; b < BLOCK; ++b) coef[0][b] = weight;
        for (int k = 0; k < D; ++k)
            for (int c = (1 << k) - 1; c >= 0; --c)
                for (int b = 0; b < BLOCK; ++b) {
                    const T whole = coef[c][b], high = whole * s[k][b];
                    coef[2 * c][b] = whole - high;
                    coef[2 * c + 1][b] = high;
                }
    }

    // coef_c = weight * sum_k h_k dw_c/du_k
    SCANFIELD_ONCE void tangents(T weight, Points<T> h, int64_t first) {
        T w[corners][BLOCK];
        for (int b = 0; b < BLOCK; ++b) w[0][b] = weight, coef[0][b] = 0;
        for (int k = 0; k < D; ++k) {
            T step[BLOCK];
            load(h, k, first, step);
            for (int c = (1 << k) - 1; c >= 0; --c)
                for (int b = 0; b < BLOCK; ++b) {
                    const T whole = w[c][b], slope = coef[c][b], high = s[k][b], move = ds[k][b] * step[b];
                    w[2 * c][b] = whole * (1 - high);
                    w[2 * c + 1][b] = whole * high;
                    coef[2 * c][b] = slope * (1 - high) - whole * move;
                    coef[2 * c + 1][b] = slope * high + whole * move;
                }
        }
    }

    // coef_c = weight * dw_c/du_axis
    SCANFIELD_ONCE void slopes(T weight, int axis) {
        for (int b = 0; b < BLOCK; ++b) coef[0][b] = weight;
        for (int k = 0; k < D; ++k)
            for (int c = (1 << k) - 1; c >= 0; --c)
                for (int b = 0; b < BLOCK; ++b) {
                    const T whole = coef[c][b];
                    coef[2 * c][b] = whole * (k == axis ? -ds[k][b] : 1 - s[k][b]);
                    coef[2 * c + 1][b] = whole * (k == axis ? ds[k][b] : s[k][b]);
                }
    }

    // coef_c = weight * d/du_axis sum_k h_k dw_c/du_k
    SCANFIELD_ONCE void curvatures(T weight, int axis, Points<T> h, int64_t first) {
        T w[corners][BLOCK];
        for (int b = 0; b < BLOCK; ++b) w[0][b] = weight, coef[0][b] = 0;
        for (int k = 0; k < D; ++k) {
            T step[BLOCK];
            load(h, k, first, step);
            for (int c = (1 << k) - 1; c >= 0; --c)
                for (int b = 0; b < BLOCK; ++b) {
                    // On the axis itself s' takes the place of s, and s'' that of s'.
                    const T whole = w[c][b], slope = coef[c][b];
                    const T high = k == axis ? ds[k][b] : s[k][b], lower = k == axis ? -high : 1 - high;
                    const T move = (k == axis ? dds[k][b] : ds[k][b]) * step[b];
                    w[2 * c][b] = whole * lower;
                    w[2 * c + 1][b] = whole * high;
                    coef[2 * c][b] = slope * lower - whole * move;
                    coef[2 * c + 1][b] = slope * high + whole * move;
                }
        }
    }

   private:
    void load(Points<T> points, int k, int64_t first, T* into) const {
        const T* column = points.columns + k * points.stride + first;
        if (count == BLOCK)
            std::copy_n(column, BLOCK, into);
        else
            for (int b = 0; b < BLOCK; ++b) into[b] = column[b < count ? b : count - 1];
    }

    void rows(const Level& level) {
        const auto side = static_cast<uint32_t>(level.cells + 1), mask = static_cast<uint32_t>(level.rows - 1);
        for (int b = 0; b < BLOCK; ++b) row[0][b] = 0;
        for (int k = 0; k < D; ++k)
            for (int c = (1 << k) - 1; c >= 0; --c) {
                if (level.dense) {
                    for (int b = 0; b < BLOCK; ++b) {
                        const uint32_t lower = row[c][b] * side + low[k][b];
                        row[2 * c][b] = lower;
                        row[2 * c + 1][b] = lower + 1;
                    }
                } else {
                    for (int b = 0; b < BLOCK; ++b) {
                        const uint32_t before = row[c][b], lower = low[k][b] * PRIMES[k];
                        row[2 * c][b] = before ^ lower;
                        row[2 * c + 1][b] = before ^ (lower + PRIMES[k]);
                    }
                }
            }
        if (!level.dense)
            for (int c = 0; c < corners; ++c)
                for (int b = 0; b < BLOCK; ++b) row[c][b] &= mask;
    }
};

}  // namespace scanfield
