// Compositing of the samples of a ray, front to back, and its gradient (equations: kilo_torch.py).
#pragma once
#include <vector>

#include "kilo.h"

namespace kilo {

// Activated samples of one ray: sigmoid of colours and density, and 1 - sigmoid of the latter,
// which is what passes. alpha = 1 - exp(-softplus(x)) = sigmoid(x).
class RayValues {
 public:
  void activate(const float* raw, int64_t samples) {
    const int64_t floats = 4 * samples;
    const int64_t padded = (floats + kWidth - 1) / kWidth * kWidth;
    if (static_cast<int64_t>(transmittance_.size()) <= samples) {
      value_.resize(padded);
      rest_.resize(padded);
      transmittance_.resize(samples + 1);
    }
    std::memcpy(value_.data(), raw, floats * sizeof(float));
    std::fill(value_.begin() + floats, value_.begin() + padded, 0.0f);
    for (int64_t i = 0; i < padded; i += kWidth) {
      const vf x = min(max(vf::load(&value_[i]), vf(-kRawLimit)), vf(kRawLimit));
      const vf e = exp(vf(0.0f) - x);
      const vf inverse = vf(1.0f) / (vf(1.0f) + e);
      inverse.store(&value_[i]);
      (e * inverse).store(&rest_[i]);
    }
    float passed = 1.0f;
    for (int64_t k = 0; k < samples; ++k) {
      transmittance_[k] = passed;
      passed *= rest_[4 * k + 3];
    }
    transmittance_[samples] = passed;
  }
  float colour(int64_t k, int channel) const { return value_[4 * k + channel]; }
  float alpha(int64_t k) const { return value_[4 * k + 3]; }
  float transmittance(int64_t k) const { return transmittance_[k]; }  // before sample k
  float weight(int64_t k) const { return transmittance_[k] * alpha(k); }

 private:
  std::vector<float> value_, rest_, transmittance_;
};

constexpr int kMaxStride = 64;  // floats for the sums of a segment: hidden 48, and 16

// Samples along rays as the ABI passes them.
struct RaySamples {
  int64_t rays;
  const int64_t* start;     // [rays + 1]
  const float* distance;    // [samples]
  const int32_t* cell;      // [samples]
  const float* raw;         // [samples, 4]
};

// Runs of samples of one ray in one cell, for which the training head is evaluated once.
struct Segments {
  std::vector<int32_t> ray, cell, order, cell_start;
  std::vector<int64_t> first;     // [segments + 1] first sample
  std::vector<float> weight;      // [samples of the feature rays]
  std::vector<float> sums;        // [segments, stride]: sum w z, then sum w
  int hidden, stride;

  int64_t count() const { return static_cast<int64_t>(ray.size()); }

  Segments(const RaySamples& s, int64_t feature_rays, const float* z, int hidden_, int64_t cells,
           int threads)
      : hidden(hidden_), stride(hidden_ + 16) {
    const int64_t samples = s.start[feature_rays];
    weight.resize(samples);
    loom::parallel_ranges(feature_rays, threads, [&](int64_t begin, int64_t end, int) {
      RayValues values;
      for (int64_t r = begin; r < end; ++r) {
        values.activate(s.raw + 4 * s.start[r], s.start[r + 1] - s.start[r]);
        for (int64_t k = s.start[r]; k < s.start[r + 1]; ++k) {
          weight[k] = values.weight(k - s.start[r]);
        }
      }
    });
    for (int64_t r = 0; r < feature_rays; ++r) {
      for (int64_t k = s.start[r]; k < s.start[r + 1]; ++k) {
        if (k == s.start[r] || s.cell[k] != s.cell[k - 1]) {
          ray.push_back(static_cast<int32_t>(r));
          cell.push_back(s.cell[k]);
          first.push_back(k);
        }
      }
    }
    first.push_back(samples);
    sums.assign(count() * stride, 0.0f);
    loom::parallel_ranges(count(), threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t g = begin; g < end; ++g) {
        float* to = &sums[g * stride];
        for (int64_t k = first[g]; k < first[g + 1]; ++k) {
          for (int h = 0; h < hidden; h += kWidth) {
            fma(vf(weight[k]), vf::load(z + k * hidden + h), vf::load(to + h)).store(to + h);
          }
          to[hidden] += weight[k];
        }
      }
    });
    order.resize(count());
    cell_start.resize(cells + 1);
    sort_by_cell(cell.data(), nullptr, count(), cells, order.data(), cell_start.data());
  }

  // Copies the rows of up to kChunk segments of a cell to `rows` [kChunk, kMaxStride].
  int gather(int64_t begin, int64_t end, float* rows) const {
    const int n = static_cast<int>(std::min<int64_t>(kChunk, end - begin));
    for (int i = 0; i < n; ++i) {
      std::memcpy(rows + i * kMaxStride, &sums[order[begin + i] * stride], stride * sizeof(float));
    }
    return n;
  }
};

