// Pictures without gradients: rays advance in passes of a few samples each, and those that are
// opaque or have left the box make room for others (KiloNeRF, section 3.3).
#include <atomic>

#include "kilo.h"
#include "kilo_bfloat16.h"
#include "kilo_composite.h"
#include "kilo_march.h"
#include "kilo_picture.h"

using namespace kilo;

namespace {

constexpr int kPass = 4;     // samples per ray and pass
constexpr int kPool = 8192;  // rays of a thread that advance together
constexpr int kSide = 32;    // pixels along an edge of a tile

// The rays of a picture in square tiles, so that the rays of a pool meet few networks; a width of 0
// stands for rays in no such order.
struct Picture {
  const float *origins, *directions;
  int64_t rays, width;
  float* rgba;   // [rays, 4] premultiplied
  float* depth;  // [rays]

  int64_t tiles() const {
    if (width == 0) return (rays + kSide * kSide - 1) / (kSide * kSide);
    return (width + kSide - 1) / kSide * ((rays / width + kSide - 1) / kSide);
  }

  // Calls take(first, count) for runs of up to kAhead neighbouring rays of a tile.
  template <class Take>
  void for_runs(int64_t tile, Take&& take) const {
    const auto part = [&](int64_t begin, int64_t end) {
      for (; begin < end; begin += kAhead) {
        take(begin, static_cast<int>(std::min<int64_t>(kAhead, end - begin)));
      }
    };
    if (width == 0) {
      const int64_t begin = tile * kSide * kSide;
      part(begin, std::min(rays, begin + kSide * kSide));
      return;
    }
    const int64_t columns = (width + kSide - 1) / kSide;
    const int64_t left = tile % columns * kSide, top = tile / columns * kSide;
    for (int64_t y = top; y < std::min(rays / width, top + kSide); ++y) {
      part(y * width + left, y * width + std::min(width, left + kSide));
    }
  }
};

// A ray on its way, and what it has gathered.
struct Traveller {
  Ray ray;
  int32_t index, next;  // `next` candidate sample, or kEnded
  int count;            // samples of this pass
  float transmittance;
};

// The rays that one thread advances. A ray's colour depends on its own samples only, hence neither
// on the pool that it travels in nor on the number of threads.
template <class Networks>
class Pool {
 public:
  Pool(const Volume& volume, const Networks& networks, int64_t cells, const Picture& picture,
       float stop)
      : volume_(volume), networks_(networks), picture_(picture), stop_(stop), cells_(cells),
        start_(cells + 1) {
    const int64_t slots = kPass * (kPool + kSide * kSide);
    rays_.reserve(kPool + kSide * kSide);
    ray_.resize(slots);
    cell_.resize(slots);
    order_.resize(slots);
    distance_.resize(slots);
    local_.resize(3 * slots);
    raw_.resize(4 * slots);
  }

  // Renders tiles until none is left.
  void run(std::atomic<int64_t>& next_tile) {
    for (bool more = true; more || !rays_.empty();) {
      slots_ = 0;
      go_on();
      while (more && rays_.size() < kPool) {
        const int64_t tile = next_tile.fetch_add(1, std::memory_order_relaxed);
        more = tile < picture_.tiles();
        if (more) picture_.for_runs(tile, [&](int64_t r, int n) { begin(r, n); });
      }
      sort_by_cell(cell_.data(), nullptr, slots_, cells_, order_.data(), start_.data());
      const NetworkInputs in{local_.data(), picture_.directions, ray_.data()};
      for (int64_t c = 0; c < cells_; ++c) {
        const int64_t n = start_[c + 1] - start_[c];
        if (n > 0) networks_.forward(c, in, &order_[start_[c]], n, raw_.data());
      }
      composite();
    }
  }

 private:
  // Takes up those of `n` neighbouring rays that meet something.
  void begin(int64_t first, int n) {
    const auto ray_at = [&](int k) {
      const int64_t r = first + std::min(k, n - 1);
      return Ray(volume_, picture_.origins + 3 * r, picture_.directions + 3 * r, 0.5f);
    };
    const Ray rays[kAhead] = {ray_at(0), ray_at(1), ray_at(2), ray_at(3),
                              ray_at(4), ray_at(5), ray_at(6), ray_at(7)};
    const Ray* all[kAhead];
    for (int k = 0; k < kAhead; ++k) all[k] = &rays[k];
    int32_t next[kAhead] = {};
    Ray::approach(volume_, all, next);
    for (int k = 0; k < n; ++k) {
      if (next[k] == kEnded) continue;
      rays_.push_back({rays[k], static_cast<int32_t>(first + k), next[k], 0, 1.0f});
      march(rays_.back());
      if (rays_.back().count == 0) rays_.pop_back();
    }
  }

