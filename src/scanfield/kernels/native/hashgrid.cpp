// Multiresolution hash grid (Mueller et al. 2022, section 3) on processors; formulas in kernels/hashgrid.py.
//
// Three kernels, each with the weights w_c of the corners or, where a direction h is given, with their derivative
// sum_k h_k dw_c/du_k in place of them. All the derivatives up to the second are sums of these.
//
//   gather   out[l]   =  sum_c w_c table[row_c]
//   scatter  table[row_c] += w_c g[l]
//   slope    out_k    =  sum_l sum_c dw_c/du_k <table[row_c], g[l]>
//
// Points are taken in chunks, a chunk level by level, so that one level's rows stay in the cache. A level's table is
// written by one thread in the chunk's order: no atomics, and the same bits whatever the number of threads.
#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "hashgrid_block.h"
#include "parallel.h"

namespace scanfield {
namespace {

constexpr int64_t CHUNK = int64_t(1) << 16, SPAN = int64_t(1) << 13;
// Smaller levels stay in a core's own cache: their rows need not be fetched ahead.
constexpr int64_t CACHED_BYTES = int64_t(1) << 18;

struct Grid {
    const Level* levels;
    int64_t count;
    int64_t features;
    bool smooth;
    int threads;

    int64_t width() const { return count * features; }

    // Largest first, so that no thread is left with a long level at the end.
    std::vector<int> by_size() const {
        std::vector<int> order(count);
        for (int l = 0; l < count; ++l) order[l] = l;
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return levels[a].rows > levels[b].rows; });
        return order;
    }
};

template <class T>
using Buffer = std::unique_ptr<T[]>;

// A stretch of the batch, coordinates by columns.
template <class T, int D>
struct Chunk {
    int64_t begin, count;
    int64_t pitch;   // from column to column; no power of two, so that columns do not share cache sets
    Buffer<T> u, h;  // h is null without a direction

    Chunk(const T* all_u, const T* all_h, int64_t n, int64_t first)
        : begin(first), count(std::min(CHUNK, n - first)), pitch(count + 80) {
        u = columns(all_u);
        if (all_h != nullptr) h = columns(all_h);
    }

    int64_t spans() const { return (count + SPAN - 1) / SPAN; }
    Points<T> points() const { return {u.get(), pitch}; }
    Points<T> direction() const { return {h.get(), pitch}; }

   private:
    Buffer<T> columns(const T* all) const {
        Buffer<T> result(new T[D * pitch]);
        for (int64_t i = 0; i < count; ++i)
            for (int k = 0; k < D; ++k) result[k * pitch + i] = all[(begin + i) * D + k];
        return result;
    }
};

// Locates points [first, end) of a chunk block by block, one block ahead of `use(block, first)`, and has the rows
// fetched in between.
template <bool WRITE, class T, int D, class Use>
void walk(const Grid& grid, const Level& level, const Chunk<T, D>& chunk, const T* base, int64_t first, int64_t end,
          Use&& use) {
    const bool fetch = level.rows * grid.features * int64_t(sizeof(T)) > CACHED_BYTES;
    Block<T, D> blocks[2];
    const auto locate = [&](int64_t at, Block<T, D>& block) {
        block.locate(level, chunk.points(), at, static_cast<int>(std::min<int64_t>(BLOCK, end - at)), grid.smooth);
        if (!fetch) return;
        for (int c = 0; c < block.corners; ++c)
            for (int b = 0; b < block.count; ++b)
                __builtin_prefetch(base + int64_t(block.row[c][b]) * grid.features, WRITE);
    };
    if (first < end) locate(first, blocks[0]);
    int now = 0;
    for (int64_t at = first; at < end; at += BLOCK, now ^= 1) {
        if (at + BLOCK < end) locate(at + BLOCK, blocks[now ^ 1]);
        use(blocks[now], at);
    }
}

template <class T, int D>
void corner_weights(Block<T, D>& block, const Chunk<T, D>& chunk, T weight, int64_t at) {
    if (chunk.h)
        block.tangents(weight, chunk.direction(), at);
    else
        block.weights(weight);
}

// Below, F is the number of features, or 0: any; `out` and `g` point to the level's part of the chunk's first row.

template <class T, int D, int F>
void gather_level(const Grid& grid, const Level& level, const Chunk<T, D>& chunk, const T* table, T weight,
                  int64_t first, int64_t end, T* out) {
    const int64_t features = F > 0 ? F : grid.features;
    const T* base = table + level.start * features;
    if (weight == 0) {
        for (int64_t i = first; i < end; ++i) std::fill_n(out + i * grid.width(), features, T(0));
        return;
    }
    walk<false>(grid, level, chunk, base, first, end, [&](Block<T, D>& block, int64_t at) {
        corner_weights(block, chunk, weight, at);
        for (int b = 0; b < block.count; ++b) {
            T* target = out + (at + b) * grid.width();
            if constexpr (F > 0) {
                T sum[F] = {};
                for (int c = 0; c < block.corners; ++c) {
                    const T* values = base + int64_t(block.row[c][b]) * F;
                    for (int f = 0; f < F; ++f) sum[f] += block.coef[c][b] * values[f];
                }
                for (int f = 0; f < F; ++f) target[f] = sum[f];
            } else {
                std::fill_n(target, features, T(0));
                for (int c = 0; c < block.corners; ++c) {
                    const T* values = base + int64_t(block.row[c][b]) * features;
                    for (int64_t f = 0; f < features; ++f) target[f] += block.coef[c][b] * values[f];
                }
            }
        }
    });
}

