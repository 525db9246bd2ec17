// Fully connected sine and rectifier networks, and their derivatives along given directions, tile by tile.
//
// A tile holds a few points, and for each of them several streams: the value, first derivatives along k directions,
// second derivatives for m pairs of directions. All pass through the same matrices, so a tile is one matrix with
// streams * points rows, and a layer is one product and one pass over its elements. With d1, d2 the derivatives of the
// activation at z:
//     h = act(z)    h_i = d1 z_i    h_ij = d1 z_ij + d2 z_i z_j
// The backward pass computes a tile's forward pass again and keeps it in the cache; nothing but the input, the output
// and the gradients ever lies in main memory.

#include <cmath>
#include <cstdlib>
#include <new>

#include "gemm.h"
#include "parallel.h"
#include "sincos.h"

namespace scanfield {
namespace {

constexpr int64_t FEW = 4;  // a product with at most so many columns is made of dot products

// Memory that serves again in the next call from the same thread.
struct Arena {
    float* start = nullptr;
    int64_t size = 0, used = 0;
    ~Arena() { std::free(start); }
    bool reset(int64_t floats) {
        used = 0;
        if (floats <= size) return true;
        std::free(start);
        start = static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64));
        size = start == nullptr ? 0 : floats;
        return start != nullptr;
    }
};
thread_local Arena arena;

// Hands out pieces of the arena; a dry run with no arena only counts.
struct Pieces {
    float* start;
    int64_t used = 0;
    float* take(int64_t floats) {
        float* piece = start == nullptr ? nullptr : start + used;
        used += (floats + 15) / 16 * 16;
        return piece;
    }
};

}  // namespace

// Mirrors _Network in kernels/mlp_cpu.py.
struct Network {
    int64_t layers;
    const int64_t* widths;  // layers + 1 of them
    const float* const* weights;
    const float* const* biases;
    const float* omegas;  // layers - 1 of them; null for a rectifier network
};

// Mirrors _Streams in kernels/mlp_cpu.py.
struct Streams {
    int64_t first, second;
    const int64_t* pairs;  // 2 * second numbers below `first`
};

namespace {

struct Layer {
    int64_t in, out, in_row, out_row;
    const float *weight, *bias;
    float *forward, *backward;     // packed weights
    float *bias_row;               // padded bias
    bool few_out, few_in, upright;  // upright: the gradient is stored as (out, in), else as (in, out)
};

struct Plan {
    const Network& net;
    const Streams& streams;
    int64_t n, points, rows, all;  // points per tile, rows = (1 + first + second) * points
    bool gradients, input_gradient;
    Layer* layer;

