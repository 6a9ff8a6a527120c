// The networks of one cell on its samples: forward, and backward by recomputing the forward.
#pragma once
#include "kilo.h"

namespace kilo {

// Samples of all cells; `ray` gives the row of `directions` of a sample (null: the sample itself).
struct NetworkInputs {
  const float* local;       // [samples, 3]
  const float* directions;  // [rays, 3]
  const int32_t* ray;       // [samples]
};

// Nothing but linear layers lies between z and the inputs of the colour branch's hidden layer, so a
// cell's two matrices are multiplied once and its samples pass one layer less, forward and
// backward: feature' = [feature; its bias] (H + 1 rows), merged = feature' colour_hidden (+ bias).
template <int H>
constexpr int kMergedRows = (H / kPoints + 1) * kPoints;  // H + 1, rounded up as `dense` writes
template <int H>
constexpr int kMerged = kMergedRows<H> * H;

// Activations of a chunk. Encodings are one row per input, activations one row per sample.
template <int H>
struct Chunk {
  alignas(64) float position[64 * kChunk];  // 3 + 6 * 10 inputs and a row of ones
  alignas(64) float direction[64 * kChunk];
  alignas(64) float first[kChunk * H];
  alignas(64) float z[kChunk * H];
  alignas(64) float hidden[kChunk * H];
};

template <int H>
struct ChunkGradient {
  alignas(64) float raw[kChunk * 4];
  alignas(64) float hidden[kChunk * H];
  alignas(64) float z[kChunk * H];
  alignas(64) float first[kChunk * H];
};

// Gathers a chunk of n samples and encodes it; lanes behind the last sample are zero.
template <int H>
void load_chunk(const Shape& shape, const NetworkInputs& in, const int32_t* order, int n,
                Chunk<H>& c) {
  const int lanes = (n + kWidth - 1) / kWidth * kWidth;
  for (int p = 0; p < n; ++p) {
    const int64_t sample = order[p];
    const float* local = in.local + 3 * sample;
    const float* direction = in.directions + 3 * (in.ray == nullptr ? sample : in.ray[sample]);
    for (int axis = 0; axis < 3; ++axis) {
      c.position[axis * kChunk + p] = local[axis];
      c.direction[axis * kChunk + p] = direction[axis];
    }
  }
  for (int axis = 0; axis < 3; ++axis) {
    std::fill(c.position + axis * kChunk + n, c.position + axis * kChunk + lanes, 0.0f);
    std::fill(c.direction + axis * kChunk + n, c.direction + axis * kChunk + lanes, 0.0f);
  }
  encode(c.position, shape.position_frequencies, lanes);
  encode(c.direction, shape.direction_frequencies, lanes);
}

// Writes merged [H, H] and, as its next row, the bias of the merged layer.
template <int H>
void merge_layers(const Shape& shape, const float* w, float* merged) {
  dense<H, Rows<H>, Start::zero, End::linear>(H + 1, w + shape.feature(), H,
                                              w + shape.colour_hidden(), nullptr, merged);
  for (int o = 0; o < H; ++o) merged[H * H + o] += w[shape.colour_hidden_bias() + o];
}

constexpr int kFetchesPerChunk = 3;  // calls of Upcoming::fetch in forward_hidden

template <int H>
void forward_hidden(const Shape& shape, const float* w, const float* merged, int n, Chunk<H>& c,
                    Upcoming& next) {
  dense<H, Encoded, Start::bias, End::relu>(n, c.position, shape.position_inputs(), w,
                                            w + shape.position_bias(), c.first);
  next.fetch();
  dense<H, Rows<H>, Start::bias, End::relu>(n, c.first, H, w + shape.trunk(),
                                            w + shape.trunk_bias(), c.z);
  next.fetch();
  dense<H, Rows<H>, Start::bias, End::linear>(n, c.z, H, merged, merged + H * H, c.hidden);
  next.fetch();
  dense<H, Encoded, Start::previous, End::relu>(n, c.direction, shape.direction_inputs(),
                                                w + shape.colour_direction(), nullptr, c.hidden);
}

// Evaluates the samples order[0 .. n) of a cell with weights w: raw [samples, 4] and, for samples
// below z_count, the trunk z [z_count, H]. `merged` comes from merge_layers.
template <int H>
void forward_cell(const Shape& shape, const float* w, const float* merged, const NetworkInputs& in,
                  const int32_t* order, int64_t n, float* raw, float* z, int64_t z_count,
                  Upcoming next) {
  Chunk<H> c;
  const float* colour = w + shape.colour();
  const float* bias = w + shape.output_bias();
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, n - begin));
    load_chunk<H>(shape, in, order + begin, count, c);
    forward_hidden<H>(shape, w, merged, count, c, next);
    for (int p = 0; p < count; ++p) {
      const int64_t sample = order[begin + p];
      float* out = raw + 4 * sample;
      for (int j = 0; j < 3; ++j) out[j] = bias[j] + dot<H>(c.hidden + p * H, colour + j * H);
      out[3] = bias[3] + dot<H>(c.z + p * H, w + shape.density());
      if (sample < z_count) std::memcpy(z + sample * H, c.z + p * H, H * sizeof(float));
    }
  }
}

