// BEV pooling on the GPU. A plain C interface without torch headers: plain nvcc compiles it for any torch.
//
// Every sum has one owner and a fixed order (pool.h), so there are no atomics, the output needs no clearing, and the
// bits equal those of the CPU build. Nothing here waits for the GPU or allocates, so calls can be captured in CUDA graphs.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "launch.h"
#include "pool.h"

namespace bev {
namespace {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
using Sum = decltype(widen(T()));

template <class T>
__device__ __forceinline__ T narrow(Sum<T> x) {
    return static_cast<T>(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

__device__ __forceinline__ float fused(float a, float b, float sum) { return __fmaf_rn(a, b, sum); }
__device__ __forceinline__ double fused(double a, double b, double sum) { return __fma_rn(a, b, sum); }

// V neighbouring channels, moved 16 bytes at a time; a single channel where rows are not aligned to that.
template <class T, int V>
struct alignas(V == 1 ? sizeof(T) : 16) Pack {
    T values[V];
};

template <class T, int V>
__device__ __forceinline__ Pack<T, V> load(const T* from) {
    Pack<T, V> pack;
    if constexpr (V == 1) {
        pack.values[0] = *from;
    } else {
        constexpr int kLoads = sizeof(pack) / 16;
        uint4 raw[kLoads];
#pragma unroll
        for (int i = 0; i < kLoads; ++i) raw[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
        memcpy(&pack, raw, sizeof(pack));
    }
    return pack;
}

template <class T, int V>
__device__ __forceinline__ void store(T* to, const Sum<T> (&sums)[V]) {
    Pack<T, V> pack;
#pragma unroll
    for (int e = 0; e < V; ++e) pack.values[e] = narrow<T>(sums[e]);
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Forward. A block has room for 16 parts of cells (threadIdx.y); threadIdx.x is a pack of channels. Cells are listed by
// falling number of parts, a power of two, once for each part: so the parts of a cell share a block, a cell's first slot
// is a multiple of its number of parts, and the longest cells start first. Points are taken four at a time, for four
// loads in flight.
template <class T, class D, class O, int V>
__global__ void __launch_bounds__(512)
    forward(const D* __restrict__ depth, const T* __restrict__ context, const int* __restrict__ start,
            const int* __restrict__ point, const int* __restrict__ pixel, const int* __restrict__ slots, int n_slots,
            int64_t points, int64_t pixels, int64_t cells, int channels, O* __restrict__ out) {
    using S = Sum<T>;
    constexpr int kAhead = 4;
    extern __shared__ __align__(16) unsigned char shared[];
    S* sums_of_parts = reinterpret_cast<S*>(shared);  // [slot in block][pack][V]

    const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    const int slot = blockIdx.x * kMaxParts + threadIdx.y;
    const bool live = slot < n_slots && channel < channels;
    depth += blockIdx.z * points;
    context += blockIdx.z * pixels * channels + channel;

    S sum[V] = {};
    int cell = 0, parts = 1;
    if (live) {
        cell = slots[slot];
        const int begin = start[cell], n = start[cell + 1] - begin;
        parts = parts_of(n);
        const int part = slot & (parts - 1);
        int i = begin + part_begin(n, parts, part);
        const int end = begin + part_begin(n, parts, part + 1);
        for (; i + kAhead <= end; i += kAhead) {
            S weight[kAhead];
            Pack<T, V> row[kAhead];
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                row[a] = load<T, V>(context + static_cast<int64_t>(pixel[i + a]) * channels);
                weight[a] = widen(depth[point[i + a]]);
            }
#pragma unroll
            for (int a = 0; a < kAhead; ++a)
#pragma unroll
                for (int e = 0; e < V; ++e) sum[e] = fused(weight[a], widen(row[a].values[e]), sum[e]);
        }
        for (; i < end; ++i) {
            const Pack<T, V> row = load<T, V>(context + static_cast<int64_t>(pixel[i]) * channels);
            const S weight = widen(depth[point[i]]);
#pragma unroll
            for (int e = 0; e < V; ++e) sum[e] = fused(weight, widen(row.values[e]), sum[e]);
        }
    }

    if (__syncthreads_or(parts > 1)) {
        S* own = sums_of_parts + (threadIdx.y * blockDim.x + threadIdx.x) * V;
#pragma unroll
        for (int e = 0; e < V; ++e) own[e] = sum[e];
        __syncthreads();
        if ((slot & (parts - 1)) == 0)
            for (int part = 1; part < parts; ++part)
#pragma unroll
                for (int e = 0; e < V; ++e) sum[e] += own[part * blockDim.x * V + e];
    }
    if (live && (slot & (parts - 1)) == 0)
        store<O, V>(out + (blockIdx.z * cells + cell) * channels + channel, sum);
}

// Backward. kDotSums / V threads (threadIdx.x) hold the channels of a pixel, K packs each: pack k starts at channel
// 32 k + V threadIdx.x. A warp holds neighbouring pixels (threadIdx.y), whose depths, cells and depth gradients are
// neighbours in memory; threadIdx.z is a part of the depth bins. Covers `width` channels; the first block of channels
// sets the depth gradients, and later ones add to them.
template <class T, class D, class O, int V, int K>
__global__ void __launch_bounds__(512)
    backward(const O* __restrict__ grad, const D* __restrict__ depth, const T* __restrict__ context,
             const int* __restrict__ cell_of, int64_t pixels, int bins, int64_t camera_pixels, int64_t cells,
             int channels, int width, bool first, D* __restrict__ grad_depth, T* __restrict__ grad_context) {
    using S = Sum<T>;
    constexpr int kThreads = kDotSums / V;
    constexpr unsigned kWarp = 0xFFFFFFFFu;
    extern __shared__ __align__(16) unsigned char shared[];
    S* sums_of_parts = reinterpret_cast<S*>(shared);  // [part][pixel in block][kDotSums]

    const int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    const bool live = pixel < pixels;
    const int64_t ray = live ? pixel / camera_pixels * bins * camera_pixels + pixel % camera_pixels : 0;
    const int64_t sample_pixel = blockIdx.y * pixels + (live ? pixel : 0);
    const int64_t first_point = blockIdx.y * pixels * bins + ray;
    const int own_channel = threadIdx.x * V;
    grad += blockIdx.y * cells * channels + own_channel;
    context += sample_pixel * channels + own_channel;
    grad_context += sample_pixel * channels + own_channel;

    S own[K][V] = {}, sum[K][V] = {};
#pragma unroll
    for (int k = 0; k < K; ++k)
        if (k * kDotSums + own_channel < width) {
            const Pack<T, V> pack = load<T, V>(context + k * kDotSums);
#pragma unroll
            for (int e = 0; e < V; ++e) own[k][e] = widen(pack.values[e]);
        }

    const int parts = blockDim.z;
    const int begin = part_begin(bins, parts, threadIdx.z), end = part_begin(bins, parts, threadIdx.z + 1);
    int next_cell = live && begin < end ? cell_of[ray + begin * camera_pixels] : -1;
    for (int d = begin; d < end; ++d) {  // as many turns for all threads of a warp
        const int64_t at = d * camera_pixels;
        const int cell = next_cell;
        next_cell = live && d + 1 < end ? cell_of[ray + at + camera_pixels] : -1;  // in flight while this bin is summed
        S dots[V] = {};
        if (cell >= 0) {
            const S weight = widen(depth[first_point + at]);
            const O* from = grad + static_cast<int64_t>(cell) * channels;
            Pack<O, V> pack[K];
#pragma unroll
            for (int k = 0; k < K; ++k)
                if (k * kDotSums + own_channel < width) pack[k] = load<O, V>(from + k * kDotSums);
#pragma unroll
            for (int k = 0; k < K; ++k)
                if (k * kDotSums + own_channel < width)
#pragma unroll
                    for (int e = 0; e < V; ++e) {
                        const S g = widen(pack[k].values[e]);
                        sum[k][e] = fused(weight, g, sum[k][e]);
                        dots[e] = fused(g, own[k][e], dots[e]);
                    }
        }
        S dot = 0;
        if (__any_sync(kWarp, cell >= 0)) {
            dot = fold(dots);
#pragma unroll
            for (int step = 1; step < kThreads; step *= 2) dot += __shfl_xor_sync(kWarp, dot, step);
        }
        if (live && threadIdx.x == 0) {
            D* to = grad_depth + first_point + at;
            *to = narrow<D>(first ? dot : widen(*to) + dot);
        }
    }

#pragma unroll
    for (int k = 0; k < K; ++k) {
        if (parts > 1) {
            S* own_sums = sums_of_parts + ((threadIdx.z * blockDim.y + threadIdx.y) * kThreads + threadIdx.x) * V;
#pragma unroll
            for (int e = 0; e < V; ++e) own_sums[e] = sum[k][e];
            __syncthreads();
            if (threadIdx.z == 0)
                for (int part = 1; part < parts; ++part)
#pragma unroll
                    for (int e = 0; e < V; ++e) sum[k][e] += own_sums[part * blockDim.y * kDotSums + e];
            __syncthreads();
        }
        if (live && threadIdx.z == 0 && k * kDotSums + own_channel < width)
            store<T, V>(grad_context + k * kDotSums, sum[k]);
    }
}

// T is the dtype of context and its gradient, D of depth and its gradient, O of the output and its gradient.
template <class T, class D, class O>
struct Launch {
    static constexpr int kWide = sizeof(T) == 8 ? 1 : 16 / sizeof(T);  // channels in 16 bytes

    static bool aligned(int channels, const void* a, const void* b, const void* c = nullptr) {
        const auto bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c);
        return bits % 16 == 0 && channels % kWide == 0;
    }

    template <int V>
    static void forward(const D* depth, const T* context, const int* start, const int* point, const int* pixel,
                        const int* slots, int n_slots, int64_t samples, int64_t points, int64_t pixels, int64_t cells,
                        int channels, O* out, cudaStream_t stream) {
        const int packs = (channels + V - 1) / V, groups = (packs + 31) / 32, width = (packs + groups - 1) / groups;
        const dim3 block(width, kMaxParts);
        const size_t shared = sizeof(Sum<T>) * V * width * kMaxParts;
        for (int64_t s = 0; s < samples; s += kMaxGridY) {
            const int64_t count = samples - s < kMaxGridY ? samples - s : kMaxGridY;
            const dim3 grid((n_slots + kMaxParts - 1) / kMaxParts, groups, static_cast<unsigned>(count));
            bev::forward<T, D, O, V><<<grid, block, shared, stream>>>(
                depth + s * points, context + s * pixels * channels, start, point, pixel, slots, n_slots, points, pixels,
                cells, channels, out + s * cells * channels);
        }
    }

    template <int V, int K>
    static void backward(const O* grad, const D* depth, const T* context, const int* cell_of, int64_t samples,
                         int64_t pixels, int bins, int64_t camera_pixels, int64_t cells, int channels, int width,
                         bool first, D* grad_depth, T* grad_context, cudaStream_t stream) {
        constexpr int kThreads = kDotSums / V;
        const int parts = parts_of(bins), per_part = 256 / parts > 32 ? 256 / parts : 32;
        const dim3 block(kThreads, per_part / kThreads, parts);
        const size_t shared = parts > 1 ? sizeof(Sum<T>) * kDotSums * block.y * parts : 0;
        for (int64_t s = 0; s < samples; s += kMaxGridY) {
            const int64_t count = samples - s < kMaxGridY ? samples - s : kMaxGridY;
            const dim3 grid(static_cast<unsigned>((pixels + block.y - 1) / block.y), static_cast<unsigned>(count));
            bev::backward<T, D, O, V, K><<<grid, block, shared, stream>>>(
                grad + s * cells * channels, depth + s * pixels * bins, context + s * pixels * channels, cell_of, pixels,
                bins, camera_pixels, cells, channels, width, first, grad_depth + s * pixels * bins,
                grad_context + s * pixels * channels);
        }
    }

    template <class... Args>
    static int run_forward(bool wide, Args... args) {
        if (wide)
            forward<kWide>(args...);
        else
            forward<1>(args...);
        return cudaGetLastError();
    }

    static int run_backward(const O* grad, const D* depth, const T* context, const int* cell_of, int64_t samples,
                            int64_t pixels, int bins, int64_t camera_pixels, int64_t cells, int channels, D* grad_depth,
                            T* grad_context, cudaStream_t stream) {
        const bool wide = aligned(channels, grad, context, grad_context);
        for (int c = 0; c < channels; c += kBlockChannels) {
            const int width = channels - c < kBlockChannels ? channels - c : kBlockChannels;
            const auto launch = [&](auto kernel) {
                kernel(grad + c, depth, context + c, cell_of, samples, pixels, bins, camera_pixels, cells, channels, width,
                       c == 0, grad_depth, grad_context + c, stream);
            };
            if (!wide)
                launch(backward<1, 4>);
            else if (width <= 2 * kDotSums)
                launch(backward<kWide, 2>);
            else if (width <= 3 * kDotSums)
                launch(backward<kWide, 3>);
            else
                launch(backward<kWide, 4>);
            if (const auto error = cudaGetLastError()) return error;
        }
        return cudaSuccess;
    }
};

}  // namespace
}  // namespace bev

extern "C" {

const char* bev_pool_cuda_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Whether the driver can run these kernels on a device.
int bev_pool_cuda_ready(int device) {
    const DeviceGuard guard(device);
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, bev::forward<float, float, float, 4>);
}

#define POOL(name, T, D, O)                                                                                            \
    int bev_pool_forward_cuda_##name(const D* depth, const T* context, const int* start, const int* point,             \
                                     const int* pixel, const int* slots, int n_slots, int64_t samples, int64_t points, \
                                     int64_t pixels, int64_t cells, int channels, O* out, int device,                  \
                                     cudaStream_t stream) {                                                            \
        const DeviceGuard guard(device);                                                                               \
        using Launch = bev::Launch<T, D, O>;                                                                           \
        return Launch::run_forward(Launch::aligned(channels, context, out), depth, context, start, point, pixel,       \
                                   slots, n_slots, samples, points, pixels, cells, channels, out, stream);             \
    }                                                                                                                  \
    int bev_pool_backward_cuda_##name(const O* grad, const D* depth, const T* context, const int* cell_of,             \
                                      int64_t samples, int64_t pixels, int bins, int64_t camera_pixels, int64_t cells, \
                                      int channels, D* grad_depth, T* grad_context, int device,                        \
                                      cudaStream_t stream) {                                                           \
        const DeviceGuard guard(device);                                                                               \
        return bev::Launch<T, D, O>::run_backward(grad, depth, context, cell_of, samples, pixels, bins, camera_pixels, \
                                                  cells, channels, grad_depth, grad_context, stream);                  \
    }
#define POOL_HALF(name, T)                          \
    POOL(name##_##name##_##name, T, T, T)           \
    POOL(name##_##name##_float32, T, T, float)      \
    POOL(name##_float32_##name, T, float, T)        \
    POOL(name##_float32_float32, T, float, float)

POOL(float32_float32_float32, float, float, float)
POOL(float64_float64_float64, double, double, double)
POOL_HALF(float16, __half)
POOL_HALF(bfloat16, __nv_bfloat16)
}
