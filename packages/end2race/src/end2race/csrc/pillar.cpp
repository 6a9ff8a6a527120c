// Dynamic pillars: points to cells with their nine features, and the maximum over each pillar with
// the winning point kept for the backward pass. The torch twin is models/pillars_torch.py; cells and
// means are float64 in the order of the points in both, so that they agree to the bit.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

namespace {

struct Grid {
  double x_min, y_min, z_min, z_max, cell;
  int64_t rows, columns;
};

constexpr int kFeatures = 9;

// Returns the cell of a point, or -1 outside of the box; NaN compares as outside.
inline int64_t cell_of(const Grid& g, const float* point, int64_t frame, int64_t frames) {
  const double column = std::floor((double(point[0]) - g.x_min) / g.cell);
  const double row = std::floor((double(point[1]) - g.y_min) / g.cell);
  const double z = point[2];
  const bool inside = column >= 0 && column < double(g.columns) && row >= 0 &&
                      row < double(g.rows) && z >= g.z_min && z < g.z_max &&
                      std::isfinite(point[3]) && frame >= 0 && frame < frames;
  if (!inside) return -1;
  return (frame * g.rows + int64_t(row)) * g.columns + int64_t(column);
}

}  // namespace

extern "C" {

// Writes the pillars' cells and the kept points' pillars and features.
//   slots   [frames * cells] scratch, zero on entry
//   kept    [n] scratch
// Returns the number of kept points; *pillars gets the number of pillars.
int64_t pillar_assign(const Grid* grid, const float* points, const int64_t* frame, int64_t n,
                      int64_t frames, int32_t* slots, int64_t* kept, int64_t* pillar,
                      int64_t* cell, float* features, int64_t* pillars) {
  const Grid& g = *grid;
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t c = cell_of(g, points + 4 * i, frame[i], frames);
    if (c < 0) continue;
    slots[c] = 1;
    kept[count] = i;
    pillar[count++] = c;
  }
  int64_t found = 0;
  const int64_t all = frames * g.rows * g.columns;
  int64_t c = 0;
  for (; c + 4 <= all; c += 4) {  // most cells are empty: look at four of them at once
    int64_t pair[2];
    std::memcpy(pair, slots + c, sizeof pair);
    if ((pair[0] | pair[1]) == 0) continue;
    for (int64_t k = c; k < c + 4; ++k)
      if (slots[k]) cell[found] = k, slots[k] = int32_t(found++);
  }
  for (; c < all; ++c)
    if (slots[c]) cell[found] = c, slots[c] = int32_t(found++);
  *pillars = found;

  struct Sum { double x, y, z, count; };
  std::unique_ptr<Sum[]> sums(new Sum[found]());
  for (int64_t k = 0; k < count; ++k) {
    const float* p = points + 4 * kept[k];
    Sum& s = sums[slots[pillar[k]]];
    s.x += p[0], s.y += p[1], s.z += p[2], s.count += 1;
  }
  struct Centre { float mean[3], x, y; };
  std::unique_ptr<Centre[]> centres(new Centre[found]);
  for (int64_t m = 0; m < found; ++m) {
    const Sum& s = sums[m];
    const int64_t column = cell[m] % g.columns, row = cell[m] / g.columns % g.rows;
    centres[m] = {{float(s.x / s.count), float(s.y / s.count), float(s.z / s.count)},
                  float((double(column) + 0.5) * g.cell + g.x_min),
                  float((double(row) + 0.5) * g.cell + g.y_min)};
  }
  for (int64_t k = 0; k < count; ++k) {
    const float* p = points + 4 * kept[k];
    const int32_t m = slots[pillar[k]];
    const Centre& centre = centres[m];
    float* f = features + kFeatures * k;
    pillar[k] = m;
    for (int a = 0; a < 4; ++a) f[a] = p[a];
    for (int a = 0; a < 3; ++a) f[4 + a] = p[a] - centre.mean[a];
    f[7] = p[0] - centre.x;
    f[8] = p[1] - centre.y;
  }
  return count;
}

// largest [pillars, c] and winner [pillars, c]: the value and the first point that has it.
void pillar_max_forward(const float* values, const int64_t* pillar, int64_t k, int64_t channels,
                        int64_t pillars, float* largest, int32_t* winner) {
  std::memset(winner, 0xff, sizeof(int32_t) * pillars * channels);
  for (int64_t i = 0; i < k; ++i) {
    const float* __restrict v = values + i * channels;
    float* __restrict best = largest + pillar[i] * channels;
    int32_t* __restrict who = winner + pillar[i] * channels;
    const int32_t point = int32_t(i);
    if (who[0] < 0) {
      for (int64_t c = 0; c < channels; ++c) best[c] = v[c], who[c] = point;
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const bool better = v[c] > best[c] || v[c] != v[c];  // NaN stays seen
      best[c] = better ? v[c] : best[c];
      who[c] = better ? point : who[c];
    }
  }
}

// d_values [k, c] is zero on entry; each winner gets its pillar's gradient.
void pillar_max_backward(const float* d_largest, const int32_t* winner, int64_t pillars,
                         int64_t channels, float* d_values) {
  for (int64_t m = 0; m < pillars; ++m)
    for (int64_t c = 0; c < channels; ++c)
      d_values[int64_t(winner[m * channels + c]) * channels + c] = d_largest[m * channels + c];
}

}  // extern "C"
