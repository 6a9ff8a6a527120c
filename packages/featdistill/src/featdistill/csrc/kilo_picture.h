// The networks of a cell for pictures, where nothing has to be kept for a gradient. A ray crosses a
// cell in several samples, which share its direction: that part of the colour branch is computed
// once for each of these runs.
#pragma once
#include "kilo.h"
#include "kilo_network.h"

namespace kilo {

// The samples of a chunk, encoded; `run` is the column of `direction` that a sample belongs to.
struct PictureChunk {
  alignas(64) float position[64 * kChunk];
  alignas(64) float direction[64 * kChunk];
  uint8_t run[kChunk];
  int runs;

  // Gathers n samples; lanes behind the last one are zero.
  void load(const Shape& shape, const NetworkInputs& in, const int32_t* order, int n) {
    int32_t last = -1;
    runs = 0;
    for (int p = 0; p < n; ++p) {
      const int64_t sample = order[p];
      const int32_t ray = in.ray[sample];
      for (int a = 0; a < 3; ++a) position[a * kChunk + p] = in.local[3 * sample + a];
      if (ray != last) {
        const float* along = in.directions + 3 * static_cast<int64_t>(ray);
        for (int a = 0; a < 3; ++a) direction[a * kChunk + runs] = along[a];
        ++runs;
        last = ray;
      }
      run[p] = static_cast<uint8_t>(runs - 1);
    }
    encode_columns(position, shape.position_frequencies, n);
    encode_columns(direction, shape.direction_frequencies, runs);
  }

 private:
  static void encode_columns(float* rows, int frequencies, int n) {
    const int lanes = (n + kWidth - 1) / kWidth * kWidth;
    for (int a = 0; a < 3; ++a) {
      std::fill(rows + a * kChunk + n, rows + a * kChunk + lanes, 0.0f);
    }
    encode(rows, frequencies, lanes);
  }
};

// All networks in single precision: the weights as they are, and the merged layers.
template <int H>
class PictureNetworks {
 public:
  PictureNetworks(const Shape& shape, const float* weights, int64_t cells, int threads)
      : shape_(shape), weights_(weights), merged_(cells * kMerged<H>) {
    loom::parallel_items(cells, threads, [&](int64_t cell, int) {
      merge_layers<H>(shape_, row(cell), &merged_[cell * kMerged<H>]);
    });
  }

  // Evaluates the samples order[0 .. n) of a cell: raw [samples, 4].
  void forward(int64_t cell, const NetworkInputs& in, const int32_t* order, int64_t n,
               float* raw) const {
    PictureChunk c;
    alignas(64) float first[kChunk * H], z[kChunk * H], along[kChunk * H], hidden[kChunk * H];
    const float* w = row(cell);
    const float* merged = &merged_[cell * kMerged<H>];
    const float* bias = w + shape_.output_bias();
    for (int64_t begin = 0; begin < n; begin += kChunk) {
      const int count = static_cast<int>(std::min<int64_t>(kChunk, n - begin));
      c.load(shape_, in, order + begin, count);
      dense<H, Encoded, Start::bias, End::relu>(count, c.position, shape_.position_inputs(), w,
                                                w + shape_.position_bias(), first);
      dense<H, Rows<H>, Start::bias, End::relu>(count, first, H, w + shape_.trunk(),
                                                w + shape_.trunk_bias(), z);
      dense<H, Encoded, Start::bias, End::linear>(c.runs, c.direction, shape_.direction_inputs(),
                                                  w + shape_.colour_direction(), merged + H * H,
                                                  along);
      for (int p = 0; p < kChunk; ++p) {
        const int run = p < count ? c.run[p] : 0;
        std::memcpy(hidden + p * H, along + run * H, H * sizeof(float));
      }
      dense<H, Rows<H>, Start::previous, End::relu>(count, z, H, merged, nullptr, hidden);
      for (int p = 0; p < count; ++p) {
        float* out = raw + 4 * static_cast<int64_t>(order[begin + p]);
        for (int j = 0; j < 3; ++j) {
          out[j] = bias[j] + dot<H>(hidden + p * H, w + shape_.colour() + j * H);
        }
        out[3] = bias[3] + dot<H>(z + p * H, w + shape_.density());
      }
    }
  }

 private:
  const float* row(int64_t cell) const { return weights_ + cell * shape_.parameters(); }

  Shape shape_;
  const float* weights_;
  std::vector<float> merged_;
};

}  // namespace kilo