  // Takes the rays of the pool to their next samples.
  void go_on() {
    const size_t n = rays_.size();
    for (size_t first = 0; first < n; first += kAhead) {
      const Ray* all[kAhead];
      int32_t next[kAhead];
      for (size_t k = 0; k < kAhead; ++k) {
        const Traveller& t = rays_[std::min(first + k, n - 1)];
        all[k] = &t.ray;
        next[k] = t.next;
      }
      Ray::approach(volume_, all, next);
      for (size_t k = 0; k < kAhead && first + k < n; ++k) {
        rays_[first + k].next = next[k];
        march(rays_[first + k]);
      }
    }
  }

  void march(Traveller& t) {
    Sample found[kPass];
    t.count = t.next == kEnded ? 0 : t.ray.advance(volume_, t.next, kPass, found);
    for (int k = 0; k < t.count; ++k, ++slots_) {
      ray_[slots_] = t.index;
      cell_[slots_] = found[k].cell;
      distance_[slots_] = found[k].distance;
      std::copy_n(found[k].local, 3, &local_[3 * slots_]);
    }
  }

  // Adds the samples of the pass to their rays and drops those that have ended.
  void composite() {
    int64_t slot = 0;
    size_t kept = 0;
    for (Traveller& t : rays_) {
      values_.activate(&raw_[4 * slot], t.count);
      float* to = picture_.rgba + 4 * static_cast<int64_t>(t.index);
      for (int k = 0; k < t.count; ++k, ++slot) {
        const float weight = t.transmittance * values_.weight(k);
        for (int j = 0; j < 3; ++j) to[j] += weight * values_.colour(k, j);
        picture_.depth[t.index] += weight * distance_[slot];
      }
      t.transmittance *= values_.transmittance(t.count);
      to[3] = 1.0f - t.transmittance;
      if (t.next != kEnded && t.transmittance >= stop_) rays_[kept++] = t;
    }
    rays_.erase(rays_.begin() + kept, rays_.end());
  }

  const Volume& volume_;
  const Networks& networks_;
  const Picture& picture_;
  const float stop_;
  const int64_t cells_;
  int64_t slots_ = 0;
  std::vector<Traveller> rays_;
  std::vector<int32_t> ray_, cell_, order_, start_;
  std::vector<float> distance_, local_, raw_;
  RayValues values_;
};

template <class Networks>
void render(const Volume& volume, const Networks& networks, int64_t cells, const Picture& picture,
            float stop, int threads) {
  std::fill_n(picture.rgba, 4 * picture.rays, 0.0f);
  std::fill_n(picture.depth, picture.rays, 0.0f);
  std::atomic<int64_t> next_tile{0};
  loom::parallel_ranges(threads, threads, [&](int64_t, int64_t, int) {
    Pool<Networks>(volume, networks, cells, picture, stop).run(next_tile);
  });
}

}  // namespace

extern "C" {

// Whether products in bfloat16 are compiled in and this processor has them.
int kilo_has_bfloat16() {
#ifdef KILO_BFLOAT16
  return Bfloat16Networks::available();
#else
  return 0;
#endif
}

// Renders rays to premultiplied rgba [rays, 4] and depth [rays]. A ray stops between two passes
// when less than stop_transmittance passes it. `width` is that of the picture whose rows the rays
// are, or 0; `bfloat16` may be 1 for hidden 32 where kilo_has_bfloat16().
void kilo_image(const float* box, const int32_t* voxel_shape, const uint8_t* distance,
                const int32_t* cell_shape, const int32_t* cell_index, float step, int64_t rays,
                const float* origins, const float* directions, int64_t width, int hidden,
                int position_frequencies, int direction_frequencies, const float* weights,
                int64_t cells, int bfloat16, float stop_transmittance, float* rgba, float* depth,
                int threads) {
  const Volume volume(box, voxel_shape, distance, cell_shape, cell_index, step);
  const Shape shape{hidden, position_frequencies, direction_frequencies};
  const Picture picture{origins, directions, rays, width, rgba, depth};
  threads = std::max(1, threads);
  const auto draw = [&](const auto& networks) {
    render(volume, networks, cells, picture, stop_transmittance, threads);
  };
#ifdef KILO_BFLOAT16
  if (bfloat16) {
    draw(Bfloat16Networks(shape, weights, cells, threads));
    return;
  }
#endif
  hidden == 48 ? draw(PictureNetworks<48>(shape, weights, cells, threads))
               : draw(PictureNetworks<32>(shape, weights, cells, threads));
}

}  // extern "C"