    int64_t depth() const { return net.layers; }
};

void pack_layer(Layer& layer, Pieces& pieces, bool need_backward, bool is_first, bool is_last) {
    layer.few_out = is_last && layer.out <= FEW;
    layer.few_in = is_first && layer.in <= FEW;
    layer.upright = layer.in >= LANES;
    layer.forward = pieces.take(layer.few_out ? layer.out * layer.in_row : packed_size(layer.in, layer.out));
    layer.bias_row = pieces.take(padded(layer.out) + PANEL);
    layer.backward = nullptr;
    if (need_backward)
        layer.backward = pieces.take(layer.few_in ? layer.in * layer.out_row : packed_size(layer.out, layer.in));
    if (pieces.start == nullptr) return;
    if (layer.few_out) {
        for (int64_t j = 0; j < layer.out; ++j)
            for (int64_t k = 0; k < layer.in_row; ++k)
                layer.forward[j * layer.in_row + k] = k < layer.in ? layer.weight[j * layer.in + k] : 0.0f;
    } else {
        pack(layer.weight, layer.in, layer.out, 1, layer.in, layer.forward);
    }
    for (int64_t j = 0; j < padded(layer.out) + PANEL; ++j) layer.bias_row[j] = j < layer.out ? layer.bias[j] : 0.0f;
    if (!need_backward) return;
    if (layer.few_in) {
        for (int64_t k = 0; k < layer.in; ++k)
            for (int64_t j = 0; j < layer.out_row; ++j)
                layer.backward[k * layer.out_row + j] = j < layer.out ? layer.weight[j * layer.in + k] : 0.0f;
    } else {
        pack(layer.weight, layer.out, layer.in, layer.in, 1, layer.backward);
    }
}

// What one thread works in.
struct Bench {
    float** h;          // input of every layer, and the output
    float** slope;      // d1 of every hidden layer, points rows
    float** tangent;    // z of all streams but the first, of every hidden layer
    float *g, *g_next;  // gradients to a layer's output and input
    float** weight;     // gradients to the weights
    float** bias;
};

int64_t largest_row(const Plan& plan) {
    int64_t row = 0;
    for (int64_t l = 0; l < plan.depth(); ++l) {
        if (plan.layer[l].in_row > row) row = plan.layer[l].in_row;
        if (plan.layer[l].out_row > row) row = plan.layer[l].out_row;
    }
    return row;
}

Bench lay_out(const Plan& plan, Pieces& pieces, float** pointers) {
    const int64_t depth = plan.depth();
    Bench b{};
    b.h = pointers, b.slope = b.h + depth + 1, b.tangent = b.slope + depth, b.weight = b.tangent + depth;
    b.bias = b.weight + depth;
    if (!plan.gradients) {
        // Two buffers in turn.
        float* pair[2] = {pieces.take(plan.rows * largest_row(plan)), pieces.take(plan.rows * largest_row(plan))};
        for (int64_t l = 0; l <= depth; ++l) b.h[l] = pair[l % 2];
        return b;
    }
    for (int64_t l = 0; l <= depth; ++l)
        b.h[l] = pieces.take(plan.rows * (l < depth ? plan.layer[l].in_row : plan.layer[l - 1].out_row));
    for (int64_t l = 0; l + 1 < depth; ++l) {
        b.slope[l] = pieces.take(plan.points * plan.layer[l].out_row);
        b.tangent[l] = pieces.take((plan.rows - plan.points) * plan.layer[l].out_row);
    }
    b.g = pieces.take(plan.rows * largest_row(plan));
    b.g_next = pieces.take(plan.rows * largest_row(plan));
    for (int64_t l = 0; l < depth; ++l) {
        const Layer& layer = plan.layer[l];
        b.weight[l] = pieces.take(layer.upright ? layer.out * layer.in_row : layer.in * layer.out_row);
        b.bias[l] = pieces.take(layer.out_row);
    }
    return b;
}

// z (value rows) -> act(z) in place, and d1.
void activate(float* z, float* slope, int64_t count, const float* omega) {
    if (omega == nullptr) {
        for (int64_t i = 0; i < count; i += LANES) {
            const vec v = load(z + i);
            const ivec positive = v > 0;
            store(z + i, floats(bits(v) & positive));
            if (slope != nullptr) store(slope + i, floats(bits(splat(1.0f)) & positive));
        }
    } else if (slope == nullptr) {
        for (int64_t i = 0; i < count; i += LANES) store(z + i, sine(*omega * load(z + i)));
    } else {
        for (int64_t i = 0; i < count; i += LANES) {
            vec s, c;
            sine_cosine(*omega * load(z + i), s, c);
            store(z + i, s);
            store(slope + i, *omega * c);
        }
    }
}

// The other streams: z_i -> d1 z_i and z_ij -> d1 z_ij + d2 z_i z_j in place, with d2 = -bend * act(z); keeps z_i, z_ij.
void activate_streams(const Plan& plan, float* h, const float* slope, float* kept, int64_t row, float bend) {
    const int64_t block = plan.points * row, first = plan.streams.first;
    for (int64_t m = 0; m < plan.streams.second; ++m) {
        float* z = h + (1 + first + m) * block;
        const float* zi = h + (1 + plan.streams.pairs[2 * m]) * block;
        const float* zj = h + (1 + plan.streams.pairs[2 * m + 1]) * block;
        for (int64_t i = 0; i < block; i += LANES) {
            const vec v = load(z + i);
            if (kept != nullptr) store(kept + (first + m) * block + i, v);
            store(z + i, load(slope + i) * v - bend * load(h + i) * load(zi + i) * load(zj + i));
        }
    }
    for (int64_t s = 0; s < first; ++s) {
        float* z = h + (1 + s) * block;
        for (int64_t i = 0; i < block; i += LANES) {
            const vec v = load(z + i);
            if (kept != nullptr) store(kept + s * block + i, v);
            store(z + i, load(slope + i) * v);
        }
    }
}

// Gradients to act(z), d1 z_i, ... -> gradients to z, z_i, ..., in place; d2 = -bend h, d3 = -bend d1.
void deactivate(const Plan& plan, float* g, const float* h, const float* slope, const float* z, int64_t row, float bend) {
    const int64_t block = plan.points * row, first = plan.streams.first, second = plan.streams.second;
    if (first == 0) {
        for (int64_t i = 0; i < block; i += LANES) store(g + i, load(g + i) * load(slope + i));
        return;
    }
    for (int64_t i = 0; i < block; i += LANES) {
        const vec d1 = load(slope + i), d2 = -bend * load(h + i), d3 = -bend * d1;
        vec total = load(g + i) * d1;
        for (int64_t s = 0; s < first; ++s) {
            float* at = g + (1 + s) * block + i;
            total += load(at) * d2 * load(z + s * block + i);
            store(at, load(at) * d1);
        }
        for (int64_t m = 0; m < second; ++m) {
            const int64_t a = plan.streams.pairs[2 * m], b = plan.streams.pairs[2 * m + 1];
            float* at = g + (1 + first + m) * block + i;
            const vec gm = load(at), za = load(z + a * block + i), zb = load(z + b * block + i);
            total += gm * (d2 * load(z + (first + m) * block + i) + d3 * za * zb);
            store(g + (1 + a) * block + i, load(g + (1 + a) * block + i) + gm * d2 * zb);
            store(g + (1 + b) * block + i, load(g + (1 + b) * block + i) + gm * d2 * za);
            store(at, gm * d1);
        }
        store(g + i, total);
    }
}

void linear(const Plan& plan, const Layer& layer, const float* h, float* z) {
    const int64_t values = plan.points, others = plan.rows - plan.points;
    if (layer.few_out) {
        const int64_t vectors = layer.in_row / LANES;
        dots(h, layer.in_row, layer.forward, layer.in_row, values, layer.out, vectors, layer.bias, z, layer.out_row);
        dots(h + values * layer.in_row, layer.in_row, layer.forward, layer.in_row, others, layer.out, vectors, nullptr,
             z + values * layer.out_row, layer.out_row);
        return;
    }
    Product p{layer.in, h, layer.in_row, 1, layer.forward, PANEL, z, layer.out_row, Start::row, layer.bias_row};
    multiply(p, values, layer.out_row / LANES, layer.in * PANEL);
    if (others == 0) return;
    p.a += values * layer.in_row;
    p.c += values * layer.out_row;
    p.start = Start::zero;
    p.row = nullptr;
    multiply(p, others, layer.out_row / LANES, layer.in * PANEL);
}

void forward(const Plan& plan, const Bench& bench) {
    for (int64_t l = 0; l < plan.depth(); ++l) {
        const Layer& layer = plan.layer[l];
        float* z = bench.h[l + 1];
        linear(plan, layer, bench.h[l], z);
        if (l + 1 == plan.depth()) return;
        const float* omega = plan.net.omegas == nullptr ? nullptr : plan.net.omegas + l;
        const float bend = omega == nullptr ? 0.0f : *omega * *omega;
        const bool streams = plan.rows > plan.points;
        float* slope = plan.gradients ? bench.slope[l] : streams ? bench.g : nullptr;
        activate(z, slope, plan.points * layer.out_row, omega);
        if (streams) activate_streams(plan, z, slope, bench.tangent[l], layer.out_row, bend);
    }
}

// From the gradient of the output in bench.g to all parameters; returns where the gradient of the input is.
float* backward(const Plan& plan, const Bench& bench) {
    float *g = bench.g, *next = bench.g_next;
    for (int64_t l = plan.depth() - 1; l >= 0; --l) {
        const Layer& layer = plan.layer[l];
        for (int64_t p = 0; p < plan.points; ++p)
            for (int64_t j = 0; j < layer.out_row; j += LANES)
                store(bench.bias[l] + j, load(bench.bias[l] + j) + load(g + p * layer.out_row + j));
        Product p{plan.rows, g, 1, layer.out_row, bench.h[l], layer.in_row, bench.weight[l], layer.in_row, Start::c, nullptr};
        if (layer.upright) {
            multiply(p, layer.out, layer.in_row / LANES, PANEL);
        } else {
            p = {plan.rows, bench.h[l], 1, layer.in_row, g, layer.out_row, bench.weight[l], layer.out_row, Start::c, nullptr};
            multiply(p, layer.in, layer.out_row / LANES, PANEL);
        }
        if (l == 0 && !plan.input_gradient) return nullptr;
        if (layer.few_in) {
            dots(g, layer.out_row, layer.backward, layer.out_row, plan.rows, layer.in, layer.out_row / LANES, nullptr,
                 next, layer.in_row);
        } else {
            p = {layer.out, g, layer.out_row, 1, layer.backward, PANEL, next, layer.in_row, Start::zero, nullptr};
            multiply(p, plan.rows, layer.in_row / LANES, layer.out * PANEL);
        }
        std::swap(g, next);
        if (l > 0) {
            const float omega = plan.net.omegas == nullptr ? 0.0f : plan.net.omegas[l - 1];
            deactivate(plan, g, bench.h[l], bench.slope[l - 1], bench.tangent[l - 1], layer.in_row, omega * omega);
        }
    }
    return g;
}

// Rows [begin, begin + count) of every stream of a (streams, n, columns) array <-> a tile's padded rows.
void gather(const Plan& plan, const float* source, int64_t columns, int64_t begin, int64_t count, float* tile, int64_t row) {
    for (int64_t s = 0; s * plan.points < plan.rows; ++s)
        for (int64_t p = 0; p < plan.points; ++p) {
            float* to = tile + (s * plan.points + p) * row;
            const float* from = source + (s * plan.n + begin + p) * columns;
            for (int64_t j = 0; j < row; ++j) to[j] = p < count && j < columns ? from[j] : 0.0f;
        }
}
void scatter(const Plan& plan, const float* tile, int64_t row, int64_t columns, int64_t begin, int64_t count, float* target) {
    for (int64_t s = 0; s * plan.points < plan.rows; ++s)
        for (int64_t p = 0; p < count; ++p)
            std::memcpy(target + (s * plan.n + begin + p) * columns, tile + (s * plan.points + p) * row, columns * 4);
}

// The loss of a tile, and its gradient to the output in `g`.
double tile_loss(int64_t kind, const float* y, const float* target, int64_t columns, int64_t row, int64_t count,
                 int64_t points, float scale, float* g) {
    double total = 0;
    std::memset(g, 0, points * row * sizeof(float));
    for (int64_t p = 0; p < count; ++p)
        for (int64_t j = 0; j < columns; ++j) {
            const float e = y[p * row + j] - target[p * columns + j];
            total += kind == 2 ? double(e) * e : std::fabs(e);
            g[p * row + j] = scale * (kind == 2 ? 2 * e : e > 0 ? 1.0f : e < 0 ? -1.0f : e);
        }
    return total;
}

}  // namespace

