// The z-buffer on the CPU, in the words that the CUDA build compiles: it proves them against dense_depth.projection.

#include <algorithm>

#include "zbuffer.h"

extern "C" void zbuffer_splat(const float* xyz, int64_t stride, const int64_t* start, const int64_t* stop,
                              const float* image_T_segment, const uint8_t* source, int segments, int height, int width,
                              float near_m, float far_m, uint32_t* keys) {
    for (int s = 0; s < segments; ++s)
        for (int64_t i = start[s], last = std::min(stop[s], stride); i < last; ++i) {
            const auto drawn = zbuffer::draw(image_T_segment + 12 * s, xyz[i], xyz[stride + i], xyz[2 * stride + i],
                                             source[s], height, width, near_m, far_m);
            if (drawn.pixel >= 0 && drawn.key < keys[drawn.pixel]) keys[drawn.pixel] = drawn.key;
        }
}
