// Building blocks of the student's kernels: layout of a network, dense layers on small chunks of
// samples, encodings, and sorting of samples by cell.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kilo_both.h"
#include "loom/parallel.h"
#include "loom/simd.h"

namespace kilo {

using loom::vf;

constexpr int kWidth = vf::width;
constexpr int kChunk = 32;            // samples of one cell that are evaluated together
constexpr int kFeatures = 128;        // outputs of the training head
constexpr float kLive = 1e-3f;        // no gradient behind a lower transmittance
// Register tile of a dense layer: kPoints rows of `columns` outputs. 8 x 2 (or 8 x 3) accumulators
// fill the 32 registers of AVX-512; the others have 16.
constexpr int kPoints = kWidth == 16 ? 8 : 4;
template <int Columns>
constexpr int kTile = kWidth == 16 && Columns % 48 == 0 ? 3 : 2;

// Brings the weights of the next cell into the cache, a few lines between layers: a cell's samples
// last a few microseconds, as long as its row takes to arrive. With 2,000 cells of 70 samples this
// takes 19 % off the forward and 9 % off the backward pass.
class Upcoming {
 public:
  Upcoming() = default;
  // `calls` of fetch() are expected.
  Upcoming(const float* row, int64_t floats, int64_t calls)
      : at_(row), end_(row + floats), share_(floats / std::max<int64_t>(1, calls) + 16) {}
  void fetch() {
    for (const float* stop = at_ + std::min(share_, end_ - at_); at_ < stop; at_ += 16) {
      __builtin_prefetch(at_, 0, 2);
    }
  }