// Everything one call may be asked for; what is null is not wanted. Mirrors _Call in kernels/mlp_cpu.py.
struct Call {
    int64_t n;
    const float* x;         // (streams, n, inputs)
    float* y;               // (streams, n, outputs)
    const float* y_grad;    // the same shape: asks for gradients, as does `target`
    const float* target;    // (n, outputs)
    int64_t loss_kind;      // 2 squares, 1 absolute values
    double* loss;           // mean over n * outputs
    float* x_grad;
    float* const* weight_grads;
    float* const* bias_grads;
    int64_t threads;
};

// Returns 0, or 1 if there is not enough memory.
SCANFIELD_API int scanfield_mlp(const Network* network, const Streams* streams, const Call* call) {
    const Network& net = *network;
    const bool gradients = call->y_grad != nullptr || call->target != nullptr;
    const int64_t all = 1 + streams->first + streams->second;
    int64_t points = 96 / all / ROW_STEP * ROW_STEP;
    if (points < ROW_STEP) points = ROW_STEP;
    const int64_t tiles = (call->n + points - 1) / points;
    int64_t threads = call->threads < tiles ? call->threads : tiles;
    if (threads < 1) threads = 1;

    Layer* layers = new (std::nothrow) Layer[net.layers];
    float** pointers = new (std::nothrow) float*[threads * (5 * net.layers + 1)]();
    Bench* benches = new (std::nothrow) Bench[threads];
    double* losses = new (std::nothrow) double[threads]();
    Plan plan{net, *streams, call->n, points, all * points, all, gradients, call->x_grad != nullptr, layers};
    int failed = layers == nullptr || pointers == nullptr || benches == nullptr || losses == nullptr;
    for (int pass = 0; pass < 2 && !failed; ++pass) {
        Pieces pieces{pass == 0 ? nullptr : arena.start};
        for (int64_t l = 0; l < net.layers; ++l) {
            const int64_t in = net.widths[l], out = net.widths[l + 1];
            layers[l] = {in, out, padded(in), padded(out), net.weights[l], net.biases[l], nullptr, nullptr, nullptr, 0, 0, 0};
            pack_layer(layers[l], pieces, gradients && (l > 0 || plan.input_gradient), l == 0,
                       l + 1 == net.layers);
        }
        for (int64_t t = 0; t < threads; ++t) {
            benches[t] = lay_out(plan, pieces, pointers + t * (5 * net.layers + 1));
            if (!gradients && all > 1) benches[t].g = pieces.take(points * largest_row(plan));  // slopes
        }
        if (pass == 0) failed = !arena.reset(pieces.used);
    }
    if (!failed) {
        const int64_t in = net.widths[0], out = net.widths[net.layers];
        const int64_t in_row = padded(in), out_row = padded(out);
        const float scale = 1.0f / (float(call->n) * float(out));
        on_threads(static_cast<int>(threads), [&](int t) {
            const Bench& bench = benches[t];
            if (gradients)
                for (int64_t l = 0; l < net.layers; ++l) {
                    const Layer& layer = layers[l];
                    std::memset(bench.bias[l], 0, layer.out_row * 4);
                    std::memset(bench.weight[l], 0,
                                (layer.upright ? layer.out * layer.in_row : layer.in * layer.out_row) * 4);
                }
            // A fixed share for every thread: sums, and so results, depend on the number of threads alone.
            for (int64_t tile = tiles * t / threads; tile < tiles * (t + 1) / threads; ++tile) {
                const int64_t begin = tile * points, count = call->n - begin < points ? call->n - begin : points;
                gather(plan, call->x, in, begin, count, bench.h[0], in_row);
                forward(plan, bench);
                if (call->y != nullptr) scatter(plan, bench.h[net.layers], out_row, out, begin, count, call->y);
                if (!gradients) continue;
                if (call->target != nullptr)
                    losses[t] += tile_loss(call->loss_kind, bench.h[net.layers], call->target + begin * out, out, out_row,
                                           count, points, scale, bench.g);
                else
                    gather(plan, call->y_grad, out, begin, count, bench.g, out_row);
                const float* x_grad = backward(plan, bench);
                if (plan.input_gradient) scatter(plan, x_grad, in_row, in, begin, count, call->x_grad);
            }
        });
        for (int64_t l = 0; gradients && l < net.layers; ++l) {
            const Layer& layer = layers[l];
            for (int64_t j = 0; j < layer.out; ++j) {
                float total = 0;
                for (int64_t t = 0; t < threads; ++t) total += benches[t].bias[l][j];
                call->bias_grads[l][j] = total;
                for (int64_t k = 0; k < layer.in; ++k) {
                    float weight = 0;
                    const int64_t at = layer.upright ? j * layer.in_row + k : k * layer.out_row + j;
                    for (int64_t t = 0; t < threads; ++t) weight += benches[t].weight[l][at];
                    call->weight_grads[l][j * layer.in + k] = weight;
                }
            }
        }
        if (call->loss != nullptr) {
            *call->loss = 0;
            for (int64_t t = 0; t < threads; ++t) *call->loss += losses[t];
            *call->loss /= double(call->n) * double(out);
        }
    }
    delete[] layers;
    delete[] pointers;
    delete[] benches;
    delete[] losses;
    return failed;
}

}  // namespace scanfield
