// The splat of lift-splat: every pixel spreads its features over the cells that its depth bins fall
// into, each weighted by the bin's probability. The outer product of depth and features is never
// stored. The torch twin is models/splat_torch.py; sums run in the same order without contraction,
// so that they agree to the bit.
#include <cstdint>

#include "loom/parallel.h"

namespace {

// o += a x, and the dot product of x and y, over `n` channels.
inline void add_scaled(float a, const float* __restrict x, float* __restrict o, int64_t n) {
  for (int64_t c = 0; c < n; ++c) o[c] += a * x[c];
}

inline float dot(const float* __restrict x, const float* __restrict y, int64_t n) {
  constexpr int64_t kLanes = 16;  // independent sums, so that the compiler may use vectors
  float lanes[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += x[c + l] * y[c + l];
  float sum = 0;
  for (; c < n; ++c) sum += x[c] * y[c];
  for (float lane : lanes) sum += lane;
  return sum;
}

}  // namespace

extern "C" {

// out [images, cells, c], zero on entry; depth [images, pixels, bins]; features [images, pixels, c];
// cell [pixels, bins], negative outside of the grid.
void splat_forward(const float* depth, const float* features, const int32_t* cell, int64_t images,
                   int64_t pixels, int64_t bins, int64_t channels, int64_t cells, float* out,
                   int threads) {
  loom::parallel_ranges(images, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      float* view = out + i * cells * channels;
      for (int64_t p = 0; p < pixels; ++p) {
        const float* x = features + (i * pixels + p) * channels;
        const float* weight = depth + (i * pixels + p) * bins;
        for (int64_t d = 0; d < bins; ++d) {
          const int32_t where = cell[p * bins + d];
          if (where >= 0) add_scaled(weight[d], x, view + where * channels, channels);
        }
      }
    }
  });
}

// d_depth and d_features are zero on entry.
void splat_backward(const float* d_out, const float* depth, const float* features,
                    const int32_t* cell, int64_t images, int64_t pixels, int64_t bins,
                    int64_t channels, int64_t cells, float* d_depth, float* d_features,
                    int threads) {
  loom::parallel_ranges(images, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* d_view = d_out + i * cells * channels;
      for (int64_t p = 0; p < pixels; ++p) {
        const int64_t pixel = i * pixels + p;
        const float* x = features + pixel * channels;
        float* d_x = d_features + pixel * channels;
        for (int64_t d = 0; d < bins; ++d) {
          const int32_t where = cell[p * bins + d];
          if (where < 0) continue;
          const float* upstream = d_view + where * channels;
          d_depth[pixel * bins + d] = dot(upstream, x, channels);
          add_scaled(depth[pixel * bins + d], upstream, d_x, channels);
        }
      }
    }
  });
}

}  // extern "C"