template <class T, int D, int F>
void scatter_level(const Grid& grid, const Level& level, const Chunk<T, D>& chunk, T weight, const T* g, T* table,
                   uint8_t* visited) {
    const int64_t features = F > 0 ? F : grid.features;
    T* base = table + level.start * features;
    uint8_t* marks = visited == nullptr ? nullptr : visited + level.start;
    walk<true>(grid, level, chunk, base, 0, chunk.count, [&](Block<T, D>& block, int64_t at) {
        corner_weights(block, chunk, weight, at);
        for (int b = 0; b < block.count; ++b) {
            const T* given = g + (at + b) * grid.width();
            T value[F > 0 ? F : 1];
            if constexpr (F > 0)
                for (int f = 0; f < F; ++f) value[f] = given[f];
            for (int c = 0; c < block.corners; ++c) {
                T* target = base + int64_t(block.row[c][b]) * features;
                if constexpr (F > 0)
                    for (int f = 0; f < F; ++f) target[f] += block.coef[c][b] * value[f];
                else
                    for (int64_t f = 0; f < features; ++f) target[f] += block.coef[c][b] * given[f];
            }
        }
        if (marks != nullptr)
            for (int c = 0; c < block.corners; ++c)
                for (int b = 0; b < block.count; ++b) marks[block.row[c][b]] = 1;
    });
}

// `sums`: D columns of the chunk, this level's part of the slope.
template <class T, int D, int F>
void slope_level(const Grid& grid, const Level& level, const Chunk<T, D>& chunk, const T* table, T weight, const T* g,
                 int64_t first, int64_t end, T* sums) {
    const int64_t features = F > 0 ? F : grid.features;
    const T* base = table + level.start * features;
    walk<false>(grid, level, chunk, base, first, end, [&](Block<T, D>& block, int64_t at) {
        T dot[Block<T, D>::corners][BLOCK] = {};
        for (int b = 0; b < block.count; ++b) {
            const T* given = g + (at + b) * grid.width();
            for (int c = 0; c < block.corners; ++c) {
                const T* values = base + int64_t(block.row[c][b]) * features;
                T sum = 0;
                for (int64_t f = 0; f < features; ++f) sum += values[f] * given[f];
                dot[c][b] = sum;
            }
        }
        for (int k = 0; k < D; ++k) {
            if (chunk.h)
                block.curvatures(weight, k, chunk.direction(), at);
            else
                block.slopes(weight, k);
            T sum[BLOCK] = {};
            for (int c = 0; c < block.corners; ++c)
                for (int b = 0; b < BLOCK; ++b) sum[b] += block.coef[c][b] * dot[c][b];
            std::copy_n(sum, block.count, sums + k * chunk.pitch + at);
        }
    });
}

template <class T, int D, int F>
void gather(const Grid& grid, int64_t n, const T* u, const T* h, const T* table, const T* weight, T* out) {
    const auto levels = grid.by_size();
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        const Chunk<T, D> chunk(u, h, n, begin);
        const int64_t spans = chunk.spans();
        for_items(grid.count * spans, grid.threads, [&](int64_t item, int) {
            const int l = levels[item / spans];
            const int64_t first = item % spans * SPAN, end = std::min(chunk.count, first + SPAN);
            gather_level<T, D, F>(grid, grid.levels[l], chunk, table, weight[l], first, end,
                                  out + begin * grid.width() + l * grid.features);
        });
    }
}

// With `visited` the table is added to and its rows are marked; without, it is overwritten.
template <class T, int D, int F>
void scatter(const Grid& grid, int64_t n, const T* u, const T* h, const T* g, const T* weight, T* table,
             uint8_t* visited) {
    const auto levels = grid.by_size();
    int64_t begin = 0;
    do {
        const Chunk<T, D> chunk(u, h, n, begin);
        for_items(grid.count, grid.threads, [&](int64_t item, int) {
            const int l = levels[item];
            const Level& level = grid.levels[l];
            // Here, not in one sweep before: the rows are in the cache when the sums begin.
            if (begin == 0 && visited == nullptr)
                std::fill_n(table + level.start * grid.features, level.rows * grid.features, T(0));
            if (weight[l] != 0)
                scatter_level<T, D, F>(grid, level, chunk, weight[l], g + begin * grid.width() + l * grid.features,
                                       table, visited);
        });
        begin += CHUNK;
    } while (begin < n);
}