template <int H>
void transpose(const float* from, float* to) {
  for (int i = 0; i < H; ++i) {
    for (int o = 0; o < H; ++o) to[o * H + i] = from[i * H + o];
  }
}

// d = activation > 0 ? d : 0
inline void mask_by_relu(int64_t n, const float* activation, float* d) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const vf zero(0.0f);
    select(zero < vf::load(activation + i), vf::load(d + i), zero).store(d + i);
  }
}

// What the backward pass keeps for a cell besides its gradient.
template <int H>
struct CellScratch {
  alignas(64) float merged[kMerged<H>];
  alignas(64) float merged_transposed[H * H];
  alignas(64) float trunk_transposed[H * H];
  alignas(64) float d_merged[kMerged<H>];
};

// The gradients of one chunk's outputs -> those of its hidden layer and of the output layers.
template <int H>
void backward_outputs(const Shape& shape, const float* w, int n, const Chunk<H>& c,
                      ChunkGradient<H>& d, float* grad) {
  const float* colour = w + shape.colour();
  const vf zero(0.0f);
  for (int p = 0; p < n; ++p) {
    for (int o = 0; o < H; o += kWidth) {
      vf total = vf(d.raw[4 * p]) * vf::load(colour + o);
      total = fma(vf(d.raw[4 * p + 1]), vf::load(colour + H + o), total);
      total = fma(vf(d.raw[4 * p + 2]), vf::load(colour + 2 * H + o), total);
      select(zero < vf::load(c.hidden + p * H + o), total, zero).store(d.hidden + p * H + o);
    }
    for (int j = 0; j < 4; ++j) grad[shape.output_bias() + j] += d.raw[4 * p + j];
  }
  const int tail = (n + kPoints - 1) / kPoints * kPoints;
  std::fill(d.hidden + n * H, d.hidden + tail * H, 0.0f);
  for (int o = 0; o < H; o += kWidth) {
    vf sums[4];
    KILO_UNROLL for (int j = 0; j < 3; ++j) sums[j] = vf::load(grad + shape.colour() + j * H + o);
    sums[3] = vf::load(grad + shape.density() + o);
    for (int p = 0; p < n; ++p) {
      const vf hidden = vf::load(c.hidden + p * H + o);
      KILO_UNROLL for (int j = 0; j < 3; ++j) sums[j] = fma(vf(d.raw[4 * p + j]), hidden, sums[j]);
      sums[3] = fma(vf(d.raw[4 * p + 3]), vf::load(c.z + p * H + o), sums[3]);
    }
    KILO_UNROLL for (int j = 0; j < 3; ++j) sums[j].store(grad + shape.colour() + j * H + o);
    sums[3].store(grad + shape.density() + o);
  }
}

