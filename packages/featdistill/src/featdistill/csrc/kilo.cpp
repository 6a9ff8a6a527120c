// C ABI of the student's training kernels; models/kilo.py binds it, models/kilo_torch.py says in
// torch what it computes. A cell belongs to one thread and its samples are taken in their order,
// so results do not depend on the number of threads.
#include "kilo.h"

#include "kilo_composite.h"
#include "kilo_march.h"
#include "kilo_network.h"

using namespace kilo;

namespace {

struct March {
  std::vector<std::vector<Sample>> parts;  // one per thread, in the order of the rays
};

// The weights of the cell behind `cell`, to be fetched while that one's samples are evaluated.
Upcoming upcoming(int64_t cell, int64_t cells, const int32_t* start, const float* weights,
                  int64_t floats) {
  if (cell + 1 == cells || start[cell + 2] == start[cell + 1]) return Upcoming();
  const int64_t chunks = (start[cell + 1] - start[cell] + kChunk - 1) / kChunk;
  return Upcoming(weights + (cell + 1) * floats, floats, kFetchesPerChunk * chunks);
}

template <int H>
void network_forward(const Shape& shape, const float* weights, int64_t cells,
                     const NetworkInputs& in, const int32_t* order, const int32_t* start,
                     float* raw, float* z, int64_t z_count, int threads) {
  const int64_t floats = shape.parameters();
  loom::parallel_items(cells, threads, [&](int64_t cell, int) {
    const int64_t n = start[cell + 1] - start[cell];
    if (n == 0) return;
    alignas(64) float merged[kMerged<H>];
    merge_layers<H>(shape, weights + cell * floats, merged);
    forward_cell<H>(shape, weights + cell * floats, merged, in, order + start[cell], n, raw, z,
                    z_count, upcoming(cell, cells, start, weights, floats));
  });
}

template <int H>
void network_backward(const Shape& shape, const float* weights, int64_t cells,
                      const NetworkInputs& in, const int32_t* order, const int32_t* start,
                      const float* d_raw, const float* d_z, int64_t z_count, float* grad,
                      int threads) {
  const int64_t floats = shape.parameters();
  loom::parallel_items(cells, threads, [&](int64_t cell, int) {
    const int64_t n = start[cell + 1] - start[cell];
    if (n == 0) {
      std::fill_n(grad + cell * floats, floats, 0.0f);
      return;
    }
    backward_cell<H>(shape, weights + cell * floats, in, order + start[cell], n, d_raw, d_z,
                     z_count, grad + cell * floats,
                     upcoming(cell, cells, start, weights, floats));
  });
}

// Gradients of the samples of one ray. `d_weight` is what each weight receives from the features.
void composite_ray_backward(const RayValues& values, const RaySamples& s, int64_t ray,
                            const float* d_rgb, float d_transmittance, float d_depth,
                            const float* d_weight, float* d_raw, uint8_t* live) {
  const int64_t begin = s.start[ray], n = s.start[ray + 1] - begin;
  float behind = d_transmittance * values.transmittance(n);  // sum_{j > k} d_w_j w_j + d_T T_n
  for (int64_t k = n - 1; k >= 0; --k) {
    const float before = values.transmittance(k), weight = values.weight(k);
    float d_w = d_depth * s.distance[begin + k] + (d_weight == nullptr ? 0.0f : d_weight[begin + k]);
    for (int j = 0; j < 3; ++j) d_w += d_rgb[j] * values.colour(k, j);
    const float d_optical_depth = d_w * values.transmittance(k + 1) - behind;
    behind += d_w * weight;
    float* d = d_raw + 4 * (begin + k);
    live[begin + k] = before >= kLive;
    for (int j = 0; j < 3; ++j) {
      const float c = values.colour(k, j);
      d[j] = weight * d_rgb[j] * c * (1.0f - c);
    }
    const bool clamped = std::fabs(s.raw[4 * (begin + k) + 3]) > kRawLimit;
    d[3] = clamped ? 0.0f : d_optical_depth * values.alpha(k);
    if (!live[begin + k]) std::fill_n(d, 4, 0.0f);
  }
}

}  // namespace

