// Exact line integrals through voxels of constant value; the rule stands in kernels/siddon.py. A ray is followed from
// one voxel border to the next.
#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace scanfield {
namespace {

constexpr int64_t RAYS = 4096;  // rays of one item of work

// Integral along one ray, o and d in voxels; voxel i fills [i - 1/2, i + 1/2].
template <class T>
double integrate(const T* volume, const int64_t* size, const int64_t* stride, const double* o, const double* d,
                 bool forward_only) {
    double enter = forward_only ? 0 : -HUGE_VAL, leave = HUGE_VAL;
    for (int k = 0; k < 3; ++k) {
        const double low = -0.5 - o[k], high = static_cast<double>(size[k]) - 0.5 - o[k];
        if (d[k] == 0) {
            if (low > 0 || high <= 0) return 0;
            continue;
        }
        enter = std::max(enter, std::min(low / d[k], high / d[k]));
        leave = std::min(leave, std::max(low / d[k], high / d[k]));
    }
    if (!(enter < leave)) return 0;
    int64_t voxel[3], step[3], at = 0;
    double border[3], gap[3];  // where the next border is crossed, and from one border to the next
    for (int k = 0; k < 3; ++k) {
        const double place = std::floor(o[k] + enter * d[k] + 0.5);
        voxel[k] = static_cast<int64_t>(std::min(std::max(place, 0.0), static_cast<double>(size[k] - 1)));
        step[k] = d[k] < 0 ? -1 : 1;
        gap[k] = d[k] == 0 ? HUGE_VAL : 1 / std::abs(d[k]);
        border[k] = d[k] == 0 ? HUGE_VAL : (static_cast<double>(voxel[k]) + 0.5 * step[k] - o[k]) / d[k];
        at += voxel[k] * stride[k];
    }
    double sum = 0, t = enter;
    while (t < leave) {
        int k = border[1] < border[0] ? 1 : 0;
        if (border[2] < border[k]) k = 2;
        const double next = std::min(border[k], leave);
        if (next > t) {
            sum += (next - t) * volume[at];
            t = next;
        }
        voxel[k] += step[k];
        if (voxel[k] < 0 || voxel[k] >= size[k]) break;
        at += step[k] * stride[k];
        border[k] += gap[k];
    }
    return sum;
}

template <class T>
void integrate_all(const int64_t* size, const T* volume, int64_t rays, const double* origin, const double* direction,
                   bool forward_only, T* values, int threads) {
    const int64_t stride[3] = {size[1] * size[2], size[2], 1};
    for_items((rays + RAYS - 1) / RAYS, threads, [&](int64_t item, int) {
        for (int64_t ray = item * RAYS; ray < std::min(rays, (item + 1) * RAYS); ++ray)
            values[ray] = static_cast<T>(
                integrate(volume, size, stride, origin + 3 * ray, direction + 3 * ray, forward_only));
    });
}

}  // namespace
}  // namespace scanfield

// values (rays,) = the line integrals of volume (n0, n1, n2); origin and direction (rays, 3) in voxels.
SCANFIELD_API void scanfield_siddon(int32_t is_double, int64_t n0, int64_t n1, int64_t n2, const void* volume,
                                    int64_t rays, const double* origin, const double* direction, int32_t forward_only,
                                    void* values, int32_t threads) {
    const int64_t size[3] = {n0, n1, n2};
    if (is_double)
        scanfield::integrate_all(size, static_cast<const double*>(volume), rays, origin, direction, forward_only != 0,
                                 static_cast<double*>(values), threads);
    else
        scanfield::integrate_all(size, static_cast<const float*>(volume), rays, origin, direction, forward_only != 0,
                                 static_cast<float*>(values), threads);
}