// One chunk, from d.hidden and what already stands in d.z (the gradient from the training head).
template <int H>
void backward_hidden(const Shape& shape, const float* w, CellScratch<H>& cell, int n,
                     const Chunk<H>& c, ChunkGradient<H>& d, float* grad) {
  // The rows of encoded inputs are followed by the bias, whose input is the row of ones.
  outer<H, Encoded>(n, c.direction, shape.direction_inputs() + 1, d.hidden,
                    grad + shape.colour_direction());
  outer<H, Rows<H>>(n, c.z, H, d.hidden, cell.d_merged);
  for (int p = 0; p < n; ++p) {
    const vf density(d.raw[4 * p + 3]);
    for (int o = 0; o < H; o += kWidth) {
      fma(density, vf::load(w + shape.density() + o), vf::load(d.z + p * H + o))
          .store(d.z + p * H + o);
    }
  }
  dense<H, Rows<H>, Start::previous, End::linear>(n, d.hidden, H, cell.merged_transposed, nullptr,
                                                  d.z);
  mask_by_relu(static_cast<int64_t>(n) * H, c.z, d.z);

  outer<H, Rows<H>>(n, c.first, H, d.z, grad + shape.trunk());
  sum_rows<H>(n, d.z, grad + shape.trunk_bias());
  dense<H, Rows<H>, Start::zero, End::linear>(n, d.z, H, cell.trunk_transposed, nullptr, d.first);
  mask_by_relu(static_cast<int64_t>(n) * H, c.first, d.first);
  outer<H, Encoded>(n, c.position, shape.position_inputs() + 1, d.first, grad);
}

// The gradient of the merged layer -> those of the two layers that it stands for.
template <int H>
void backward_merged(const Shape& shape, const float* w, CellScratch<H>& cell, float* grad) {
  std::memcpy(cell.d_merged + H * H, grad + shape.colour_hidden_bias(), H * sizeof(float));
  outer<H, Rows<H>>(H + 1, w + shape.feature(), H, cell.d_merged, grad + shape.colour_hidden());
  float* colour_transposed = cell.merged_transposed;
  transpose<H>(w + shape.colour_hidden(), colour_transposed);
  dense<H, Rows<H>, Start::zero, End::linear>(H + 1, cell.d_merged, H, colour_transposed, nullptr,
                                              cell.merged);
  std::memcpy(grad + shape.feature(), cell.merged, (H + 1) * H * sizeof(float));
}

// Writes the gradient of the samples order[0 .. n) to `grad`, the row of a cell. d_raw
// [samples, 4]; d_z [z_count, H] is the gradient that z receives from the training head.
template <int H>
void backward_cell(const Shape& shape, const float* w, const NetworkInputs& in,
                   const int32_t* order, int64_t n, const float* d_raw, const float* d_z,
                   int64_t z_count, float* grad, Upcoming next) {
  Chunk<H> c;
  ChunkGradient<H> d;
  CellScratch<H> cell;
  std::fill_n(grad, shape.parameters(), 0.0f);
  std::fill_n(cell.d_merged, kMerged<H>, 0.0f);
  merge_layers<H>(shape, w, cell.merged);
  transpose<H>(cell.merged, cell.merged_transposed);
  transpose<H>(w + shape.trunk(), cell.trunk_transposed);
  std::fill_n(c.position + shape.position_inputs() * kChunk, kChunk, 1.0f);
  std::fill_n(c.direction + shape.direction_inputs() * kChunk, kChunk, 1.0f);
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, n - begin));
    load_chunk<H>(shape, in, order + begin, count, c);
    forward_hidden<H>(shape, w, cell.merged, count, c, next);
    std::fill_n(d.z, (count + kPoints - 1) / kPoints * kPoints * H, 0.0f);
    for (int p = 0; p < count; ++p) {
      const int64_t sample = order[begin + p];
      std::memcpy(d.raw + 4 * p, d_raw + 4 * sample, 4 * sizeof(float));
      if (sample < z_count) std::memcpy(d.z + p * H, d_z + sample * H, H * sizeof(float));
    }
    backward_outputs<H>(shape, w, count, c, d, grad);
    backward_hidden<H>(shape, w, cell, count, c, d, grad);
  }
  backward_merged<H>(shape, w, cell, grad);
}

}  // namespace kilo
