// BEV pooling on the CPU. A plain C interface without torch headers: one build serves every version of torch.

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstring>
#include <utility>

#include "parallel.h"
#include "pool.h"

namespace bev {
namespace {

// Vectors of N numbers. Compiled with -ffp-contract=fast, so that a * b + c is one fused multiply-add.
template <class T, int N>
struct vector_of {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using vector = typename vector_of<T, N>::type;

#ifdef __AVX512F__
template <class T>
constexpr int kLanes = 64 / sizeof(T);
#else
template <class T>
constexpr int kLanes = 8;
#endif

template <class T>
using Vec = vector<T, kLanes<T>>;

template <class T>
SHARED Vec<T> fused(Vec<T> a, Vec<T> b, Vec<T> sum) {
    return a * b + sum;
}

// The first n numbers, then zeros.
template <class T>
SHARED Vec<T> load(const T* from, int n) {
    Vec<T> result{};
    if (n >= kLanes<T>)
        std::memcpy(&result, from, sizeof result);
    else
        for (int i = 0; i < kLanes<T>; ++i) result[i] = i < n ? from[i] : T(0);
    return result;
}

template <class T>
SHARED void store(T* to, Vec<T> value, int n) {
    if (n >= kLanes<T>)
        std::memcpy(to, &value, sizeof value);
    else
        for (int i = 0; i < kLanes<T>; ++i)
            if (i < n) to[i] = value[i];
}

// value + value with each lane i swapped for lane i ^ Step.
template <int Step, class V, size_t... I>
SHARED V add_neighbours(V value, std::index_sequence<I...>) {
#if __has_builtin(__builtin_shufflevector)
    return value + __builtin_shufflevector(value, value, (I ^ Step)...);
#else
    return value + V{value[I ^ Step]...};
#endif
}

template <class T, int Step = 1>
SHARED T fold_lanes(Vec<T> value) {
    if constexpr (Step == kLanes<T>)
        return value[0];
    else
        return fold_lanes<T, 2 * Step>(add_neighbours<Step>(value, std::make_index_sequence<kLanes<T>>()));
}

// A row of `channels` numbers (at most 128) as K vectors; Full if the last one is full too.
template <class T, int K, bool Full>
struct Row {
    int channels;
    SHARED int lanes(int k) const { return Full || k + 1 < K ? kLanes<T> : channels - k * kLanes<T>; }
    SHARED Vec<T> load(const T* from, int k) const { return bev::load(from + k * kLanes<T>, lanes(k)); }
    SHARED void store(T* to, const Vec<T> (&values)[K]) const {
        for (int k = 0; k < K; ++k) bev::store(to + k * kLanes<T>, values[k], lanes(k));
    }
};

// Calls body with the Row that fits. Bodies capture by value: after inlining that keeps their variables in registers.
template <class T, class Body, int... K>
void with_row(int channels, const Body& body, std::integer_sequence<int, K...>) {
    const int vectors = (channels + kLanes<T> - 1) / kLanes<T>;
    if (channels % kLanes<T>)
        ((vectors == K + 1 ? body(Row<T, K + 1, false>{channels}) : void()), ...);
    else
        ((vectors == K + 1 ? body(Row<T, K + 1, true>{channels}) : void()), ...);
}
template <class T, class Body>
void with_row(int channels, const Body& body) {
    with_row<T>(channels, body, std::make_integer_sequence<int, kBlockChannels / kLanes<T>>());
}

// Asks for large pages where memory is fresh: one page fault for 2 MB in place of 512. Only a hint.
void use_large_pages(void* begin, int64_t bytes) {
#ifdef __linux__
    constexpr uintptr_t kPage = 1 << 21;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kPage - 1) / kPage * kPage;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)begin, (void)bytes;
#endif
}

// How many threads so many multiply-adds are worth: each has 0.2 ms of work at least, as to start one costs its caller
// 20 to 40 us, and it begins 50 us later or more.
int worth(int threads, int64_t multiply_adds) {
    return static_cast<int>(std::min<int64_t>(threads, multiply_adds >> 22));
}

// out = sum of depth * context over the n points of a cell.
template <class T, int K, bool Full>
SHARED void pool_cell(Row<T, K, Full> row, const T* depth, const T* context, const int* point, const int* pixel, int n,
                      int64_t stride, T* out) {
    Vec<T> total[K] = {};
    const int parts = parts_of(n);
    for (int part = 0, i = 0; part < parts; ++part) {
        Vec<T> sum[K] = {};
        for (const int end = part_begin(n, parts, part + 1); i < end; ++i) {
            const Vec<T> weight = depth[point[i]] - Vec<T>{};
            const T* from = context + pixel[i] * stride;
            UNROLL
            for (int k = 0; k < K; ++k) sum[k] = fused<T>(weight, row.load(from, k), sum[k]);
        }
        for (int k = 0; k < K; ++k) total[k] = part ? total[k] + sum[k] : sum[k];
    }
    row.store(out, total);
}

template <class T>
void forward(const T* depth, const T* context, const int* start, const int* point, const int* pixel, int64_t samples,
             int64_t points, int64_t pixels, int64_t cells, int channels, T* out, int threads) {
    use_large_pages(out, samples * cells * channels * sizeof(T));
    threads = worth(threads, samples * start[cells] * channels);
    parallel_for(samples * cells, 128, threads, [&](int64_t first, int64_t last) {
        for (int block = 0; block < channels; block += kBlockChannels) {
            with_row<T>(std::min(channels - block, kBlockChannels), [=](auto row) {
                for (int64_t i = first; i < last; ++i) {
                    const int64_t sample = i / cells, cell = i % cells;
                    const int begin = start[cell];
                    pool_cell(row, depth + sample * points, context + sample * pixels * channels + block, point + begin,
                              pixel + begin, start[cell + 1] - begin, channels, out + i * channels + block);
                }
            });
        }
    });
}

// Gradients of the context row of one pixel, and of its depths. Depth gradients are set by the `first` block of
// channels, and later blocks add to them.
template <class T, int K, bool Full>
SHARED void pool_pixel(Row<T, K, Full> row, const T* grad, const T* depth, const T* context, const int* cell_of, int bins,
                       int64_t bin_stride, int64_t stride, bool first, T* grad_depth, T* grad_context) {
    Vec<T> own[K], total[K] = {};
    for (int k = 0; k < K; ++k) own[k] = row.load(context, k);
    const int parts = parts_of(bins);
    for (int part = 0, d = 0; part < parts; ++part) {
        Vec<T> sum[K] = {};
        for (const int end = part_begin(bins, parts, part + 1); d < end; ++d) {
            const int64_t at = d * bin_stride;
            const int cell = cell_of[at];
            if (cell < 0) {
                grad_depth[at] = 0;
                continue;
            }
            const Vec<T> weight = depth[at] - Vec<T>{};
            const T* from = grad + cell * stride;
            Vec<T> dots[kDotSums / kLanes<T>] = {};
            UNROLL
            for (int k = 0; k < K; ++k) {
                const Vec<T> g = row.load(from, k);
                Vec<T>& dot = dots[k % (kDotSums / kLanes<T>)];
                sum[k] = fused<T>(weight, g, sum[k]);
                dot = fused<T>(g, own[k], dot);
            }
            T sums[kDotSums / kLanes<T>];
            for (int i = 0; i < kDotSums / kLanes<T>; ++i) sums[i] = fold_lanes<T>(dots[i]);
            const T dot = fold(sums);
            grad_depth[at] = first ? dot : grad_depth[at] + dot;
        }
        for (int k = 0; k < K; ++k) total[k] = part ? total[k] + sum[k] : sum[k];
    }
    row.store(grad_context, total);
}

template <class T>
void backward(const T* grad, const T* depth, const T* context, const int* cell_of, int64_t samples, int64_t cameras,
              int bins, int64_t camera_pixels, int64_t cells, int channels, T* grad_depth, T* grad_context, int threads) {
    const int64_t pixels = cameras * camera_pixels;
    threads = worth(threads, samples * pixels * bins * channels);
    parallel_for(samples * pixels, 64, threads, [&](int64_t first, int64_t last) {
        for (int block = 0; block < channels; block += kBlockChannels) {
            with_row<T>(std::min(channels - block, kBlockChannels), [=](auto row) {
                for (int64_t i = first; i < last; ++i) {
                    const int64_t sample = i / pixels, pixel = i % pixels;
                    const int64_t ray = pixel / camera_pixels * bins * camera_pixels + pixel % camera_pixels;
                    const int64_t point = sample * pixels * bins + ray;
                    pool_pixel(row, grad + sample * cells * channels + block, depth + point,
                               context + i * channels + block, cell_of + ray, bins, camera_pixels, channels, block == 0,
                               grad_depth + point, grad_context + i * channels + block);
                }
            });
        }
    });
}

}  // namespace
}  // namespace bev

extern "C" {

#define POOL(name, T)                                                                                                  \
    void bev_pool_forward_##name(const T* depth, const T* context, const int* start, const int* point,                \
                                 const int* pixel, int64_t samples, int64_t points, int64_t pixels, int64_t cells,    \
                                 int channels, T* out, int threads) {                                                 \
        bev::forward(depth, context, start, point, pixel, samples, points, pixels, cells, channels, out, threads);    \
    }                                                                                                                  \
    void bev_pool_backward_##name(const T* grad, const T* depth, const T* context, const int* cell_of,                \
                                  int64_t samples, int64_t cameras, int bins, int64_t camera_pixels, int64_t cells,   \
                                  int channels, T* grad_depth, T* grad_context, int threads) {                        \
        bev::backward(grad, depth, context, cell_of, samples, cameras, bins, camera_pixels, cells, channels,          \
                      grad_depth, grad_context, threads);                                                             \
    }

POOL(float32, float)
POOL(float64, double)
}
