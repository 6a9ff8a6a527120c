// Marching: where along a ray the samples lie, and which voxel and cell each falls into. The same
// float operations in the same order as the torch twin (no contraction), hence the same samples.
#pragma once
#include "kilo.h"

namespace kilo {

typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));

// Candidate samples of a ray that are looked at together once it has come near something.
constexpr int kAhead = 8;
typedef float floats __attribute__((vector_size(4 * kAhead)));
typedef int32_t ints __attribute__((vector_size(4 * kAhead)));

constexpr int32_t kEnded = std::numeric_limits<int32_t>::max();  // a ray behind the box

// Takes NaN to `low`: what is clamped is read at.
template <class Vector>
Vector clamp(Vector x, Vector low, Vector high) {
  x = x > low ? x : low;
  return x > high ? high : x;
}

inline float4 lanes(const float* four) {
  float4 v;
  std::memcpy(&v, four, sizeof v);
  return v;
}

// A ray inside the box; `next` counts its candidate samples.
class Ray {
 public:
  Ray(const Volume& volume, const float* origin, const float* direction, float jitter)
      : origin_{origin[0], origin[1], origin[2], 0.0f},
        direction_{direction[0], direction[1], direction[2], 0.0f}, jitter_(jitter),
        span_(volume, origin, direction) {}

  // Moves kAhead rays together from the candidates next[0 .. kAhead) to the first ones in filled
  // voxels, or to kEnded. Most of a picture's rays meet nothing, and neighbours take about as many
  // steps.
  static void approach(const Volume& volume, const Ray* const* rays, int32_t* next) {
    floats origin[3], direction[3], near, far, jitter, steps_per_voxel;
    for (int k = 0; k < kAhead; ++k) {
      for (int a = 0; a < 3; ++a) {
        origin[a][k] = rays[k]->origin_[a];
        direction[a][k] = rays[k]->direction_[a];
      }
      near[k] = rays[k]->span_.near;
      far[k] = rays[k]->span_.far;
      jitter[k] = rays[k]->jitter_;
      steps_per_voxel[k] = rays[k]->span_.steps_per_voxel;
    }
    const floats zero = {};
    ints at, empty, inside_box;
    std::memcpy(&at, next, sizeof at);
    for (;;) {
      const floats distance = near + (__builtin_convertvector(at, floats) + jitter) * volume.step;
      inside_box = distance < far;
      ints voxel = {};
      for (int a = 0; a < 3; ++a) {
        const floats inside = origin[a] + distance * direction[a] - volume.low[a];
        voxel = voxel * volume.voxels[a] +
                __builtin_convertvector(clamp(inside * volume.voxels_per_unit[a], zero,
                                              zero + volume.last_voxel[a]), ints);
      }
      int32_t going = 0;
      for (int k = 0; k < kAhead; ++k) {
        empty[k] = volume.distance[voxel[k]] & inside_box[k];
        going |= empty[k];
      }
      if (going == 0) break;
      const floats far_enough = __builtin_convertvector(empty - 1, floats) * steps_per_voxel;
      at += (empty > 0) & (1 + __builtin_convertvector(far_enough * 0.999f, ints));
    }
    for (int k = 0; k < kAhead; ++k) next[k] = inside_box[k] ? at[k] : kEnded;
  }

  // Finds up to `wanted` next samples in filled voxels and returns how many; `next` becomes kEnded
  // at the end of the box.
  int advance(const Volume& volume, int32_t& next, int wanted, Sample* found) const {
    int count = 0;
    while (count < wanted) {
      const float distance = span_.near + (static_cast<float>(next) + jitter_) * volume.step;
      if (!(distance < span_.far)) {
        next = kEnded;
        break;
      }
      const int empty = volume.distance[voxel_at(volume, distance)];
      if (empty > 0) {
        next += 1 + span_.to_skip(empty);
      } else {
        count += look_ahead(volume, next, wanted - count, found + count);
        if (next == kEnded) break;
      }
    }
    return count;
  }

 private:
  int32_t voxel_at(const Volume& volume, float distance) const {
    const float4 zero{0.0f, 0.0f, 0.0f, 0.0f};
    const float4 inside = origin_ + distance * direction_ - lanes(volume.low);
    const int4 v = __builtin_convertvector(
        clamp(inside * lanes(volume.voxels_per_unit), zero, lanes(volume.last_voxel)), int4);
    return (v[0] * volume.voxels[1] + v[1]) * volume.voxels[2] + v[2];
  }

  // Goes through kAhead candidates from `next` on, whose places are computed together.
  int look_ahead(const Volume& volume, int32_t& next, int wanted, Sample* found) const {
    const ints steps = ints{0, 1, 2, 3, 4, 5, 6, 7} + next;
    const floats distance =
        span_.near + (__builtin_convertvector(steps, floats) + jitter_) * volume.step;
    const floats zero = {}, one = zero + 1.0f;
    ints voxel = {}, cell = {};
    floats local[3];
    for (int a = 0; a < 3; ++a) {
      const floats inside = origin_[a] + distance * direction_[a] - volume.low[a];
      const ints v = __builtin_convertvector(
          clamp(inside * volume.voxels_per_unit[a], zero, zero + volume.last_voxel[a]), ints);
      const floats in_cells = inside * volume.cells_per_unit[a];
      const ints c =
          __builtin_convertvector(clamp(in_cells, zero, zero + volume.last_cell[a]), ints);
      local[a] = clamp(2.0f * (in_cells - __builtin_convertvector(c, floats)) - one, -one, one);
      voxel = voxel * volume.voxels[a] + v;
      cell = cell * volume.cells[a] + c;
    }
    int count = 0;
    for (int k = 0; k < kAhead; ++k) {
      if (!(distance[k] < span_.far)) {
        next = kEnded;
        return count;
      }
      const int empty = volume.distance[voxel[k]];
      if (empty > 1) {
        next += k + 1 + span_.to_skip(empty);
        return count;
      }
      const int32_t network = empty > 0 ? -1 : volume.cell_index[cell[k]];
      if (network < 0) continue;
      found[count++] = {distance[k], network, voxel[k], {local[0][k], local[1][k], local[2][k]}};
      if (count == wanted) {
        next += k + 1;
        return count;
      }
    }
    next += kAhead;
    return count;
  }

  float4 origin_, direction_;
  float jitter_;
  Span span_;
};

}  // namespace kilo
