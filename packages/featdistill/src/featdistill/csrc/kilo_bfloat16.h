// The networks of a cell for pictures, with products in bfloat16 and sums in single precision: two
// products per lane and instruction (vdpbf16ps), and half the memory for weights. On trained LEGO
// students no colour moves by more than 2/255. Needs a processor with AVX512_BF16 and GCC.
#pragma once
#include "kilo_picture.h"

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 10
#define KILO_BFLOAT16 1
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512bf16")

namespace kilo {

// Two inputs side by side in 32 bits, as vdpbf16ps multiplies them.
using Pair = uint32_t;

inline int pairs_of(int inputs) { return (inputs + 1) / 2; }

// 16 pairs (a[i], b[i]).
inline __m512i pair_up(__m512 a, __m512 b) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// The rows 2 i and 2 i + 1 of a matrix [inputs, 32] become row i of the result [pairs, 32]; a
// missing last row is zero.
inline void pair_rows(const float* rows, int inputs, Pair* out) {
  for (int i = 0; i < inputs; i += 2, out += 32) {
    for (int o = 0; o < 32; o += 16) {
      const float* a = rows + i * 32 + o;
      const __m512 b = i + 1 < inputs ? _mm512_loadu_ps(a + 32) : _mm512_setzero_ps();
      _mm512_storeu_si512(out + o, pair_up(_mm512_loadu_ps(a), b));
    }
  }
}

enum class Keep { pairs_of_relu, floats };

// y[p] = start[p] + sum_i x[p, i] w[i] for p < points, rounded up to 8: pairs of its rectified
// outputs [p, 16], or floats [p, 32].
template <class X, Keep keep>
void dense_pairs(int points, const Pair* x, int pairs, const Pair* w, const float* start,
                 int start_stride, void* y) {
  for (int p0 = 0; p0 < points; p0 += 8) {
    __m512 sums[8][2];
    KILO_UNROLL for (int p = 0; p < 8; ++p) {
      KILO_UNROLL for (int v = 0; v < 2; ++v) {
        sums[p][v] = _mm512_loadu_ps(start + (p0 + p) * start_stride + 16 * v);
      }
    }
    const Pair* from = x + p0 * X::point;
    const Pair* row = w;
    for (int i = 0; i < pairs; ++i, from += X::input, row += 32) {
      const __m512bh w0 = (__m512bh)_mm512_loadu_si512(row);
      const __m512bh w1 = (__m512bh)_mm512_loadu_si512(row + 16);
      KILO_UNROLL for (int p = 0; p < 8; ++p) {
        const __m512bh value = (__m512bh)_mm512_set1_epi32(static_cast<int>(from[p * X::point]));
        sums[p][0] = _mm512_dpbf16_ps(sums[p][0], value, w0);
        sums[p][1] = _mm512_dpbf16_ps(sums[p][1], value, w1);
      }
    }
    KILO_UNROLL for (int p = 0; p < 8; ++p) {
      if (keep == Keep::floats) {
        float* to = static_cast<float*>(y) + (p0 + p) * 32;
        _mm512_storeu_ps(to, sums[p][0]);
        _mm512_storeu_ps(to + 16, sums[p][1]);
      } else {
        const __m512 zero = _mm512_setzero_ps();
        const __m512 low = _mm512_max_ps(sums[p][0], zero), high = _mm512_max_ps(sums[p][1], zero);
        _mm512_storeu_si512(static_cast<Pair*>(y) + (p0 + p) * 16,
                            (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
    }
  }
}

// The sums of the lanes of four vectors.
inline __m128 sum_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d ab2 = _mm512_castps_pd(ab), cd2 = _mm512_castps_pd(cd);
  const __m512 four = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)),
                                    _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

// All networks of hidden width 32, packed.
class Bfloat16Networks {
 public:
  static bool available() { return __builtin_cpu_supports("avx512bf16"); }

  Bfloat16Networks(const Shape& shape, const float* weights, int64_t cells, int threads)
      : shape_(shape), position_pairs_(pairs_of(shape.position_inputs())),
        direction_pairs_(pairs_of(shape.direction_inputs())),
        stride_(32 * (position_pairs_ + direction_pairs_ + 32 + 2) + 128), rows_(cells * stride_) {
    loom::parallel_items(cells, threads, Packing{this, weights});
  }

  // Evaluates the samples order[0 .. n) of a cell: raw [samples, 4].
  void forward(int64_t cell, const NetworkInputs& in, const int32_t* order, int64_t n,
               float* raw) const {
    PictureChunk c;
    alignas(64) Pair position[32 * kChunk], direction[32 * kChunk];
    alignas(64) Pair first[kChunk * 16], z[kChunk * 16], hidden[kChunk * 16];
    alignas(64) float along[kChunk * 32], start[kChunk * 32];
    const Row row = row_of(cell);
    const __m512bh red = (__m512bh)_mm512_loadu_si512(row.outputs);
    const __m512bh green = (__m512bh)_mm512_loadu_si512(row.outputs + 16);
    const __m512bh blue = (__m512bh)_mm512_loadu_si512(row.outputs + 32);
    const __m512bh density = (__m512bh)_mm512_loadu_si512(row.outputs + 48);
    const __m128 bias = _mm_loadu_ps(row.biases + 96);
    const __m512 zero = _mm512_setzero_ps();
    for (int64_t begin = 0; begin < n; begin += kChunk) {
      const int count = static_cast<int>(std::min<int64_t>(kChunk, n - begin));
      c.load(shape_, in, order + begin, count);
      pair_rows(c.position, shape_.position_inputs(), position);
      pair_rows(c.direction, shape_.direction_inputs(), direction);
      dense_pairs<Encoded, Keep::pairs_of_relu>(count, position, position_pairs_, row.position,
                                                row.biases, 0, first);
      dense_pairs<Rows<16>, Keep::pairs_of_relu>(count, first, 16, row.trunk, row.biases + 32, 0,
                                                 z);
      dense_pairs<Encoded, Keep::floats>(c.runs, direction, direction_pairs_, row.direction,
                                         row.biases + 64, 0, along);
      for (int p = 0; p < kChunk; ++p) {
        const int run = p < count ? c.run[p] : 0;
        std::memcpy(start + p * 32, along + run * 32, 32 * sizeof(float));
      }
      dense_pairs<Rows<16>, Keep::pairs_of_relu>(count, z, 16, row.merged, start, 32, hidden);
      for (int p = 0; p < count; ++p) {
        const __m512bh h = (__m512bh)_mm512_loadu_si512(hidden + p * 16);
        const __m512bh t = (__m512bh)_mm512_loadu_si512(z + p * 16);
        const __m128 out = sum_lanes(
            _mm512_dpbf16_ps(zero, h, red), _mm512_dpbf16_ps(zero, h, green),
            _mm512_dpbf16_ps(zero, h, blue), _mm512_dpbf16_ps(zero, t, density));
        _mm_storeu_ps(raw + 4 * static_cast<int64_t>(order[begin + p]), _mm_add_ps(out, bias));
      }
    }
  }

 private:
  // Where the parts of a cell's row lie.
  struct Row {
    Pair *position, *direction, *trunk, *merged, *outputs;
    float* biases;  // [96] of the three layers, [4] of the outputs
  };

  Row row_of(int64_t cell) const {
    Pair* at = const_cast<Pair*>(rows_.data()) + cell * stride_;
    Row row;
    row.position = at;
    row.direction = row.position + 32 * position_pairs_;
    row.trunk = row.direction + 32 * direction_pairs_;
    row.merged = row.trunk + 512;
    row.outputs = row.merged + 512;
    row.biases = reinterpret_cast<float*>(row.outputs + 64);
    return row;
  }

  void pack(int64_t cell, const float* w) {
    const Row row = row_of(cell);
    alignas(64) float merged[kMerged<32>], outputs[8 * 32] = {};
    merge_layers<32>(shape_, w, merged);
    pair_rows(w, shape_.position_inputs(), row.position);
    pair_rows(w + shape_.colour_direction(), shape_.direction_inputs(), row.direction);
    pair_rows(w + shape_.trunk(), 32, row.trunk);
    pair_rows(merged, 32, row.merged);
    std::memcpy(outputs, w + shape_.colour(), 3 * 32 * sizeof(float));
    std::memcpy(outputs + 3 * 32, w + shape_.density(), 32 * sizeof(float));
    for (int j = 0; j < 4; ++j) {
      const __m512 low = _mm512_loadu_ps(outputs + j * 32);
      const __m512 high = _mm512_loadu_ps(outputs + j * 32 + 16);
      _mm512_storeu_si512(row.outputs + j * 16, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    std::memcpy(row.biases, w + shape_.position_bias(), 32 * sizeof(float));
    std::memcpy(row.biases + 32, w + shape_.trunk_bias(), 32 * sizeof(float));
    std::memcpy(row.biases + 64, merged + 32 * 32, 32 * sizeof(float));
    std::memcpy(row.biases + 96, w + shape_.output_bias(), 4 * sizeof(float));
  }

  struct Packing {
    Bfloat16Networks* networks;
    const float* weights;
    void operator()(int64_t cell, int) const {
      networks->pack(cell, weights + cell * networks->shape_.parameters());
    }
  };

  Shape shape_;
  int position_pairs_, direction_pairs_;
  int64_t stride_;
  std::vector<Pair> rows_;
};

}  // namespace kilo

#pragma GCC pop_options
#endif
