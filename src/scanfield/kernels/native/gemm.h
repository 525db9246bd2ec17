// Small matrix products out of registers: C = start + A B, with A strided and B in rows of whole vectors.
#pragma once

#include <utility>

#include "vec.h"

namespace scanfield {

// Rows of C per block and vectors per row, so that block, one row of B and one element of A fit the registers.
#if defined(__AVX512F__)
constexpr int WIDE = 4;
#else
constexpr int WIDE = 2;
#endif
constexpr int TALL = 6;         // rows of a block of WIDE vectors
constexpr int ROW_STEP = 12;    // tiles hold a multiple of this many rows
constexpr int PANEL = WIDE * LANES;

// What a product starts from: zero, one row added to every row of C, or C itself.
enum class Start { zero, row, c };

struct Product {
    int64_t depth;           // K
    const float* a;          // element (i, k) at a[i * a_row + k * a_depth]
    int64_t a_row, a_depth;
    const float* b;          // row k at b[k * b_depth]
    int64_t b_depth;
    float* c;                // row i at c[i * c_row]
    int64_t c_row;
    Start start;
    const float* row;        // for Start::row
};

template <int... I, class F>
inline void unroll(std::integer_sequence<int, I...>, F&& f) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
inline void unroll(F&& f) {
    unroll(std::make_integer_sequence<int, N>{}, f);
}

template <int ROWS, int VECS>
inline __attribute__((always_inline)) void block(const Product& p) {
    vec acc[ROWS][VECS];
    unroll<ROWS>([&](auto i) __attribute__((always_inline)) {
        unroll<VECS>([&](auto j) __attribute__((always_inline)) {
            acc[i][j] = p.start == Start::zero  ? vec{}
                        : p.start == Start::row ? load(p.row + j * LANES)
                                                : load(p.c + i * p.c_row + j * LANES);
        });
    });
    const float *a = p.a, *b = p.b;
    for (int64_t k = 0; k < p.depth; ++k, a += p.a_depth, b += p.b_depth) {
        vec row[VECS];
        unroll<VECS>([&](auto j) __attribute__((always_inline)) { row[j] = load(b + j * LANES); });
        unroll<ROWS>([&](auto i) __attribute__((always_inline)) {
            const vec element = splat(a[i * p.a_row]);
            unroll<VECS>([&](auto j) __attribute__((always_inline)) { acc[i][j] += element * row[j]; });
        });
    }
    unroll<ROWS>([&](auto i) __attribute__((always_inline)) {
        unroll<VECS>([&](auto j) __attribute__((always_inline)) { store(p.c + i * p.c_row + j * LANES, acc[i][j]); });
    });
}

template <int ROWS, int VECS>
inline void rows_of(Product p, int64_t rows) {
    for (; rows >= ROWS; rows -= ROWS) {
        block<ROWS, VECS>(p);
        p.a += ROWS * p.a_row;
        p.c += ROWS * p.c_row;
    }
    if constexpr (ROWS > 1) {
        if (rows > 0) rows_of<(ROWS > 4 ? 4 : ROWS / 2), VECS>(p, rows);
    }
}

// All rows and `vectors` vectors per row; `panel` is the distance in B between panels of WIDE vectors.
inline void multiply(Product p, int64_t rows, int64_t vectors, int64_t panel) {
    for (; vectors >= WIDE; vectors -= WIDE) {
        rows_of<TALL, WIDE>(p, rows);
        p.b += panel;
        p.c += PANEL;
        if (p.row != nullptr) p.row += PANEL;
    }
#if defined(__AVX512F__)
    if (vectors == 3) rows_of<TALL, 3>(p, rows);
    if (vectors == 2) rows_of<2 * TALL, 2>(p, rows);
#endif
    if (vectors == 1) rows_of<2 * TALL, 1>(p, rows);
}

// A matrix (inner, outer) in panels of WIDE vectors of `outer`, zeros where it ends; element (k, j) is
// source[k * by_inner + j * by_outer]. Row k of a panel lies PANEL after row k - 1.
inline void pack(const float* source, int64_t inner, int64_t outer, int64_t by_inner, int64_t by_outer, float* target) {
    for (int64_t start = 0; start < outer; start += PANEL)
        for (int64_t k = 0; k < inner; ++k)
            for (int64_t j = start; j < start + PANEL; ++j)
                *target++ = j < outer ? source[k * by_inner + j * by_outer] : 0.0f;
}
inline int64_t packed_size(int64_t inner, int64_t outer) { return inner * ((outer + PANEL - 1) / PANEL * PANEL); }

// Y (rows, few) = start + A B^T by dot products, for few columns: B has `few` rows of `vectors` vectors.
inline void dots(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t rows, int64_t few,
                 int64_t vectors, const float* start, float* y, int64_t y_row) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < few; ++j) {
            vec total[2] = {};
            int64_t v = 0;
            for (; v + 2 <= vectors; v += 2)
                for (int half = 0; half < 2; ++half) {
                    const int64_t at = (v + half) * LANES;
                    total[half] += load(a + i * a_row + at) * load(b + j * b_row + at);
                }
            if (v < vectors) total[0] += load(a + i * a_row + v * LANES) * load(b + j * b_row + v * LANES);
            y[i * y_row + j] = (start != nullptr ? start[j] : 0.0f) + sum(total[0] + total[1]);
        }
}

}  // namespace scanfield
