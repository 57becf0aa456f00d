// The z-buffer on the GPU: a minimum of integers, so the order of the points does not matter.

#include "launch.h"
#include "zbuffer.h"

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    splat(const float* __restrict__ xyz, int64_t stride, const int64_t* __restrict__ start,
          const int64_t* __restrict__ stop, const float* __restrict__ image_T_segment,
          const uint8_t* __restrict__ source, int height, int width, float near_m, float far_m, uint32_t* keys) {
    const int s = blockIdx.y;
    float transform[12];
#pragma unroll
    for (int i = 0; i < 12; ++i) transform[i] = image_T_segment[12 * s + i];
    const uint32_t code = source[s];
    const int64_t last = stop[s] < stride ? stop[s] : stride;
    for (int64_t i = start[s] + blockIdx.x * kThreads + threadIdx.x; i < last; i += int64_t(gridDim.x) * kThreads) {
        const auto drawn = zbuffer::draw(transform, xyz[i], xyz[stride + i], xyz[2 * stride + i], code, height, width,
                                         near_m, far_m);
        // Keys only ever fall, so a stale read can cost an atomic but never lose a point.
        if (drawn.pixel >= 0 && drawn.key < keys[drawn.pixel]) atomicMin(keys + drawn.pixel, drawn.key);
    }
}

}  // namespace

extern "C" int zbuffer_splat_cuda(const float* xyz, int64_t stride, const int64_t* start, const int64_t* stop,
                                  const float* image_T_segment, const uint8_t* source, int segments, int height,
                                  int width, float near_m, float far_m, uint32_t* keys, int device,
                                  cudaStream_t stream) {
    if (segments == 0 || stride == 0) return cudaSuccess;
    const DeviceGuard guard(device);
    const int64_t blocks = (stride + kThreads - 1) / kThreads;  // for a segment of all points: lengths are on the GPU
    for (int first = 0; first < segments; first += kMaxGridY) {
        const int count = segments - first < kMaxGridY ? segments - first : kMaxGridY;
        const dim3 grid(static_cast<unsigned>(blocks < 1024 ? blocks : 1024), count);
        splat<<<grid, kThreads, 0, stream>>>(xyz, stride, start + first, stop + first, image_T_segment + 12 * first,
                                             source + first, height, width, near_m, far_m, keys);
        if (const auto error = cudaGetLastError()) return error;
    }
    return cudaSuccess;
}
