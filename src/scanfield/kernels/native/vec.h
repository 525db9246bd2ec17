// Vectors of floats as wide as this library's instruction set, by the compiler's vector extension.
#pragma once

#include <cstdint>
#include <cstring>

namespace scanfield {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec splat(float a) { return a - vec{}; }

// Sum of the lanes, by halves.
inline float sum(vec v) {
    float lanes[LANES];
    store(lanes, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

}  // namespace scanfield