 private:
  const float* at_ = nullptr;
  const float* end_ = nullptr;
  int64_t share_ = 0;
};

// What a dense layer starts from, and what becomes of its sums.
enum class Start { zero, bias, previous };
enum class End { linear, relu };

// How the inputs of a layer lie in memory; constants, so that they become part of an address.
template <int Point, int Input>
struct Strides {
  static constexpr int point = Point, input = Input;
};
using Encoded = Strides<1, kChunk>;  // one row per input
template <int H>
using Rows = Strides<H, 1>;          // one row per sample

// y[p][o] = end(start + sum_i x[p, i] w[i][o]) for p < points, rounded up to kPoints; y and w have
// rows of Columns floats.
template <int Columns, class X, Start start, End end>
void dense(int points, const float* x, int inputs, const float* w, const float* bias, float* y) {
  constexpr int V = kTile<Columns>;
  for (int column = 0; column < Columns; column += V * kWidth) {
    for (int p0 = 0; p0 < points; p0 += kPoints) {
      vf sums[kPoints][V];
      KILO_UNROLL for (int p = 0; p < kPoints; ++p) {
        KILO_UNROLL for (int v = 0; v < V; ++v) {
          const int o = column + v * kWidth;
          if (start == Start::zero) sums[p][v] = vf(0.0f);
          if (start == Start::bias) sums[p][v] = vf::load(bias + o);
          if (start == Start::previous) sums[p][v] = vf::load(y + (p0 + p) * Columns + o);
        }
      }
      const float* from = x + p0 * X::point;
      const float* row = w + column;
      for (int i = 0; i < inputs; ++i, from += X::input, row += Columns) {
        vf weights[V];
        KILO_UNROLL for (int v = 0; v < V; ++v) weights[v] = vf::load(row + v * kWidth);
        KILO_UNROLL for (int p = 0; p < kPoints; ++p) {
          const vf value(from[p * X::point]);
          KILO_UNROLL for (int v = 0; v < V; ++v) {
            sums[p][v] = fma(value, weights[v], sums[p][v]);
          }
        }
      }
      KILO_UNROLL for (int p = 0; p < kPoints; ++p) {
        KILO_UNROLL for (int v = 0; v < V; ++v) {
          vf sum = end == End::relu ? max(sums[p][v], vf(0.0f)) : sums[p][v];
          sum.store(y + (p0 + p) * Columns + column + v * kWidth);
        }
      }
    }
  }
}

// dw[i][o] += sum_p x[p, i] dy[p][o], for Inputs consecutive i.
template <int Columns, class X, int Inputs>
void outer_tile(int points, const float* x, const float* dy, float* dw) {
  constexpr int V = kTile<Columns>;
  for (int column = 0; column < Columns; column += V * kWidth) {
    vf sums[Inputs][V];
    KILO_UNROLL for (int i = 0; i < Inputs; ++i) {
      KILO_UNROLL for (int v = 0; v < V; ++v) {
        sums[i][v] = vf::load(dw + i * Columns + column + v * kWidth);
      }
    }
    const float* from = x;
    const float* gradient = dy + column;
    for (int p = 0; p < points; ++p, from += X::point, gradient += Columns) {
      vf d[V];
      KILO_UNROLL for (int v = 0; v < V; ++v) d[v] = vf::load(gradient + v * kWidth);
      KILO_UNROLL for (int i = 0; i < Inputs; ++i) {
        const vf value(from[i * X::input]);
        KILO_UNROLL for (int v = 0; v < V; ++v) sums[i][v] = fma(value, d[v], sums[i][v]);
      }
    }
    KILO_UNROLL for (int i = 0; i < Inputs; ++i) {
      KILO_UNROLL for (int v = 0; v < V; ++v) {
        sums[i][v].store(dw + i * Columns + column + v * kWidth);
      }
    }
  }
}

// The weight gradient of a dense layer: all inputs in tiles of kPoints, the rest in powers of two.
template <int Columns, class X>
void outer(int points, const float* x, int inputs, const float* dy, float* dw) {
  int i = 0;
  for (; i + kPoints <= inputs; i += kPoints) {
    outer_tile<Columns, X, kPoints>(points, x + i * X::input, dy, dw + i * Columns);
  }
  if (kPoints > 4 && i + 4 <= inputs) {
    outer_tile<Columns, X, 4>(points, x + i * X::input, dy, dw + i * Columns);
    i += 4;
  }
  if (i + 2 <= inputs) {
    outer_tile<Columns, X, 2>(points, x + i * X::input, dy, dw + i * Columns);
    i += 2;
  }
  if (i < inputs) {
    outer_tile<Columns, X, 1>(points, x + i * X::input, dy, dw + i * Columns);
  }
}

// The bias gradient of a dense layer: db[o] += sum_p dy[p][o].
template <int Columns>
void sum_rows(int points, const float* dy, float* db) {
  for (int o = 0; o < Columns; o += kWidth) {
    vf total = vf::load(db + o);
    for (int p = 0; p < points; ++p) total += vf::load(dy + p * Columns + o);
    total.store(db + o);
  }
}

template <int N>
float dot(const float* a, const float* b) {
  vf total = vf::load(a) * vf::load(b);
  KILO_UNROLL for (int i = kWidth; i < N; i += kWidth) {
    total = fma(vf::load(a + i), vf::load(b + i), total);
  }
  return sum(total);
}

// Encodes the first `lanes` columns of rows 0..2 into rows 3..: for octave k, three rows of
// sin(2^k x) and three of cos(2^k x).
inline void encode(float* rows, int frequencies, int lanes) {
  for (int p = 0; p < lanes; p += kWidth) {
    for (int axis = 0; axis < 3; ++axis) {
      float* column = rows + axis * kChunk + p;
      const vf x = vf::load(column);
      vf sine, cosine;
      float scale = 1.0f;
      for (int k = 0; k < frequencies; ++k, scale *= 2.0f) {
        octave(x, k, scale, sine, cosine);
        sine.store(column + (3 + 6 * k) * kChunk);
        cosine.store(column + (6 + 6 * k) * kChunk);
      }
    }
  }
}

// Stable counting sort of the samples by cell: those of cell c are order[start[c] .. start[c + 1]).
// Samples with a negative cell, or that are not `live` where that is given, are left out.
inline void sort_by_cell(const int32_t* cell, const uint8_t* live, int64_t samples, int64_t cells,
                         int32_t* order, int32_t* start) {
  std::fill(start, start + cells + 1, 0);
  auto counts = [&](int64_t s) { return cell[s] >= 0 && (live == nullptr || live[s] != 0); };
  for (int64_t s = 0; s < samples; ++s) {
    if (counts(s)) ++start[cell[s] + 1];
  }
  for (int64_t c = 0; c < cells; ++c) start[c + 1] += start[c];
  std::vector<int32_t> next(start, start + cells);
  for (int64_t s = 0; s < samples; ++s) {
    if (counts(s)) order[next[cell[s]]++] = static_cast<int32_t>(s);
  }
}

}  // namespace kilo
