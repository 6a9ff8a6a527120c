// The teacher as a density and colour field in space, for distillation before any ray is traced.
//
// Gaussian i has the extinction sigma_i(x) = -ln(1 - o_i) / (sqrt(2 pi) s_i) exp(-m_i(x)^2 / 2),
// where m_i is the Mahalanobis distance and s_i the geometric mean of its scales: a ray through the
// centre then gathers the optical depth -ln(1 - o_i). Colours are mixed in proportion to sigma.
#include <cmath>
#include <cstdint>
#include <vector>

#include <loom/parallel.h>
#include <loom/simd.h>

namespace {

constexpr int kBasis = 16;

struct Grid {
  float low[3], per_unit[3];
  int size;
  std::vector<int64_t> start;  // first entry of each cell, one past the end last
  std::vector<int32_t> item;

  int axis_cell(float x, int axis) const {
    int c = static_cast<int>(std::floor((x - low[axis]) * per_unit[axis]));
    return c < 0 ? 0 : (c >= size ? size - 1 : c);
  }
  int64_t cell(const float* p) const {
    return (int64_t(axis_cell(p[0], 0)) * size + axis_cell(p[1], 1)) * size + axis_cell(p[2], 2);
  }
};

// Calls visit(cell) for every cell that the box mean +- reach touches.
template <class Visit>
void for_cells(const Grid& grid, const float* mean, const float* reach, Visit&& visit) {
  int first[3], last[3];
  for (int k = 0; k < 3; ++k) {
    first[k] = grid.axis_cell(mean[k] - reach[k], k);
    last[k] = grid.axis_cell(mean[k] + reach[k], k);
  }
  for (int x = first[0]; x <= last[0]; ++x)
    for (int y = first[1]; y <= last[1]; ++y)
      for (int z = first[2]; z <= last[2]; ++z)
        visit((int64_t(x) * grid.size + y) * grid.size + z);
}

Grid build_grid(int64_t n, const float* mean, const float* deviation, const float* low,
                const float* high, int size, float reach_deviations) {
  Grid grid;
  grid.size = size;
  for (int k = 0; k < 3; ++k) {
    grid.low[k] = low[k];
    grid.per_unit[k] = size / std::fmax(high[k] - low[k], 1e-6f);
  }
  grid.start.assign(int64_t(size) * size * size + 1, 0);
  auto reach_of = [&](int64_t i, float* reach) {
    for (int k = 0; k < 3; ++k) reach[k] = reach_deviations * deviation[3 * i + k];
  };
  float reach[3];
  for (int64_t i = 0; i < n; ++i) {
    reach_of(i, reach);
    for_cells(grid, mean + 3 * i, reach, [&](int64_t c) { ++grid.start[c + 1]; });
  }
  for (size_t c = 1; c < grid.start.size(); ++c) grid.start[c] += grid.start[c - 1];
  grid.item.resize(grid.start.back());
  std::vector<int64_t> next(grid.start.begin(), grid.start.end() - 1);
  for (int64_t i = 0; i < n; ++i) {
    reach_of(i, reach);
    for_cells(grid, mean + 3 * i, reach, [&](int64_t c) { grid.item[next[c]++] = int32_t(i); });
  }
  return grid;
}

}  // namespace

extern "C" {

// mean, deviation (square root of the covariance's diagonal): [n, 3]; inverse covariance [n, 6]
// as xx xy xz yy yz zz; peak extinction [n]; sh [n, 3, 16]; point [p, 3]; basis [p, 16] of each
// point's viewing direction; low, high: the box of the
// look-up grid; reach: standard deviations beyond which a gaussian is left out.
// Out: extinction [p]; colour [p, 3] before the clamp at zero, 0.5 where there is no density.
void field_query(int64_t n, const float* mean, const float* deviation, const float* inverse,
                 const float* peak, const float* sh, int64_t p, const float* point,
                 const float* basis, const float* low, const float* high, int grid_size,
                 float reach, int threads, float* extinction, float* colour) {
  using loom::vf;
  const Grid grid = build_grid(n, mean, deviation, low, high, grid_size, reach);
  loom::parallel_ranges(p, threads, [&](int64_t begin, int64_t end, int) {
    float mixed[3 * kBasis];
    for (int64_t q = begin; q < end; ++q) {
      const float* x = point + 3 * q;
      const int64_t cell = grid.cell(x);
      float total = 0.0f;
      for (float& value : mixed) value = 0.0f;
      for (int64_t e = grid.start[cell]; e < grid.start[cell + 1]; ++e) {
        const int64_t i = grid.item[e];
        const float* v = inverse + 6 * i;
        const float a = x[0] - mean[3 * i], b = x[1] - mean[3 * i + 1], c = x[2] - mean[3 * i + 2];
        const float m = v[0] * a * a + v[3] * b * b + v[5] * c * c +
                        2.0f * (v[1] * a * b + v[2] * a * c + v[4] * b * c);
        if (!(m < reach * reach)) continue;
        const float sigma = peak[i] * std::exp(-0.5f * m);
        total += sigma;
        const float* s = sh + 3 * kBasis * i;
        for (int k = 0; k < 3 * kBasis; k += vf::width)
          loom::fma(vf(sigma), vf::load(s + k), vf::load(mixed + k)).store(mixed + k);
      }
      extinction[q] = total;
      const float scale = total > 0.0f ? 1.0f / total : 0.0f;
      for (int ch = 0; ch < 3; ++ch) {
        float value = 0.0f;
        for (int k = 0; k < kBasis; ++k) value += mixed[kBasis * ch + k] * basis[kBasis * q + k];
        colour[3 * q + ch] = value * scale + 0.5f;
      }
    }
  });
}

}  // extern "C"
