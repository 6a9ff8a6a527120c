// What the vector kernels and the function of one ray share, in C++ that nvcc compiles for the
// device as well: the layout of a network, the encoding's octaves, and how a ray crosses the box.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define KILO_BOTH __host__ __device__ __forceinline__
#define KILO_UNROLL _Pragma("unroll")
#else
#define KILO_BOTH inline
#if defined(__GNUC__) && !defined(__clang__)
#define KILO_UNROLL _Pragma("GCC unroll 16")
#else
#define KILO_UNROLL _Pragma("unroll")
#endif
#endif

namespace kilo {

constexpr float kRawLimit = 30.0f;  // raw densities are clamped to +-this
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One operation per rounding, as in loom/simd.h: nothing else is contracted.
KILO_BOTH float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#elif defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
KILO_BOTH float fnma(float a, float b, float c) { return fma(-a, b, c); }
KILO_BOTH float round(float a) { return rintf(a); }
KILO_BOTH float smaller(float a, float b) { return b < a ? b : a; }
KILO_BOTH float larger(float a, float b) { return a < b ? b : a; }
// What is no number becomes the lowest value: an index from it stays inside.
KILO_BOTH float clamp(float x, float low, float high) { return smaller(larger(low, x), high); }

// Offsets of the blocks of a cell's row of weights: NetworkShape.block_shapes in kilo_layout.py.
struct Shape {
  int hidden, position_frequencies, direction_frequencies;
  KILO_BOTH int position_inputs() const { return 3 + 6 * position_frequencies; }
  KILO_BOTH int direction_inputs() const { return 3 + 6 * direction_frequencies; }
  KILO_BOTH int position_bias() const { return position_inputs() * hidden; }
  KILO_BOTH int trunk() const { return position_bias() + hidden; }
  KILO_BOTH int trunk_bias() const { return trunk() + hidden * hidden; }
  KILO_BOTH int density() const { return trunk_bias() + hidden; }
  KILO_BOTH int feature() const { return density() + hidden; }
  KILO_BOTH int feature_bias() const { return feature() + hidden * hidden; }
  KILO_BOTH int colour_hidden() const { return feature_bias() + hidden; }
  KILO_BOTH int colour_direction() const { return colour_hidden() + hidden * hidden; }
  KILO_BOTH int colour_hidden_bias() const {
    return colour_direction() + direction_inputs() * hidden;
  }
  KILO_BOTH int colour() const { return colour_hidden_bias() + hidden; }
  KILO_BOTH int output_bias() const { return colour() + 3 * hidden; }
  KILO_BOTH int parameters() const { return output_bias() + 16; }
};

// sin and cos, absolute error below 3e-7 for |x| <= 1024: reduction by pi in three parts, then
// Taylor polynomials on [-pi/2, pi/2]. Float is `float` or the vector of loom/simd.h.
template <class Float>
KILO_BOTH void sine_cosine(Float x, Float& sine, Float& cosine) {
  const Float n = round(x * Float(0.318309886183790672f));
  Float r = fnma(n, Float(3.140625f), x);
  r = fnma(n, Float(9.67502593994140625e-4f), r);
  r = fnma(n, Float(1.509957990978376432e-7f), r);
  const Float half = n - Float(2.0f) * round(n * Float(0.5f));  // 0 for even n, +-1 for odd n
  const Float sign = fnma(Float(2.0f) * half, half, Float(1.0f));
  const Float q = r * r;
  Float s = Float(-2.5052108e-8f);
  s = fma(s, q, Float(2.7557319e-6f));
  s = fma(s, q, Float(-1.9841270e-4f));
  s = fma(s, q, Float(8.3333333e-3f));
  s = fma(s, q, Float(-1.6666667e-1f));
  sine = sign * fma(s * q, r, r);
  Float c = Float(2.0876757e-9f);
  c = fma(c, q, Float(-2.7557319e-7f));
  c = fma(c, q, Float(2.4801587e-5f));
  c = fma(c, q, Float(-1.3888889e-3f));
  c = fma(c, q, Float(4.1666667e-2f));
  c = fma(c, q, Float(-0.5f));
  cosine = sign * fma(c, q, Float(1.0f));
}

// Octave k of the encoding of x, from that before it: sin(2^k x) and cos(2^k x), scale = 2^k.
// Doubling the angle doubles the error, so every fourth octave is computed afresh.
template <class Float>
KILO_BOTH void octave(Float x, int k, float scale, Float& sine, Float& cosine) {
  if (k % 4 == 0) {
    sine_cosine(x * Float(scale), sine, cosine);
  } else {
    const Float twice = sine + sine;
    const Float doubled = twice * cosine;        // sin 2a = 2 sin a cos a
    cosine = fnma(twice, sine, Float(1.0f));     // cos 2a = 1 - 2 sin^2 a
    sine = doubled;
  }
}

// A student's box, its voxels and its cells. Axes x, y, z; the fourth number fills a vector.
struct Volume {
  alignas(16) float low[4], high[4];
  alignas(16) float voxels_per_unit[4], cells_per_unit[4];
  alignas(16) float last_voxel[4], last_cell[4];
  int32_t voxels[3], cells[3];
  const uint8_t* distance;    // Chebyshev distance in voxels to the next filled one
  const int32_t* cell_index;  // -1: no network
  float step;

