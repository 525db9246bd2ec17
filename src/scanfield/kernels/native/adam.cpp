// Adam for the visited rows of a table; the rule stands in kernels/adam.py. Gradient and mark of a row are cleared on
// the way, while they are in the cache. Rows are independent: the same bits whatever the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"

namespace scanfield {
namespace {

constexpr int64_t ROWS = 16;                // rows taken together
constexpr int64_t SPAN = int64_t(1) << 15;  // rows of one item of work
// Blocks of rows fetched ahead: five streams are too many for the processor's own prefetching, and this is twice as
// fast. Bytes of a cache line.
constexpr int64_t AHEAD = 8, LINE = 64;

struct Rates {
    double rate, beta1, beta2, eps;
};

template <class T>
struct Table {
    T *values, *grad, *mean, *square;
    uint8_t* visited;
};

template <class T>
struct Entry {
    T value, mean, square;

    Entry(T value, T grad, T mean, T square, const Rates& rates)
        : mean(mean + static_cast<T>(1 - rates.beta1) * (grad - mean)),
          square(square + static_cast<T>(1 - rates.beta2) * (grad * grad - square)) {
        const T scale = std::sqrt(this->square) + static_cast<T>(rates.eps);
        this->value = value - static_cast<T>(rates.rate) * this->mean / scale;
    }
};

// ROWS rows from `row` on, in vectors: entries of rows that were not visited are computed too, and keep what they had.
template <class T, int F>
void update_block(const Table<T>& table, int64_t row, const Rates& rates) {
    constexpr int64_t COUNT = ROWS * F;
    T on[COUNT];
    for (int64_t r = 0; r < ROWS; ++r)
        for (int64_t f = 0; f < F; ++f) on[r * F + f] = table.visited[row + r];
    T* __restrict values = table.values + row * F;
    T* __restrict grad = table.grad + row * F;
    T* __restrict mean = table.mean + row * F;
    T* __restrict square = table.square + row * F;
    for (int64_t e = 0; e < COUNT; ++e) {
        const Entry<T> next(values[e], grad[e], mean[e], square[e], rates);
        const bool changes = on[e] != 0;
        values[e] = changes ? next.value : values[e];
        mean[e] = changes ? next.mean : mean[e];
        square[e] = changes ? next.square : square[e];
        grad[e] = changes ? T(0) : grad[e];
    }
}

template <class T>
void update_row(const Table<T>& table, int64_t row, int64_t features, const Rates& rates) {
    for (int64_t e = row * features; e < (row + 1) * features; ++e) {
        const Entry<T> next(table.values[e], table.grad[e], table.mean[e], table.square[e], rates);
        table.values[e] = next.value;
        table.mean[e] = next.mean;
        table.square[e] = next.square;
        table.grad[e] = 0;
    }
}

inline bool any_visited(const uint8_t* visited, int64_t count) {
    uint64_t marks[ROWS / 8] = {}, any = 0;
    std::memcpy(marks, visited, count);
    for (uint64_t eight : marks) any |= eight;
    return any != 0;
}

template <class T, int F>
void visited_adam(int64_t rows, int64_t features, const Table<T>& table, const Rates& rates, int threads) {
    const int64_t stride = LINE / int64_t(sizeof(T));
    for_items((rows + SPAN - 1) / SPAN, threads, [&](int64_t span, int) {
        const int64_t end = std::min(rows, (span + 1) * SPAN);
        for (int64_t row = span * SPAN; row < end; row += ROWS) {
            const int64_t later = row + AHEAD * ROWS;
            if (later + ROWS <= end && any_visited(table.visited + later, ROWS))
                for (int64_t e = later * features; e < (later + ROWS) * features; e += stride)
                    for (const T* array : {table.values, table.grad, table.mean, table.square})
                        __builtin_prefetch(array + e, 1);
            const int64_t count = std::min(ROWS, end - row);
            if (!any_visited(table.visited + row, count)) continue;
            if (F > 0 && count == ROWS)
                update_block<T, F == 0 ? 1 : F>(table, row, rates);
            else
                for (int64_t r = row; r < row + count; ++r)
                    if (table.visited[r]) update_row(table, r, features, rates);
            std::memset(table.visited + row, 0, count);
        }
    });
}

template <class T>
void with_features(int64_t rows, int64_t features, const Table<T>& table, const Rates& rates, int threads) {
    switch (features) {
        case 1: return visited_adam<T, 1>(rows, features, table, rates, threads);
        case 2: return visited_adam<T, 2>(rows, features, table, rates, threads);
        case 4: return visited_adam<T, 4>(rows, features, table, rates, threads);
        case 8: return visited_adam<T, 8>(rows, features, table, rates, threads);
        default: return visited_adam<T, 0>(rows, features, table, rates, threads);
    }
}

template <class T>
void run(int64_t rows, int64_t features, void* table, void* grad, void* mean, void* square, uint8_t* visited,
         const Rates& rates, int threads) {
    const Table<T> all{static_cast<T*>(table), static_cast<T*>(grad), static_cast<T*>(mean), static_cast<T*>(square),
                       visited};
    with_features(rows, features, all, rates, threads);
}

}  // namespace
}  // namespace scanfield

SCANFIELD_API void scanfield_visited_adam(int32_t is_double, int64_t rows, int64_t features, void* table, void* grad,
                                          void* mean, void* square, uint8_t* visited, double rate, double beta1,
                                          double beta2, double eps, int32_t threads) {
    const scanfield::Rates rates{rate, beta1, beta2, eps};
    if (is_double)
        scanfield::run<double>(rows, features, table, grad, mean, square, visited, rates, threads);
    else
        scanfield::run<float>(rows, features, table, grad, mean, square, visited, rates, threads);
}
