// Joseph's line integrals through a voxel lattice and their transpose; the rule stands in kernels/joseph.py.
//
// The lattice is cut into slabs along its longest axis. Backwards, a slab belongs to one thread, which walks through all
// rays in their order and adds only what falls into its slab: no atomic additions, and the same bits whatever the number
// of threads.
#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace scanfield {
namespace {

constexpr int64_t RAYS = 4096;  // rays of one item of work

struct Lattice {
    int64_t size[3], stride[3];
    bool forward_only;
};

struct Slab {
    int64_t low[3], high[3];  // voxels low <= i < high along each axis
};

// Planes first <= p < last in which base + slope p may be above `low` and below `high`, one more on either side.
inline void narrow(double base, double slope, double low, double high, double& first, double& last) {
    if (slope == 0) {
        if (base <= low || base >= high) last = first;
        return;
    }
    const double at_low = (low - base) / slope, at_high = (high - base) / slope;
    first = std::max(first, std::floor(std::min(at_low, at_high)));
    last = std::min(last, std::ceil(std::max(at_low, at_high)) + 1);
}

// Share of the two voxels next to a place on one axis; a single voxel fills its thickness.
struct Between {
    int64_t low;
    double lower, upper;

    Between(double place, int64_t size) {
        if (size == 1) {
            low = 0, lower = std::abs(place) <= 0.5 ? 1 : 0, upper = 0;
        } else {
            const double floor = std::floor(place);
            low = static_cast<int64_t>(floor), upper = place - floor, lower = 1 - upper;
        }
    }
};

// Calls inner(voxel, stride b, stride c, weights) where all four voxels of a plane lie in the slab, and one(voxel,
// weight) for the voxels that do elsewhere. The order is that of the planes.
template <class Inner, class One>
void walk(const double* o, const double* d, const Lattice& lattice, const Slab& slab, Inner&& inner, One&& one) {
    int a = 0;
    for (int k = 1; k < 3; ++k)
        if (std::abs(d[k]) > std::abs(d[a])) a = k;
    const int b = a == 0 ? 1 : 0, c = a == 2 ? 1 : 2;
    const double slope_b = d[b] / d[a], slope_c = d[c] / d[a], path = 1 / std::abs(d[a]);
    const double base_b = o[b] - o[a] * slope_b, base_c = o[c] - o[a] * slope_c;
    double first = static_cast<double>(slab.low[a]), last = static_cast<double>(slab.high[a]);
    narrow(base_b, slope_b, slab.low[b] - 1.0, slab.high[b], first, last);
    narrow(base_c, slope_c, slab.low[c] - 1.0, slab.high[c], first, last);
    if (lattice.forward_only) narrow(-o[a] / d[a], 1 / d[a], 0, HUGE_VAL, first, last);
    if (!(first < last)) return;
    for (int64_t p = static_cast<int64_t>(first); p < static_cast<int64_t>(last); ++p) {
        if (lattice.forward_only && (static_cast<double>(p) - o[a]) / d[a] <= 0) continue;
        const Between pb(base_b + slope_b * static_cast<double>(p), lattice.size[b]);
        const Between pc(base_c + slope_c * static_cast<double>(p), lattice.size[c]);
        const int64_t voxel = p * lattice.stride[a] + pb.low * lattice.stride[b] + pc.low * lattice.stride[c];
        const bool inside_b = pb.low >= slab.low[b] && pb.low + 1 < slab.high[b];
        const bool inside_c = pc.low >= slab.low[c] && pc.low + 1 < slab.high[c];
        const double weight[4] = {path * pb.lower * pc.lower, path * pb.lower * pc.upper, path * pb.upper * pc.lower,
                                  path * pb.upper * pc.upper};
        if (inside_b && inside_c) {
            inner(voxel, lattice.stride[b], lattice.stride[c], weight);
            continue;
        }
        for (int k = 0; k < 4; ++k) {
            const int64_t ib = pb.low + k / 2, ic = pc.low + k % 2;
            if (ib >= slab.low[b] && ib < slab.high[b] && ic >= slab.low[c] && ic < slab.high[c])
                one(voxel + (k / 2) * lattice.stride[b] + (k % 2) * lattice.stride[c], weight[k]);
        }
    }
}

template <class T>
void project(const Lattice& lattice, const T* volume, int64_t rays, const double* origin, const double* direction,
             T* values, int threads) {
    const Slab all{{0, 0, 0}, {lattice.size[0], lattice.size[1], lattice.size[2]}};
    for_items((rays + RAYS - 1) / RAYS, threads, [&](int64_t item, int) {
        for (int64_t ray = item * RAYS; ray < std::min(rays, (item + 1) * RAYS); ++ray) {
            double sum = 0;
            walk(
                origin + 3 * ray, direction + 3 * ray, lattice, all,
                [&](int64_t voxel, int64_t b, int64_t c, const double* w) {
                    const T* v = volume + voxel;
                    sum += w[0] * v[0] + w[1] * v[c] + w[2] * v[b] + w[3] * v[b + c];
                },
                [&](int64_t voxel, double w) { sum += w * volume[voxel]; });
            values[ray] = static_cast<T>(sum);
        }
    });
}

template <class T>
void backproject(const Lattice& lattice, const T* values, int64_t rays, const double* origin, const double* direction,
                 T* volume, int threads) {
    const int axis = static_cast<int>(std::max_element(lattice.size, lattice.size + 3) - lattice.size);
    const int64_t size = lattice.size[axis], slabs = threads == 1 ? 1 : std::min<int64_t>(size, 2 * threads);
    for_items(slabs, threads, [&](int64_t item, int) {
        Slab slab{{0, 0, 0}, {lattice.size[0], lattice.size[1], lattice.size[2]}};
        slab.low[axis] = size * item / slabs, slab.high[axis] = size * (item + 1) / slabs;
        for (int64_t ray = 0; ray < rays; ++ray) {
            const double value = values[ray];
            if (value == 0) continue;
            walk(
                origin + 3 * ray, direction + 3 * ray, lattice, slab,
                [&](int64_t voxel, int64_t b, int64_t c, const double* w) {
                    T* v = volume + voxel;
                    v[0] += static_cast<T>(w[0] * value), v[c] += static_cast<T>(w[1] * value);
                    v[b] += static_cast<T>(w[2] * value), v[b + c] += static_cast<T>(w[3] * value);
                },
                [&](int64_t voxel, double w) { volume[voxel] += static_cast<T>(w * value); });
        }
    });
}

inline Lattice lattice_of(int64_t n0, int64_t n1, int64_t n2, int32_t forward_only) {
    return {{n0, n1, n2}, {n1 * n2, n2, 1}, forward_only != 0};
}

}  // namespace
}  // namespace scanfield