  Volume(const float* box, const int32_t* voxel_shape, const uint8_t* distance_,
         const int32_t* cell_shape, const int32_t* cell_index_, float step_)
      : low{}, high{}, voxels_per_unit{}, cells_per_unit{}, last_voxel{}, last_cell{},
        distance(distance_), cell_index(cell_index_), step(step_) {
    for (int a = 0; a < 3; ++a) {
      low[a] = box[a];
      high[a] = box[3 + a];
      voxels[a] = voxel_shape[a];
      cells[a] = cell_shape[a];
      voxels_per_unit[a] = static_cast<float>(voxels[a]) / (high[a] - low[a]);
      cells_per_unit[a] = static_cast<float>(cells[a]) / (high[a] - low[a]);
      last_voxel[a] = static_cast<float>(voxels[a] - 1);
      last_cell[a] = static_cast<float>(cells[a] - 1);
    }
  }
};

// A sample in a filled voxel of a cell with a network.
struct Sample {
  float distance;
  int32_t cell, voxel;
  float local[3];
};

// The stretch of a ray inside the box, and how many candidate samples one voxel takes.
struct Span {
  float near, far, steps_per_voxel;

  KILO_BOTH Span(const Volume& volume, const float* origin, const float* direction)
      : near(-kInfinity), far(kInfinity) {
    bool miss = true;
    for (int a = 0; a < 3; ++a) {
      if (!(fabsf(direction[a]) < 1e-9f)) {
        miss = false;
        const float inverse = 1.0f / direction[a];
        const float first = (volume.low[a] - origin[a]) * inverse;
        const float second = (volume.high[a] - origin[a]) * inverse;
        near = larger(near, smaller(first, second));
        far = smaller(far, larger(first, second));
      }
    }
    float fastest = 0.0f;  // voxels per unit along the axis that changes most
    for (int a = 0; a < 3; ++a) {
      const bool outside = origin[a] < volume.low[a] || origin[a] > volume.high[a];
      if (fabsf(direction[a]) < 1e-9f && outside) miss = true;
      fastest = larger(fastest, fabsf(direction[a]) * volume.voxels_per_unit[a]);
    }
    near = larger(near, 0.0f);
    if (miss || !(far < kInfinity)) far = 0.0f;
    steps_per_voxel = 1.0f / larger(fastest * volume.step, 1e-6f);
  }

  // Every voxel nearer than `empty` is empty, so moving by empty - 1 of them stays outside.
  KILO_BOTH int32_t to_skip(int empty) const {
    return static_cast<int32_t>((empty - 1) * steps_per_voxel * 0.999f);
  }
};

}  // namespace kilo
