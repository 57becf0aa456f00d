// Runs CUDA kernels on the CPU, a thread for a thread, so that tests see their arithmetic where there is no GPU.
// Only what ext/csrc uses. Launches are rewritten to emulated::launch before compilation.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
struct cudaFuncAttributes {};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

struct Warp {
    explicit Warp(int threads) : barrier(threads) {}
    std::barrier<> barrier;
    double values[32];
};

struct Block {
    Block(int threads, size_t bytes) : barrier(threads), flags(threads), shared(bytes + 16) {
        for (int first = 0; first < threads; first += 32) warps.push_back(std::make_unique<Warp>(std::min(32, threads - first)));
    }
    std::barrier<> barrier;
    std::vector<char> flags;
    std::vector<unsigned char> shared;
    std::vector<std::unique_ptr<Warp>> warps;
};

inline thread_local Block* block;
inline thread_local int thread;

inline unsigned char* shared() {
    const auto address = reinterpret_cast<uintptr_t>(block->shared.data());
    return block->shared.data() + (16 - address % 16) % 16;
}

// What every thread of a warp holds, seen by this one.
template <class T, class Read>
auto exchange(T value, const Read& read) {
    Warp& warp = *block->warps[thread / 32];
    std::memcpy(&warp.values[thread % 32], &value, sizeof value);
    warp.barrier.arrive_and_wait();
    const auto result = read(warp.values);
    warp.barrier.arrive_and_wait();
    return result;
}

template <class Kernel, class... Args>
void launch(dim3 grid, dim3 size, size_t bytes, const Kernel& kernel, Args... args) {
    const int threads = static_cast<int>(size.x * size.y * size.z);
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                Block own(threads, bytes);
                std::vector<std::thread> all;
                for (int t = 0; t < threads; ++t)
                    all.emplace_back([&, t] {
                        thread = t;
                        block = &own;
                        threadIdx = dim3(t % size.x, t / size.x % size.y, t / (size.x * size.y));
                        blockIdx = dim3(x, y, z);
                        blockDim = size;
                        gridDim = grid;
                        kernel(args...);
                        block->warps[t / 32]->barrier.arrive_and_drop();
                        block->barrier.arrive_and_drop();
                    });
                for (auto& one : all) one.join();
            }
}

}  // namespace emulated

inline void __syncthreads() { emulated::block->barrier.arrive_and_wait(); }
inline int __syncthreads_or(int flag) {
    emulated::block->flags[emulated::thread] = flag != 0;
    __syncthreads();
    const auto& flags = emulated::block->flags;
    const int any = std::any_of(flags.begin(), flags.end(), [](char f) { return f; });
    __syncthreads();
    return any;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
    return emulated::exchange(value, [=](const double* values) {
        T other;
        std::memcpy(&other, &values[(emulated::thread % 32) ^ step], sizeof other);
        return other;
    });
}
inline int __any_sync(unsigned, int flag) {
    return emulated::exchange(double(flag != 0), [](const double* values) {
        return std::any_of(values, values + 32, [](double v) { return v != 0; });
    });
}

template <class T>
T __ldg(const T* from) {
    return *from;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline uint32_t atomicMin(uint32_t* at, uint32_t value) {
    std::atomic_ref<uint32_t> reference(*at);
    uint32_t before = reference.load();
    while (value < before && !reference.compare_exchange_weak(before, value)) {
    }
    return before;
}