// features[ray] = sum over its segments of sums . head, with the biases as the last row of `head`.
inline void forward_head(const Segments& segments, const float* head, int64_t cells,
                         int64_t feature_rays, float* features, int threads) {
  const int hidden = segments.hidden, stride = segments.stride;
  std::vector<float> parts(segments.count() * kFeatures);
  loom::parallel_items(cells, threads, [&](int64_t cell, int) {
    alignas(64) float rows[kChunk * kMaxStride], out[kChunk * kFeatures];
    const int64_t end = segments.cell_start[cell + 1];
    for (int64_t b = segments.cell_start[cell]; b < end; b += kChunk) {
      const int n = segments.gather(b, end, rows);
      std::fill(rows + n * kMaxStride, rows + kChunk * kMaxStride, 0.0f);
      dense<kFeatures, Rows<kMaxStride>, Start::zero, End::linear>(n, rows, hidden + 1,
                                                 head + cell * (hidden + 1) * kFeatures, nullptr,
                                                 out);
      for (int i = 0; i < n; ++i) {
        std::memcpy(&parts[segments.order[b + i] * static_cast<int64_t>(kFeatures)],
                    out + i * kFeatures, kFeatures * sizeof(float));
      }
    }
  });
  std::fill(features, features + feature_rays * kFeatures, 0.0f);
  for (int64_t g = 0; g < segments.count(); ++g) {
    float* to = features + segments.ray[g] * static_cast<int64_t>(kFeatures);
    for (int f = 0; f < kFeatures; f += kWidth) {
      (vf::load(to + f) + vf::load(&parts[g * kFeatures + f])).store(to + f);
    }
  }
}

// Writes the gradient of the head [cells, (hidden + 1) * kFeatures] and returns that of the
// segments' sums, [segments, stride].
inline std::vector<float> backward_head(const Segments& segments, const float* head, int64_t cells,
                                        const float* d_features, float* d_head, int threads) {
  const int hidden = segments.hidden, stride = segments.stride;
  const int64_t row = static_cast<int64_t>(hidden + 1) * kFeatures;
  std::vector<float> d_sums(segments.count() * stride);
  loom::parallel_items(cells, threads, [&](int64_t cell, int) {
    alignas(64) float rows[kChunk * kMaxStride], d_out[kChunk * kFeatures];
    std::fill(d_head + cell * row, d_head + (cell + 1) * row, 0.0f);
    const int64_t end = segments.cell_start[cell + 1];
    for (int64_t b = segments.cell_start[cell]; b < end; b += kChunk) {
      const int n = segments.gather(b, end, rows);
      for (int i = 0; i < n; ++i) {
        const int64_t g = segments.order[b + i];
        const float* from = d_features + segments.ray[g] * static_cast<int64_t>(kFeatures);
        std::memcpy(d_out + i * kFeatures, from, kFeatures * sizeof(float));
        for (int h = 0; h <= hidden; ++h) {
          d_sums[g * stride + h] = dot<kFeatures>(from, head + cell * row + h * kFeatures);
        }
      }
      outer<kFeatures, Rows<kMaxStride>>(n, rows, hidden + 1, d_out, d_head + cell * row);
    }
  });
  return d_sums;
}

}  // namespace kilo