extern "C" {

// Marches rays and returns a handle on their samples for kilo_march_collect; counts of samples are
// summed up in ray_start [rays + 1].
void* kilo_march(const float* box, const int32_t* voxel_shape, const uint8_t* distance,
                 const int32_t* cell_shape, const int32_t* cell_index, float step, int64_t rays,
                 const float* origins, const float* directions, const float* jitter,
                 int64_t* ray_start, int threads) {
  const Volume volume(box, voxel_shape, distance, cell_shape, cell_index, step);
  auto* march = new March;
  march->parts.resize(std::max(1, threads));
  ray_start[0] = 0;
  loom::parallel_ranges(rays, threads, [&](int64_t begin, int64_t end, int thread) {
    std::vector<Sample>& found = march->parts[thread];
    found.reserve((end - begin) * 24);
    for (int64_t r = begin; r < end; ++r) {
      const Ray ray(volume, origins + 3 * r, directions + 3 * r, jitter[r]);
      const size_t before = found.size();
      Sample ahead[16];
      for (int32_t next = 0; next != kEnded;) {
        const int count = ray.advance(volume, next, 16, ahead);
        found.insert(found.end(), ahead, ahead + count);
      }
      ray_start[r + 1] = static_cast<int64_t>(found.size() - before);
    }
  });
  for (int64_t r = 0; r < rays; ++r) ray_start[r + 1] += ray_start[r];
  return march;
}

// Copies the samples of a march out and frees it.
void kilo_march_collect(void* handle, int64_t rays, const int64_t* ray_start, int32_t* ray,
                        int32_t* cell, int32_t* voxel, float* distance, float* local) {
  auto* march = static_cast<March*>(handle);
  int64_t s = 0;
  for (const std::vector<Sample>& part : march->parts) {
    for (const Sample& sample : part) {
      cell[s] = sample.cell;
      voxel[s] = sample.voxel;
      distance[s] = sample.distance;
      std::copy_n(sample.local, 3, local + 3 * s);
      ++s;
    }
  }
  for (int64_t r = 0; r < rays; ++r) {
    std::fill(ray + ray_start[r], ray + ray_start[r + 1], static_cast<int32_t>(r));
  }
  delete march;
}

void kilo_sort(const int32_t* cell, const uint8_t* live, int64_t samples, int64_t cells,
               int32_t* order, int32_t* start) {
  sort_by_cell(cell, live, samples, cells, order, start);
}

void kilo_network_forward(int hidden, int position_frequencies, int direction_frequencies,
                          const float* weights, int64_t cells, const int32_t* order,
                          const int32_t* start, const float* local, const float* directions,
                          const int32_t* ray, float* raw, float* z, int64_t z_count, int threads) {
  const Shape shape{hidden, position_frequencies, direction_frequencies};
  const NetworkInputs in{local, directions, ray};
  const auto forward = hidden == 48 ? network_forward<48> : network_forward<32>;
  forward(shape, weights, cells, in, order, start, raw, z, z_count, threads);
}

void kilo_network_backward(int hidden, int position_frequencies, int direction_frequencies,
                           const float* weights, int64_t cells, const int32_t* order,
                           const int32_t* start, const float* local, const float* directions,
                           const int32_t* ray, const float* d_raw, const float* d_z,
                           int64_t z_count, float* grad, int threads) {
  const Shape shape{hidden, position_frequencies, direction_frequencies};
  const NetworkInputs in{local, directions, ray};
  const auto backward = hidden == 48 ? network_backward<48> : network_backward<32>;
  backward(shape, weights, cells, in, order, start, d_raw, d_z, z_count, grad, threads);
}

// Composites all rays, and 128-D features of the first feature_rays. max_weight (or null) [voxels]
// is raised to the weights of the samples.
void kilo_composite_forward(int64_t rays, const int64_t* ray_start, const float* distance,
                            const int32_t* cell, const int32_t* voxel, const float* raw,
                            int hidden, int64_t cells, int64_t feature_rays, const float* z,
                            const float* head, float* rgb, float* transmittance, float* depth,
                            float* features, float* max_weight, int threads) {
  const RaySamples s{rays, ray_start, distance, cell, raw};
  std::vector<float> weights(max_weight == nullptr ? 0 : ray_start[rays]);
  loom::parallel_ranges(rays, threads, [&](int64_t begin, int64_t end, int) {
    RayValues values;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = ray_start[r + 1] - ray_start[r];
      values.activate(raw + 4 * ray_start[r], n);
      float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      for (int64_t k = 0; k < n; ++k) {
        const float weight = values.weight(k);
        for (int j = 0; j < 3; ++j) sums[j] += weight * values.colour(k, j);
        sums[3] += weight * distance[ray_start[r] + k];
        if (max_weight != nullptr) weights[ray_start[r] + k] = weight;
      }
      std::copy_n(sums, 3, rgb + 3 * r);
      depth[r] = sums[3];
      transmittance[r] = values.transmittance(n);
    }
  });
  for (size_t k = 0; k < weights.size(); ++k) {
    max_weight[voxel[k]] = std::max(max_weight[voxel[k]], weights[k]);
  }
  if (feature_rays > 0) {
    const Segments segments(s, feature_rays, z, hidden, cells, threads);
    forward_head(segments, head, cells, feature_rays, features, threads);
  }
}

// Gradients of kilo_composite_forward: of raw [samples, 4], of z and the head where there are
// features, and which samples are live (see LIVE_TRANSMITTANCE).
void kilo_composite_backward(int64_t rays, const int64_t* ray_start, const float* distance,
                             const int32_t* cell, const float* raw, int hidden, int64_t cells,
                             int64_t feature_rays, const float* z, const float* head,
                             const float* d_rgb, const float* d_transmittance,
                             const float* d_depth, const float* d_features, float* d_raw,
                             float* d_z, float* d_head, uint8_t* live, int threads) {
  const RaySamples s{rays, ray_start, distance, cell, raw};
  const int64_t feature_samples = ray_start[feature_rays];
  std::vector<float> d_weight(feature_samples);
  if (feature_rays > 0) {
    const Segments segments(s, feature_rays, z, hidden, cells, threads);
    const std::vector<float> d_sums =
        backward_head(segments, head, cells, d_features, d_head, threads);
    loom::parallel_ranges(segments.count(), threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t g = begin; g < end; ++g) {
        const float* d = &d_sums[g * segments.stride];
        for (int64_t k = segments.first[g]; k < segments.first[g + 1]; ++k) {
          vf total(0.0f);
          for (int h = 0; h < hidden; h += kWidth) {
            const vf part = vf::load(d + h);
            total = fma(vf::load(z + k * hidden + h), part, total);
            (vf(segments.weight[k]) * part).store(d_z + k * hidden + h);
          }
          d_weight[k] = sum(total) + d[hidden];
        }
      }
    });
  }
  loom::parallel_ranges(rays, threads, [&](int64_t begin, int64_t end, int) {
    RayValues values;
    for (int64_t r = begin; r < end; ++r) {
      values.activate(raw + 4 * ray_start[r], ray_start[r + 1] - ray_start[r]);
      composite_ray_backward(values, s, r, d_rgb + 3 * r, d_transmittance[r], d_depth[r],
                             r < feature_rays ? d_weight.data() : nullptr, d_raw, live);
    }
  });
}

}  // extern "C"
