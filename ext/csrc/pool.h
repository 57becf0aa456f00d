// The order of every sum in BEV pooling, shared by the CPU and the CUDA build so that both give the same bits.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SHARED __host__ __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#else
#define SHARED inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#endif

namespace bev {

// A long interval is summed in parts, and the parts are added in order. There are up to 16 parts, a power of two, of
// about 32 terms each. Within a part, every term is one fused multiply-add.
constexpr int kPartLength = 32;
constexpr int kMaxParts = 16;

SHARED int parts_of(int n) {
    int parts = 1;
    while (parts < kMaxParts && n > parts * kPartLength) parts *= 2;
    return parts;
}

SHARED int part_begin(int n, int parts, int part) { return static_cast<int>(static_cast<int64_t>(n) * part / parts); }

// A dot product over channels runs in blocks of 128 channels that are added in order. A block has 32 sums: channel c
// goes to sum c % 32. Then neighbours are added, five times: the order that suits a GPU, whose threads hold 4 or 8
// neighbouring channels.
constexpr int kBlockChannels = 128;
constexpr int kDotSums = 32;

// Adds neighbours until one is left; N is a power of two.
template <int N, class T>
SHARED T fold(T (&sums)[N]) {
    UNROLL
    for (int step = 1; step < N; step *= 2)
        UNROLL
        for (int i = 0; i < N; i += 2 * step) sums[i] += sums[i + step];
    return sums[0];
}

}  // namespace bev
