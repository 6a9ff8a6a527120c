// Pictures without gradients: rays advance in passes of a few samples each, all rays of a block
// together, and those that are opaque or have left the box drop out (KiloNeRF, section 3.3).
#include "kilo.h"
#include "kilo_composite.h"
#include "kilo_march.h"
#include "kilo_network.h"

using namespace kilo;

namespace {

constexpr int kPass = 8;             // samples per ray and pass
constexpr int64_t kBlock = 16384;    // rays that advance together
constexpr int32_t kEnded = std::numeric_limits<int32_t>::max();

struct Networks {
  Shape shape;
  const float* weights;
  int64_t cells;
  std::vector<float> merged;  // [cells, kMerged]
};

// What rays have gathered so far.
struct RayState {
  int32_t ray, next;  // `next` candidate sample, or kEnded
  float transmittance;
};

template <int H>
void merge(Networks& nets, int threads) {
  nets.merged.resize(nets.cells * kMerged<H>);
  loom::parallel_ranges(nets.cells, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t c = begin; c < end; ++c) {
      merge_layers<H>(nets.shape, nets.weights + c * nets.shape.parameters(),
                       &nets.merged[c * kMerged<H>]);
    }
  });
}

template <int H>
void evaluate(const Networks& nets, const NetworkInputs& in, const std::vector<int32_t>& order,
              const std::vector<int32_t>& start, float* raw, int threads) {
  loom::parallel_items(nets.cells, threads, [&](int64_t c, int) {
    const int64_t n = start[c + 1] - start[c];
    if (n == 0) return;
    forward_cell<H>(nets.shape, nets.weights + c * nets.shape.parameters(),
                    &nets.merged[c * kMerged<H>], in, &order[start[c]], n, raw, nullptr, 0,
                    Upcoming());
  });
}

// Samples of one pass: kPass slots per active ray, cell -1 where a slot is empty.
struct Pass {
  std::vector<int32_t> ray, cell, order, start;
  std::vector<float> distance, local, raw;

  explicit Pass(int64_t cells) : start(cells + 1) {}

  void resize(int64_t slots) {
    for (auto* v : {&ray, &cell, &order}) v->resize(slots);
    distance.resize(slots);
    local.resize(3 * slots);
    raw.resize(4 * slots);
  }
};

void march_pass(const Volume& volume, const float* origins, const float* directions,
                std::vector<RayState>& active, Pass& pass, int threads) {
  loom::parallel_ranges(active.size(), threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      RayState& state = active[i];
      const Ray ray(volume, origins + 3 * state.ray, directions + 3 * state.ray, 0.5f);
      for (int64_t slot = i * kPass; slot < (i + 1) * kPass; ++slot) {
        Sample sample{0.0f, -1, 0, {0.0f, 0.0f, 0.0f}};
        if (state.next != kEnded && !ray.advance(volume, state.next, sample)) state.next = kEnded;
        pass.ray[slot] = state.ray;
        pass.cell[slot] = sample.cell;
        pass.distance[slot] = sample.distance;
        std::copy_n(sample.local, 3, &pass.local[3 * slot]);
      }
    }
  });
}

void composite_pass(const Pass& pass, std::vector<RayState>& active, float* rgba, float* depth,
                    int threads) {
  loom::parallel_ranges(active.size(), threads, [&](int64_t begin, int64_t end, int) {
    RayValues values;
    for (int64_t i = begin; i < end; ++i) {
      RayState& state = active[i];
      const int64_t slot = i * kPass;
      int64_t n = 0;
      while (n < kPass && pass.cell[slot + n] >= 0) ++n;
      values.activate(&pass.raw[4 * slot], n);
      float* to = rgba + 4 * static_cast<int64_t>(state.ray);
      for (int64_t k = 0; k < n; ++k) {
        const float weight = state.transmittance * values.weight(k);
        for (int j = 0; j < 3; ++j) to[j] += weight * values.colour(k, j);
        depth[state.ray] += weight * pass.distance[slot + k];
      }
      state.transmittance *= values.transmittance(n);
      to[3] = 1.0f - state.transmittance;
    }
  });
}

}  // namespace

extern "C" {

// Renders rays to premultiplied rgba [rays, 4] and depth [rays]. A ray stops between two passes
// when less than stop_transmittance passes it.
void kilo_image(const float* box, const int32_t* voxel_shape, const uint8_t* distance,
                const int32_t* cell_shape, const int32_t* cell_index, float step, int64_t rays,
                const float* origins, const float* directions, int hidden,
                int position_frequencies, int direction_frequencies, const float* weights,
                int64_t cells, float stop_transmittance, float* rgba, float* depth, int threads) {
  const Volume volume(box, voxel_shape, distance, cell_shape, cell_index, step);
  Networks nets{{hidden, position_frequencies, direction_frequencies}, weights, cells, {}};
  const auto evaluate_cells = hidden == 48 ? evaluate<48> : evaluate<32>;
  hidden == 48 ? merge<48>(nets, threads) : merge<32>(nets, threads);
  std::fill_n(rgba, 4 * rays, 0.0f);
  std::fill_n(depth, rays, 0.0f);
  Pass pass(cells);
  std::vector<RayState> active;
  for (int64_t block = 0; block < rays; block += kBlock) {
    active.clear();
    for (int64_t r = block; r < std::min(rays, block + kBlock); ++r) {
      active.push_back({static_cast<int32_t>(r), 0, 1.0f});
    }
    while (!active.empty()) {
      const int64_t slots = static_cast<int64_t>(active.size()) * kPass;
      pass.resize(slots);
      march_pass(volume, origins, directions, active, pass, threads);
      sort_by_cell(pass.cell.data(), nullptr, slots, cells, pass.order.data(), pass.start.data());
      const NetworkInputs in{pass.local.data(), directions, pass.ray.data()};
      evaluate_cells(nets, in, pass.order, pass.start, pass.raw.data(), threads);
      composite_pass(pass, active, rgba, depth, threads);
      const auto done = [&](const RayState& s) {
        return s.next == kEnded || s.transmittance < stop_transmittance;
      };
      active.erase(std::remove_if(active.begin(), active.end(), done), active.end());
    }
  }
}

}  // extern "C"
