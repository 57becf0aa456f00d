// One point of the z-buffer, bit for bit as dense_depth.projection draws it: float32, no fused multiply-add.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SHARED __host__ __device__ __forceinline__
#else
#define SHARED inline __attribute__((always_inline))
#endif

namespace zbuffer {

#ifdef __CUDA_ARCH__
SHARED float mul(float a, float b) { return __fmul_rn(a, b); }
SHARED float add(float a, float b) { return __fadd_rn(a, b); }
SHARED float inverse_of(float a) { return __fdiv_rn(1.0f, a); }
#else  // compiled with -ffp-contract=off
SHARED float mul(float a, float b) { return a * b; }
SHARED float add(float a, float b) { return a + b; }
SHARED float inverse_of(float a) { return 1.0f / a; }
#endif

SHARED float row(const float* m, float x, float y, float z) {
    return add(add(add(mul(m[0], x), mul(m[1], y)), mul(m[2], z)), m[3]);
}

struct Drawn {
    int64_t pixel;  // -1: not in the image
    uint32_t key;   // depth in 1/256 m << 8 | source
};

// image_T_segment: 3x4, row by row, intrinsics included.
SHARED Drawn draw(const float* image_T_segment, float x, float y, float z, uint32_t source, int height, int width,
                  float near_m, float far_m) {
    float depth = row(image_T_segment + 8, x, y, z);
    const bool in_front = depth >= near_m && depth < far_m;
    depth = in_front ? depth : 1.0f;
    const float inverse = inverse_of(depth);
    const float u = add(mul(row(image_T_segment, x, y, z), inverse), 0.5f);
    const float v = add(mul(row(image_T_segment + 4, x, y, z), inverse), 0.5f);
    if (!(in_front && u >= 0.0f && u < static_cast<float>(width) && v >= 0.0f && v < static_cast<float>(height)))
        return {-1, 0};
    const uint32_t steps = static_cast<uint32_t>(static_cast<int>(add(mul(depth, 256.0f), 0.5f)));
    return {static_cast<int64_t>(static_cast<int>(v)) * width + static_cast<int>(u), steps << 8 | source};
}

}  // namespace zbuffer