template <class T, int D, int F>
void slope(const Grid& grid, int64_t n, const T* u, const T* h, const T* g, const T* table, const T* weight, T* out) {
    std::vector<int> levels = grid.by_size();
    levels.erase(std::remove_if(levels.begin(), levels.end(), [&](int l) { return weight[l] == 0; }), levels.end());
    const auto active = static_cast<int64_t>(levels.size());
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
        const Chunk<T, D> chunk(u, h, n, begin);
        const int64_t spans = chunk.spans(), size = D * chunk.pitch;
        const Buffer<T> sums(new T[active * size]);
        for_items(active * spans, grid.threads, [&](int64_t item, int) {
            const int l = levels[item / spans];
            const int64_t first = item % spans * SPAN, end = std::min(chunk.count, first + SPAN);
            slope_level<T, D, F>(grid, grid.levels[l], chunk, table, weight[l],
                                 g + begin * grid.width() + l * grid.features, first, end,
                                 sums.get() + item / spans * size);
        });
        for_items(spans, grid.threads, [&](int64_t span, int) {
            constexpr int64_t TILE = 256;
            const int64_t end = std::min(chunk.count, (span + 1) * SPAN);
            for (int64_t at = span * SPAN; at < end; at += TILE)
                for (int k = 0; k < D; ++k) {
                    T sum[TILE] = {};
                    const int64_t here = std::min(TILE, end - at);
                    for (int64_t l = 0; l < active; ++l)
                        for (int64_t i = 0; i < here; ++i) sum[i] += sums[l * size + k * chunk.pitch + at + i];
                    for (int64_t i = 0; i < here; ++i) out[(begin + at + i) * D + k] = sum[i];
                }
        });
    }
}

template <int N>
using Number = std::integral_constant<int, N>;

// Calls run(T(), Number<D>(), Number<F>()).
template <class T, int D, class Run>
void with_features(int64_t features, Run&& run) {
    switch (features) {
        case 1: return run(T(), Number<D>(), Number<1>());
        case 2: return run(T(), Number<D>(), Number<2>());
        case 4: return run(T(), Number<D>(), Number<4>());
        case 8: return run(T(), Number<D>(), Number<8>());
        default: return run(T(), Number<D>(), Number<0>());
    }
}

template <class T, class Run>
void with_dims(int dims, int64_t features, Run&& run) {
    if (dims == 2) return with_features<T, 2>(features, run);
    if (dims == 3) return with_features<T, 3>(features, run);
    return with_features<T, 4>(features, run);
}

template <class Run>
void with_type(bool is_double, int dims, int64_t features, Run&& run) {
    if (is_double) return with_dims<double>(dims, features, run);
    return with_dims<float>(dims, features, run);
}

}  // namespace
}  // namespace scanfield

// What every kernel is told about the grid; mirrored by ctypes in hashgrid_cpu.py. dims is 2, 3 or 4.
struct ScanfieldGrid {
    const scanfield::Level* levels;
    int64_t count;
    int64_t features;
    int32_t dims;
    int32_t smooth;
    int32_t is_double;
    int32_t threads;
};

namespace {
scanfield::Grid unpack(const ScanfieldGrid* grid) {
    return {grid->levels, grid->count, grid->features, grid->smooth != 0, grid->threads};
}
}  // namespace

// h may be null: plain weights.
SCANFIELD_API void scanfield_hashgrid_gather(const ScanfieldGrid* grid, int64_t n, const void* u, const void* h,
                                             const void* table, const void* weight, void* out) {
    scanfield::with_type(grid->is_double, grid->dims, grid->features, [&](auto type, auto dims, auto features) {
        using T = decltype(type);
        scanfield::gather<T, dims.value, features.value>(
            unpack(grid), n, static_cast<const T*>(u), static_cast<const T*>(h), static_cast<const T*>(table),
            static_cast<const T*>(weight), static_cast<T*>(out));
    });
}

SCANFIELD_API void scanfield_hashgrid_scatter(const ScanfieldGrid* grid, int64_t n, const void* u, const void* h,
                                              const void* g, const void* weight, void* table, uint8_t* visited) {
    scanfield::with_type(grid->is_double, grid->dims, grid->features, [&](auto type, auto dims, auto features) {
        using T = decltype(type);
        scanfield::scatter<T, dims.value, features.value>(
            unpack(grid), n, static_cast<const T*>(u), static_cast<const T*>(h), static_cast<const T*>(g),
            static_cast<const T*>(weight), static_cast<T*>(table), visited);
    });
}

SCANFIELD_API void scanfield_hashgrid_slope(const ScanfieldGrid* grid, int64_t n, const void* u, const void* h,
                                            const void* g, const void* table, const void* weight, void* out) {
    scanfield::with_type(grid->is_double, grid->dims, grid->features, [&](auto type, auto dims, auto features) {
        using T = decltype(type);
        scanfield::slope<T, dims.value, features.value>(
            unpack(grid), n, static_cast<const T*>(u), static_cast<const T*>(h), static_cast<const T*>(g),
            static_cast<const T*>(table), static_cast<const T*>(weight), static_cast<T*>(out));
    });
}
