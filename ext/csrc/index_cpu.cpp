// Building the index of BEV pooling on the CPU: points to cells, and a counting sort of points by cell.

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "pool.h"

extern "C" {

// cell_of[i] = sample * ny * nx + y * nx + x, or -1 outside the grid. `truncate` rounds coordinates towards zero, else down.
void bev_cells(const float* xyz, int64_t points, int64_t points_per_sample, const float* low, const float* step,
               const int* size, int truncate, int* cell_of, int threads) {
    bev::parallel_for(points, 1 << 14, threads, [=](int64_t first, int64_t last) {
        const float nx = size[0], ny = size[1], nz = size[2];
        for (int64_t i = first; i < last; ++i) {
            float x = (xyz[3 * i] - low[0]) / step[0];
            float y = (xyz[3 * i + 1] - low[1]) / step[1];
            float z = (xyz[3 * i + 2] - low[2]) / step[2];
            x = truncate ? std::trunc(x) : std::floor(x);
            y = truncate ? std::trunc(y) : std::floor(y);
            z = truncate ? std::trunc(z) : std::floor(z);
            const bool inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny) & (z >= 0) & (z < nz);
            const int cell = static_cast<int>(inside ? y : 0.0f) * size[0] + static_cast<int>(inside ? x : 0.0f);
            cell_of[i] = inside ? static_cast<int>(i / points_per_sample) * size[0] * size[1] + cell : -1;
        }
    });
}

// Where the interval of each cell begins, and the end of the last one: cells + 1 entries. Returns the number of slots that
// bev_sort makes, or -1 if there are fewer cells than cell_of says.
int64_t bev_starts(const int* cell_of, int64_t points, int64_t cells, int* start) {
    std::fill(start, start + cells + 1, 0);
    for (int64_t i = 0; i < points; ++i) {
        if (cell_of[i] >= cells) return -1;
        if (cell_of[i] >= 0) ++start[cell_of[i] + 1];
    }
    int64_t slots = 0;
    for (int64_t cell = 0; cell < cells; ++cell) {
        slots += bev::parts_of(start[cell + 1]);
        start[cell + 1] += start[cell];
    }
    return slots;
}

// Sorts points by cell, stable, and cells by the parts of their sums. point and pixel have start[cells] entries.
void bev_sort(const int* cell_of, int64_t cameras, int bins, int64_t camera_pixels, int64_t cells, const int* start,
              int* point, int* pixel, int* slots) {
    std::vector<int> next(start, start + cells);
    for (int64_t plane = 0, i = 0; plane < cameras * bins; ++plane) {
        const int64_t first = plane / bins * camera_pixels;
        for (int64_t in_camera = 0; in_camera < camera_pixels; ++in_camera, ++i) {
            if (cell_of[i] < 0) continue;
            const int at = next[cell_of[i]]++;
            point[at] = static_cast<int>(i);
            pixel[at] = static_cast<int>(first + in_camera);
        }
    }
    for (int parts = bev::kMaxParts; parts > 0; parts /= 2)
        for (int64_t cell = 0; cell < cells; ++cell)
            if (bev::parts_of(start[cell + 1] - start[cell]) == parts)
                slots = std::fill_n(slots, parts, static_cast<int>(cell));
}
}
