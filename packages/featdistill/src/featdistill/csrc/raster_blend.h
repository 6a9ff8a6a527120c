// Front-to-back blending inside one tile of 16 x 16 pixels, forward and backward.
//
// A row of a tile is 16 / width vectors. A pixel that is finished carries its transmittance with a
// negative sign, so "still alive" costs one comparison. The way back walks front to back as well,
// with the same instructions as the way there: with R_i = sum_{j > i} w_j (f_j . g) + g_T T_end, the
// gradient of the loss by alpha_i is T_i (f_i . g) - R_i / (1 - alpha_i), and R starts from the
// blended image itself. No list of contributors has to be kept.
#pragma once
#include <vector>

#include "raster_splat.h"

namespace raster {

constexpr int kArea = kTile * kTile;
constexpr int kVectors = kTile / vf::width;  // per row
constexpr int kMoments = 10;  // sums per gaussian and tile, before those of the channels

// What one thread needs for one tile; planes are [kTile][kTile].
struct Scratch {
  explicit Scratch(int features) : planes(features * kArea), grads(features * kArea) {}
  std::vector<float> planes, grads;
  float transmittance[kArea], remainder[kArea];
};

// One gaussian over `vf::width` columns: power = (c dy + b) dy + a.
struct Columns {
  vf dx, a, b, c, opacity, lowest;
  Columns(const Splat& s, vf x)
      : dx(x - vf(s.u)), a(vf(-0.5f * s.xx) * dx * dx), b(vf(-s.xy) * dx), c(-0.5f * s.yy),
        opacity(s.opacity), lowest(s.lowest_power) {}
  vf power(float dy) const { return fma(fma(c, vf(dy), b), vf(dy), a); }
};

// The rows of the tile [begin, end) and its vector columns in which the splat can be seen.
struct Window {
  int row, row_end, column, column_end;
  Window(const Splat& s, int left, int top) {
    auto clip = [](float x, int high) {
      return static_cast<int>(std::min(std::max(x, 0.0f), static_cast<float>(high)));
    };
    row = clip(std::ceil(s.v - s.extent_y - 0.5f) - top, kTile);
    row_end = clip(std::floor(s.v + s.extent_y - 0.5f) - top + 1, kTile);
    column = clip(s.u - s.extent_x - left, kTile - 1) / vf::width;
    column_end = clip(s.u + s.extent_x - left, kTile - 1) / vf::width + 1;
  }
};

inline vf pixel_centers(int left, int column) {
  float x[vf::width];
  for (int i = 0; i < vf::width; ++i) x[i] = left + column * vf::width + i + 0.5f;
  return vf::load(x);
}

// Steps the transmittances past one gaussian; returns the weights T alpha that it gets.
inline vf advance(vf alpha, mask seen, vf& t) {
  const vf weight = alpha * t;
  const vf after = t - weight;
  const mask ends = after < vf(kTransmittanceMin);
  const vf got = loom::select(seen, loom::select(ends, vf(0.0f), weight), vf(0.0f));
  t = loom::select(seen, loom::select(ends, vf(0.0f) - t, after), t);
  return got;
}

inline void start_transmittance(const View& view, int left, int top, float* t) {
  for (int y = 0; y < kTile; ++y)
    for (int x = 0; x < kTile; ++x)
      t[y * kTile + x] = left + x < view.width && top + y < view.height ? 1.0f : -1.0f;
}

// Which vectors of the tile still have a pixel that is not finished.
struct Alive {
  bool vector[kTile * kVectors];
  int count = 0;
  explicit Alive(const float* t) {
    for (int i = 0; i < kTile * kVectors; ++i) {
      vector[i] = loom::any(vf(0.0f) < vf::load(t + i * vf::width));
      count += vector[i];
    }
  }
  void update(int i, vf t) {
    if (loom::any(vf(0.0f) < t)) return;
    vector[i] = false;
    --count;
  }
};

struct TileList {
  const int32_t* items;  // gaussians, near to far
  int64_t count;
  int left, top;
};

// Blends `4 + extra` features into scratch.planes and leaves the transmittances, signed, beside.
inline void blend_tile(const View& view, const Splat* splats, const float* channels, int extra,
                       const TileList& tile, Scratch& scratch) {
  float* const t_plane = scratch.transmittance;
  float* const planes = scratch.planes.data();
  std::fill(scratch.planes.begin(), scratch.planes.end(), 0.0f);
  start_transmittance(view, tile.left, tile.top, t_plane);
  Alive alive(t_plane);
  for (int64_t n = 0; n < tile.count && alive.count; ++n) {
    const Splat& s = splats[tile.items[n]];
    const float* more = channels + static_cast<int64_t>(tile.items[n]) * extra;
    const Window window(s, tile.left, tile.top);
    for (int column = window.column; column < window.column_end; ++column) {
      const Columns splat(s, pixel_centers(tile.left, column));
      for (int row = window.row; row < window.row_end; ++row) {
        const int index = row * kVectors + column, at = index * vf::width;
        if (!alive.vector[index]) continue;
        const vf power = splat.power(tile.top + row + 0.5f - s.v);
        vf t = vf::load(t_plane + at);
        const mask seen = (splat.lowest <= power) & (vf(0.0f) < t);
        if (!loom::any(seen)) continue;
        const vf alpha = loom::min(splat.opacity * loom::exp(power), vf(kAlphaMax));
        const vf weight = advance(alpha, seen, t);
        t.store(t_plane + at);
        alive.update(index, t);
        for (int k = 0; k < 4; ++k) {
          float* plane = planes + k * kArea + at;
          fma(weight, vf(s.feature[k]), vf::load(plane)).store(plane);
        }
        for (int k = 0; k < extra; ++k) {
          float* plane = planes + (4 + k) * kArea + at;
          fma(weight, vf(more[k]), vf::load(plane)).store(plane);
        }
      }
    }
  }
}

// Sums of one gaussian over one tile. `held` of the features stand in the splat: 3 colours, or 4
// with depth; `extra` follow in `grad_more`, which has room for their vector sums.
template <int held>
struct Sums {
  vf one, y, yy, feature[held];
  Sums() : one(0.0f), y(0.0f), yy(0.0f) {
    for (vf& f : feature) f = vf(0.0f);
  }
};

template <int held>
void blend_tile_backward(const View& view, const Splat* splats, const float* channels, int extra,
                         const TileList& tile, const int64_t* slots, Scratch& scratch,
                         float* moments) {
  const int stride = kMoments + extra;
  float* const t_plane = scratch.transmittance;
  const float* const grads = scratch.grads.data();
  start_transmittance(view, tile.left, tile.top, t_plane);
  Alive alive(t_plane);
  std::vector<vf> more_sums(extra);
  for (int64_t n = 0; n < tile.count; ++n) {
    float* const slot = moments + slots[n] * stride;
    std::fill(slot, slot + stride, 0.0f);
    if (!alive.count) continue;
    const Splat& s = splats[tile.items[n]];
    const float* more = channels + static_cast<int64_t>(tile.items[n]) * extra;
    const Window window(s, tile.left, tile.top);
    for (int column = window.column; column < window.column_end; ++column) {
      const Columns splat(s, pixel_centers(tile.left, column));
      Sums<held> sums;
      std::fill(more_sums.begin(), more_sums.end(), vf(0.0f));
      bool touched = false;
      for (int row = window.row; row < window.row_end; ++row) {
        const int index = row * kVectors + column, at = index * vf::width;
        if (!alive.vector[index]) continue;
        const float dy = tile.top + row + 0.5f - s.v;
        const vf power = splat.power(dy);
        vf t = vf::load(t_plane + at);
        const mask seen = (splat.lowest <= power) & (vf(0.0f) < t);
        if (!loom::any(seen)) continue;
        touched = true;
        const vf unclamped = splat.opacity * loom::exp(power);
        const vf alpha = loom::min(unclamped, vf(kAlphaMax));
        const vf before = t;
        const vf weight = advance(alpha, seen, t);
        t.store(t_plane + at);
        alive.update(index, t);

        vf dot(0.0f);  // feature . gradient
        for (int k = 0; k < held; ++k) {
          const vf g = vf::load(grads + k * kArea + at);
          dot = fma(vf(s.feature[k]), g, dot);
          sums.feature[k] = fma(weight, g, sums.feature[k]);
        }
        for (int k = 0; k < extra; ++k) {
          const vf g = vf::load(grads + (4 + k) * kArea + at);
          dot = fma(vf(more[k]), g, dot);
          more_sums[k] = fma(weight, g, more_sums[k]);
        }
        const vf remainder = fnma(weight, dot, vf::load(scratch.remainder + at));
        remainder.store(scratch.remainder + at);
        const vf d_alpha = before * dot - remainder / (vf(1.0f) - alpha);
        const mask differentiable = (vf(0.0f) < weight) & (unclamped < vf(kAlphaMax));
        const vf p = loom::select(differentiable, d_alpha * alpha, vf(0.0f));
        sums.one += p;
        sums.y = fma(p, vf(dy), sums.y);
        sums.yy = fma(p, vf(dy * dy), sums.yy);
      }
      if (!touched) continue;
      const vf dx = splat.dx;
      slot[0] += loom::sum(sums.one);
      slot[1] += loom::sum(sums.one * dx);
      slot[2] += loom::sum(sums.y);
      slot[3] += loom::sum(sums.one * dx * dx);
      slot[4] += loom::sum(sums.y * dx);
      slot[5] += loom::sum(sums.yy);
      for (int k = 0; k < held; ++k) slot[6 + k] += loom::sum(sums.feature[k]);
      for (int k = 0; k < extra; ++k) slot[kMoments + k] += loom::sum(more_sums[k]);
    }
  }
}

// Blends the channels of up to `vf::width` pixels of one tile, a pixel per lane.
inline void blend_pixels(const Splat* splats, const float* channels, int extra,
                         const TileList& tile, const int64_t* pixels, const int64_t* chosen,
                         int count, float* blended, float* transmittance) {
  float x[vf::width] = {}, y[vf::width] = {}, start[vf::width], weights[vf::width];
  std::fill(start, start + vf::width, -1.0f);
  for (int lane = 0; lane < count; ++lane) {
    x[lane] = pixels[2 * chosen[lane]] + 0.5f;
    y[lane] = pixels[2 * chosen[lane] + 1] + 0.5f;
    start[lane] = 1.0f;
    std::fill_n(blended + chosen[lane] * extra, extra, 0.0f);
  }
  const vf px = vf::load(x), py = vf::load(y);
  vf t = vf::load(start);
  for (int64_t n = 0; n < tile.count && loom::any(vf(0.0f) < t); ++n) {
    const Splat& s = splats[tile.items[n]];
    const vf dx = px - vf(s.u), dy = py - vf(s.v);
    const vf power = fma(fma(vf(-0.5f * s.yy), dy, vf(-s.xy) * dx), dy, vf(-0.5f * s.xx) * dx * dx);
    const mask seen = (vf(s.lowest_power) <= power) & (vf(0.0f) < t);
    if (!loom::any(seen)) continue;
    const vf alpha = loom::min(vf(s.opacity) * loom::exp(power), vf(kAlphaMax));
    advance(alpha, seen, t).store(weights);
    const float* feature = channels + static_cast<int64_t>(tile.items[n]) * extra;
    for (int lane = 0; lane < count; ++lane) {
      if (!(weights[lane] > 0)) continue;
      float* to = blended + chosen[lane] * extra;
      for (int k = 0; k < extra; ++k) to[k] += weights[lane] * feature[k];
    }
  }
  t.store(start);
  for (int lane = 0; lane < count; ++lane) transmittance[chosen[lane]] = std::fabs(start[lane]);
}

}  // namespace raster
