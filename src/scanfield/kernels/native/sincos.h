// Sine and cosine of vectors of floats.
//
// x = k pi + r (or k pi/2 + r), with pi in three parts so that k times the first two is exact (Cody and Waite 1980);
// then a minimax polynomial in r (fitted by iteratively reweighted least squares; error below 5e-9). In float the
// absolute error is below 2e-7 for |x| <= 10,000 (tests/kernels/test_sincos.py); NaN and infinity give NaN.
#pragma once

#include "vec.h"

namespace scanfield {

constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, left in the low bits

inline ivec bits(vec v) { return reinterpret_cast<ivec>(v); }
inline vec floats(ivec v) { return reinterpret_cast<vec>(v); }

inline vec sine(vec x) {
    const vec shifted = x * 0x1.45f306p-2f + ROUND;
    const vec k = shifted - ROUND;
    const vec r = ((x - k * 0x1.92p+1f) - k * 0x1.fb4p-11f) - k * 0x1.4442d2p-23f;
    const vec r2 = r * r;
    const vec p = ((2.6000241e-6f * r2 - 1.9806602e-4f) * r2 + 8.333017e-3f) * r2 - 0.16666657f;
    return floats(bits(r + r * r2 * p) ^ (bits(shifted) << 31));
}

inline void sine_cosine(vec x, vec& sin_x, vec& cos_x) {
    const vec shifted = x * 0x1.45f306p-1f + ROUND;
    const vec k = shifted - ROUND;
    const vec r = ((x - k * 0x1.92p+0f) - k * 0x1.fb4p-12f) - k * 0x1.4442d2p-24f;
    const vec r2 = r * r;
    const vec s = r + r * r2 * ((-1.9495566e-4f * r2 + 8.331978e-3f) * r2 - 0.16666651f);
    const vec c = 1 - 0.5f * r2 + r2 * r2 * ((2.4438379e-5f * r2 - 1.3887367e-3f) * r2 + 4.1666646e-2f);
    const ivec quarter = bits(shifted);
    const ivec odd = -(quarter & 1);
    const ivec swapped = (bits(s) & odd) | (bits(c) & ~odd), kept = (bits(s) & ~odd) | (bits(c) & odd);
    sin_x = floats(kept ^ ((quarter >> 1) << 31));
    cos_x = floats(swapped ^ (((quarter + 1) >> 1) << 31));
}

}  // namespace scanfield