// values (rays,) = the line integrals of volume (n0, n1, n2); origin and direction (rays, 3) in voxels.
SCANFIELD_API void scanfield_joseph_project(int32_t is_double, int64_t n0, int64_t n1, int64_t n2, const void* volume,
                                            int64_t rays, const double* origin, const double* direction,
                                            int32_t forward_only, void* values, int32_t threads) {
    const auto lattice = scanfield::lattice_of(n0, n1, n2, forward_only);
    if (is_double)
        scanfield::project(lattice, static_cast<const double*>(volume), rays, origin, direction,
                           static_cast<double*>(values), threads);
    else
        scanfield::project(lattice, static_cast<const float*>(volume), rays, origin, direction,
                           static_cast<float*>(values), threads);
}

// volume (n0, n1, n2) += the transpose of the above, applied to values (rays,).
SCANFIELD_API void scanfield_joseph_backproject(int32_t is_double, int64_t n0, int64_t n1, int64_t n2, void* volume,
                                                int64_t rays, const double* origin, const double* direction,
                                                int32_t forward_only, const void* values, int32_t threads) {
    const auto lattice = scanfield::lattice_of(n0, n1, n2, forward_only);
    if (is_double)
        scanfield::backproject(lattice, static_cast<const double*>(values), rays, origin, direction,
                               static_cast<double*>(volume), threads);
    else
        scanfield::backproject(lattice, static_cast<const float*>(values), rays, origin, direction,
                               static_cast<float*>(volume), threads);
}
