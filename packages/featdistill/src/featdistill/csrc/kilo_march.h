// Marching: where along a ray the samples lie, and which voxel and cell each falls into. The same
// float operations in the same order as the torch twin (no contraction), hence the same samples.
#pragma once
#include <cmath>
#include <limits>

#include "kilo.h"

namespace kilo {

typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));

// A student's box: x, y, z in the first three lanes.
struct Volume {
  float4 low, high;
  float4 voxels_per_unit, cells_per_unit;
  float4 last_voxel, last_cell;
  int32_t voxels[3], cells[3];
  const uint8_t* distance;    // Chebyshev distance in voxels to the next filled one
  const int32_t* cell_index;  // -1: no network
  float step;

  Volume(const float* box, const int32_t* voxel_shape, const uint8_t* distance_,
         const int32_t* cell_shape, const int32_t* cell_index_, float step_)
      : low{box[0], box[1], box[2], 0.0f}, high{box[3], box[4], box[5], 1.0f},
        distance(distance_), cell_index(cell_index_), step(step_) {
    for (int a = 0; a < 3; ++a) {
      voxels[a] = voxel_shape[a];
      cells[a] = cell_shape[a];
      voxels_per_unit[a] = static_cast<float>(voxels[a]) / (high[a] - low[a]);
      cells_per_unit[a] = static_cast<float>(cells[a]) / (high[a] - low[a]);
      last_voxel[a] = static_cast<float>(voxels[a] - 1);
      last_cell[a] = static_cast<float>(cells[a] - 1);
    }
    voxels_per_unit[3] = cells_per_unit[3] = last_voxel[3] = last_cell[3] = 0.0f;
  }
};

struct Sample {
  float distance;
  int32_t cell, voxel;
  float local[3];
};

inline float4 clamp(float4 x, float4 low, float4 high) {
  const int4 below = x < low, above = x > high;
  x = (float4)(((int4)x & ~below) | ((int4)low & below));
  return (float4)(((int4)x & ~above) | ((int4)high & above));
}

// A ray between the two distances at which it meets the box; `next` counts candidate samples.
class Ray {
 public:
  Ray(const Volume& volume, const float* origin, const float* direction, float jitter)
      : origin_{origin[0], origin[1], origin[2], 0.0f},
        direction_{direction[0], direction[1], direction[2], 0.0f}, jitter_(jitter) {
    float near = -std::numeric_limits<float>::infinity();
    float far = std::numeric_limits<float>::infinity();
    bool miss = true;
    for (int a = 0; a < 3; ++a) {
      if (!(std::fabs(direction[a]) < 1e-9f)) {
        miss = false;
        const float inverse = 1.0f / direction[a];
        const float first = (volume.low[a] - origin[a]) * inverse;
        const float second = (volume.high[a] - origin[a]) * inverse;
        near = std::max(near, std::min(first, second));
        far = std::min(far, std::max(first, second));
      }
    }
    for (int a = 0; a < 3; ++a) {
      const bool outside = origin[a] < volume.low[a] || origin[a] > volume.high[a];
      if (std::fabs(direction[a]) < 1e-9f && outside) miss = true;
    }
    near_ = std::max(near, 0.0f);
    far_ = miss || !std::isfinite(far) ? 0.0f : far;
    float fastest = 0.0f;  // voxels per step along the axis that changes most
    for (int a = 0; a < 3; ++a) {
      fastest = std::max(fastest, std::fabs(direction[a]) * volume.voxels_per_unit[a]);
    }
    steps_per_voxel_ = 1.0f / std::max(fastest * volume.step, 1e-6f);
  }

  // Finds the next sample in a filled voxel; false at the end of the box.
  bool advance(const Volume& volume, int32_t& next, Sample& sample) const {
    const float4 zero{0.0f, 0.0f, 0.0f, 0.0f};
    for (;;) {
      const float distance = near_ + (static_cast<float>(next) + jitter_) * volume.step;
      if (!(distance < far_)) return false;
      const float4 inside = origin_ + distance * direction_ - volume.low;
      const int4 v = __builtin_convertvector(
          clamp(inside * volume.voxels_per_unit, zero, volume.last_voxel), int4);
      const int32_t voxel = (v[0] * volume.voxels[1] + v[1]) * volume.voxels[2] + v[2];
      const int empty = volume.distance[voxel];
      if (empty > 0) {
        // Every voxel nearer than `empty` is empty, so moving by empty - 1 of them stays outside.
        next += 1 + static_cast<int32_t>((empty - 1) * steps_per_voxel_ * 0.999f);
        continue;
      }
      ++next;
      const float4 in_cells = inside * volume.cells_per_unit;
      const int4 c = __builtin_convertvector(clamp(in_cells, zero, volume.last_cell), int4);
      const int32_t cell =
          volume.cell_index[(c[0] * volume.cells[1] + c[1]) * volume.cells[2] + c[2]];
      if (cell < 0) continue;
      const float4 one{1.0f, 1.0f, 1.0f, 1.0f};
      const float4 local =
          clamp(2.0f * (in_cells - __builtin_convertvector(c, float4)) - one, -one, one);
      sample = {distance, cell, voxel, {local[0], local[1], local[2]}};
      return true;
    }
  }

 private:
  float4 origin_, direction_;
  float jitter_, near_, far_, steps_per_voxel_;
};

}  // namespace kilo
