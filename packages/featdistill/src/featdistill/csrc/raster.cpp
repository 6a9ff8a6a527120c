// The rasteriser's plain C entry points: project and sort, list per tile, blend, and the way back.
// The torch twin with the same meaning stands in models/raster_torch.py.
//
// Every sum over tiles runs through one slot per (gaussian, tile) pair and is added up in a fixed
// order, so results do not depend on the number of threads.
#include <loom/parallel.h>

#include <cstring>

#include "raster_blend.h"

namespace raster {

// Calls body(lanes) for groups of consecutive gaussians.
template <class Body>
void for_lanes(int64_t n, int threads, Body&& body) {
  const int64_t groups = (n + kLanes - 1) / kLanes;
  loom::parallel_ranges(groups, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t group = begin; group < end; ++group)
      body(Lanes{group * kLanes,
                 static_cast<int>(std::min<int64_t>(kLanes, n - group * kLanes))});
  });
}

struct DepthKey {
  uint32_t bits;  // of a positive float, which sort like the float
  int32_t index;
};

// Stable radix sort in three passes of 11 bits.
void sort_by_depth(std::vector<DepthKey>& keys) {
  std::vector<DepthKey> other(keys.size());
  for (int shift = 0; shift < 33; shift += 11) {
    size_t starts[2049] = {};
    for (const DepthKey& key : keys) ++starts[((key.bits >> shift) & 2047) + 1];
    for (int i = 0; i < 2048; ++i) starts[i + 1] += starts[i];
    for (const DepthKey& key : keys) other[starts[(key.bits >> shift) & 2047]++] = key;
    keys.swap(other);
  }
}

TileList tile_list(const View& view, const int64_t* starts, const int32_t* items, int64_t tile) {
  return {items + starts[tile], starts[tile + 1] - starts[tile],
          static_cast<int>(tile % view.columns()) * kTile,
          static_cast<int>(tile / view.columns()) * kTile};
}

// Copies a plane of a tile from or to an image of `width` columns.
template <class Copy>
void for_tile_rows(const View& view, const TileList& tile, Copy&& copy) {
  const int columns = std::min(kTile, view.width - tile.left);
  const int rows = std::min(kTile, view.height - tile.top);
  for (int y = 0; y < rows; ++y)
    copy(y * kTile, static_cast<int64_t>(tile.top + y) * view.width + tile.left, columns);
}

}  // namespace raster

using namespace raster;

extern "C" {

// Projects n gaussians; `sh` may be null (no colours wanted). Fills splats[n], rects[n], order[n]
// (visible gaussians, near to far) and offsets[n + 1] (first slot of each gaussian's pairs).
// Returns the number of visible gaussians.
int64_t raster_project(const View* view, int64_t n, const float* means, const float* log_scales,
                       const float* quaternions, const float* logits, const float* sh,
                       Splat* splats, Rect* rects, int32_t* order, int64_t* offsets, int threads) {
  const Rows<const float> rows{means, log_scales, quaternions, logits, sh};
  for_lanes(n, threads, [&](Lanes lanes) { project(*view, rows, lanes, splats, rects); });
  std::vector<DepthKey> keys;
  keys.reserve(n);
  offsets[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    offsets[i + 1] = offsets[i] + rects[i].count();
    if (!rects[i].count()) continue;
    uint32_t bits;
    std::memcpy(&bits, &splats[i].feature[3], sizeof bits);
    keys.push_back({bits, static_cast<int32_t>(i)});
  }
  sort_by_depth(keys);
  for (size_t i = 0; i < keys.size(); ++i) order[i] = keys[i].index;
  return static_cast<int64_t>(keys.size());
}

// Lists the gaussians of each tile, near to far: starts[tiles + 1] into items[pairs]; slots[pairs]
// is the place of each pair in the order of gaussians.
void raster_list(const View* view, int64_t visible, const int32_t* order, const Rect* rects,
                 const int64_t* offsets, int64_t* starts, int32_t* items, int64_t* slots) {
  const int64_t tiles = static_cast<int64_t>(view->columns()) * view->rows();
  std::fill(starts, starts + tiles + 1, 0);
  auto each_tile = [&](int64_t i, auto&& visit) {
    const Rect& r = rects[order[i]];
    int64_t slot = offsets[order[i]];
    for (int y = r.y0; y < r.y1; ++y)
      for (int x = r.x0; x < r.x1; ++x) visit(static_cast<int64_t>(y) * view->columns() + x, slot++);
  };
  for (int64_t i = 0; i < visible; ++i)
    each_tile(i, [&](int64_t tile, int64_t) { ++starts[tile + 1]; });
  for (int64_t t = 0; t < tiles; ++t) starts[t + 1] += starts[t];
  std::vector<int64_t> next(starts, starts + tiles);
  for (int64_t i = 0; i < visible; ++i)
    each_tile(i, [&](int64_t tile, int64_t slot) {
      items[next[tile]] = order[i];
      slots[next[tile]++] = slot;
    });
}

// Blends into planes[4 + extra][height][width] (red, green, blue, depth, channels) and
// transmittance[height][width].
void raster_blend(const View* view, const Splat* splats, const float* channels, int extra,
                  const int64_t* starts, const int32_t* items, float* planes, float* transmittance,
                  int threads) {
  const int64_t tiles = static_cast<int64_t>(view->columns()) * view->rows();
  const int64_t area = static_cast<int64_t>(view->width) * view->height;
  std::vector<Scratch> scratches(threads, Scratch(4 + extra));
  loom::parallel_items(tiles, threads, [&](int64_t index, int thread) {
    Scratch& scratch = scratches[thread];
    const TileList tile = tile_list(*view, starts, items, index);
    blend_tile(*view, splats, channels, extra, tile, scratch);
    for_tile_rows(*view, tile, [&](int at, int64_t pixel, int columns) {
      for (int x = 0; x < columns; ++x)
        transmittance[pixel + x] = std::fabs(scratch.transmittance[at + x]);
      for (int k = 0; k < 4 + extra; ++k)
        std::copy_n(scratch.planes.data() + k * kArea + at, columns, planes + k * area + pixel);
    });
  });
}

// Gradients of the raw parameters, and of the channels where wanted (d_channels not null), from
// those of the image. d_planes has `held` + extra planes: 3 without a gradient for depth, else 4.
// `moments` is room for [pairs][kMoments + extra]. Rows of gaussians that are not seen become zero.
void raster_backward(const View* view, int64_t n, const float* means, const float* log_scales,
                     const float* quaternions, const float* logits, const float* sh,
                     const Splat* splats, const int64_t* offsets,
                     const float* channels, int extra, const int64_t* starts, const int32_t* items,
                     const int64_t* slots, const float* planes, const float* transmittance,
                     const float* d_planes, int held, const float* d_transmittance, float* moments,
                     float* d_means, float* d_log_scales, float* d_quaternions, float* d_logits,
                     float* d_sh, float* d_channels, int threads) {
  const int64_t tiles = static_cast<int64_t>(view->columns()) * view->rows();
  const int64_t area = static_cast<int64_t>(view->width) * view->height;
  std::vector<Scratch> scratches(threads, Scratch(4 + extra));
  loom::parallel_items(tiles, threads, [&](int64_t index, int thread) {
    Scratch& scratch = scratches[thread];
    const TileList tile = tile_list(*view, starts, items, index);
    std::fill(scratch.grads.begin(), scratch.grads.end(), 0.0f);
    std::fill_n(scratch.remainder, kArea, 0.0f);
    for_tile_rows(*view, tile, [&](int at, int64_t pixel, int columns) {
      for (int x = 0; x < columns; ++x)
        scratch.remainder[at + x] = d_transmittance[pixel + x] * transmittance[pixel + x];
      for (int k = 0; k < held + extra; ++k) {
        const int plane = k < held ? k : k - held + 4;
        const float* g = d_planes + k * area + pixel;
        const float* value = planes + plane * area + pixel;
        float* to = scratch.grads.data() + plane * kArea + at;
        for (int x = 0; x < columns; ++x) {
          to[x] = g[x];
          scratch.remainder[at + x] += g[x] * value[x];
        }
      }
    });
    const int64_t* tile_slots = slots + starts[index];
    auto backward = held == 3 ? blend_tile_backward<3> : blend_tile_backward<4>;
    backward(*view, splats, channels, extra, tile, tile_slots, scratch, moments);
  });

  const Rows<const float> rows{means, log_scales, quaternions, logits, sh};
  const Rows<float> grads{d_means, d_log_scales, d_quaternions, d_logits, d_sh};
  for_lanes(n, threads, [&](Lanes lanes) {
    float total[kMoments][kLanes] = {}, is_seen[kLanes] = {};
    for (int lane = 0; lane < lanes.count; ++lane) {
      const int64_t i = lanes.first + lane;
      is_seen[lane] = offsets[i + 1] > offsets[i];
      if (d_channels) std::fill_n(d_channels + i * extra, extra, 0.0f);
      for (int64_t slot = offsets[i]; slot < offsets[i + 1]; ++slot) {
        const float* sums = moments + slot * (kMoments + extra);
        for (int k = 0; k < kMoments; ++k) total[k][lane] += sums[k];
        if (d_channels)
          for (int k = 0; k < extra; ++k) d_channels[i * extra + k] += sums[kMoments + k];
      }
      for (int k = 0; k < 3; ++k)  // a colour clamped at black has no gradient
        if (!(splats[i].feature[k] > 0)) total[6 + k][lane] = 0.0f;
    }
    vf m[kMoments];
    for (int k = 0; k < kMoments; ++k) m[k] = vf::load(total[k]);
    const Moments sums{m[0], m[1], m[2], m[3], m[4], m[5], {m[6], m[7], m[8], m[9]}};
    project_backward(*view, rows, lanes, vf(0.0f) < vf::load(is_seen), sums, grads);
  });
}

// Blends only chosen pixels (x, y): blended[count][extra] and transmittance[count].
void raster_pixels(const View* view, const Splat* splats, const float* channels, int extra,
                   const int64_t* starts, const int32_t* items, int64_t count,
                   const int64_t* pixels, float* blended, float* transmittance, int threads) {
  const int64_t tiles = static_cast<int64_t>(view->columns()) * view->rows();
  std::vector<int64_t> first(tiles + 1, 0), chosen(count);
  auto tile_of = [&](int64_t i) {
    return pixels[2 * i + 1] / kTile * view->columns() + pixels[2 * i] / kTile;
  };
  for (int64_t i = 0; i < count; ++i) ++first[tile_of(i) + 1];
  for (int64_t t = 0; t < tiles; ++t) first[t + 1] += first[t];
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  for (int64_t i = 0; i < count; ++i) chosen[next[tile_of(i)]++] = i;
  loom::parallel_items(tiles, threads, [&](int64_t index, int) {
    const TileList tile = tile_list(*view, starts, items, index);
    for (int64_t at = first[index]; at < first[index + 1]; at += vf::width)
      blend_pixels(splats, channels, extra, tile, pixels, chosen.data() + at,
                   std::min<int64_t>(vf::width, first[index + 1] - at), blended, transmittance);
  });
}

}  // extern "C"
