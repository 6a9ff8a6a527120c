// One ray from a pixel to its colour, for one thread of a GPU: ray set-up, marching through the
// occupancy, the network of each sample's cell, compositing and an early end (KiloNeRF, section
// 3.3, without its sorting by network: the threads of a warp draw neighbouring pixels, so they
// mostly read the weights of the same cell, and a weight goes to all of them in one access).
// Everything here also runs on the CPU, where tests hold it to the float64 twin.
#pragma once
#include <cstring>

#include "kilo_both.h"

namespace kilo {

// A picture as it crosses the C ABI: `PictureRequest` in kilo_cuda.py, field by field. The pointers
// are to the device's memory, or to the host's for the function of the CPU.
struct PictureRequest {
  float box[6];  // lowest and highest corner
  int32_t voxels[3], cells[3];
  float step;
  int32_t hidden, position_frequencies, direction_frequencies;
  int32_t width, height;
  float stop_transmittance;
  double rotation[9];  // from the camera to the world, OpenGL axes
  double centre[3];
  double focal_px;
  const uint8_t* distance;
  const int32_t* cell_index;
  const float* weights;  // [cells, parameters]
  const float* merged;   // [cells, hidden + 1, hidden]: from z to the colour branch, and its bias
  float* rgba;           // [height, width, 4] premultiplied
  float* depth;          // [height, width]
};

// Four neighbours of an aligned row in one access.
struct Four {
  float v[4];
};

KILO_BOTH Four four(const float* at) {
#ifdef __CUDA_ARCH__
  const ::float4 v = __ldg(reinterpret_cast<const ::float4*>(at));
  return {{v.x, v.y, v.z, v.w}};
#else
  Four v;
  std::memcpy(&v, at, sizeof v);
  return v;
#endif
}

// Numbers of a thread that are found by a running index: on the device a column of the block's
// shared memory, since registers have no index. The loops over sums [H] are unrolled for that reason.
struct Column {
  float* at;
  int stride;
  KILO_BOTH float& operator[](int i) const { return at[i * stride]; }
};

template <int H>
KILO_BOTH void copy_row(const float* row, float* to) {
  KILO_UNROLL for (int o = 0; o < H; o += 4) {
    const Four w = four(row + o);
    KILO_UNROLL for (int j = 0; j < 4; ++j) to[o + j] = w.v[j];
  }
}

// sums += value * row
template <int H>
KILO_BOTH void add_row(float value, const float* row, float* sums) {
  KILO_UNROLL for (int o = 0; o < H; o += 4) {
    const Four w = four(row + o);
    KILO_UNROLL for (int j = 0; j < 4; ++j) sums[o + j] = fma(value, w.v[j], sums[o + j]);
  }
}

// values = sums = relu(sums)
template <int H>
KILO_BOTH void activate(float* sums, const Column& values) {
  KILO_UNROLL for (int o = 0; o < H; ++o) values[o] = sums[o] = larger(sums[o], 0.0f);
}

// sums += values matrix
template <int H>
KILO_BOTH void add_layer(const Column& values, const float* matrix, float* sums) {
  for (int i = 0; i < H; ++i) add_row<H>(values[i], matrix + i * H, sums);
}

// sums += encode(x) matrix
template <int H>
KILO_BOTH void add_encoded(const float* x, int frequencies, const float* matrix, float* sums) {
  for (int a = 0; a < 3; ++a) add_row<H>(x[a], matrix + a * H, sums);
  float sine[3] = {}, cosine[3] = {}, scale = 1.0f;
  for (int k = 0; k < frequencies; ++k, scale *= 2.0f) {
    const float* rows = matrix + (3 + 6 * k) * H;
    KILO_UNROLL for (int a = 0; a < 3; ++a) {
      octave(x[a], k, scale, sine[a], cosine[a]);
      add_row<H>(sine[a], rows + a * H, sums);
      add_row<H>(cosine[a], rows + (3 + a) * H, sums);
    }
  }
}

// start + sums . row
template <int H>
KILO_BOTH float output(const float* sums, const float* row, float start) {
  KILO_UNROLL for (int o = 0; o < H; o += 4) {
    const Four w = four(row + o);
    KILO_UNROLL for (int j = 0; j < 4; ++j) start = fma(sums[o + j], w.v[j], start);
  }
  return start;
}

// What a thread keeps of the sample that it is at.
struct Scratch {
  Column values;  // [H], between two layers
  Column along;   // [H], what the direction adds to the colour branch of the cell
};

// The networks of all cells.
template <int H>
struct Networks {
  Shape shape;
  const float* weights;
  const float* merged;

  // Writes `along`, which the samples of a ray in a cell share.
  KILO_BOTH void look_along(int32_t cell, const float* direction, const Scratch& scratch) const {
    float sums[H];
    copy_row<H>(merged_row(cell) + H * H, sums);
    add_encoded<H>(direction, shape.direction_frequencies, row(cell) + shape.colour_direction(),
                   sums);
    KILO_UNROLL for (int o = 0; o < H; ++o) scratch.along[o] = sums[o];
  }

  // Red, green, blue and density before their activations, at a place in the cell.
  KILO_BOTH void evaluate(int32_t cell, const float* local, const Scratch& scratch,
                          float* raw) const {
    const float* w = row(cell);
    const float* bias = w + shape.output_bias();
    float sums[H];
    copy_row<H>(w + shape.position_bias(), sums);
    add_encoded<H>(local, shape.position_frequencies, w, sums);
    activate<H>(sums, scratch.values);
    copy_row<H>(w + shape.trunk_bias(), sums);
    add_layer<H>(scratch.values, w + shape.trunk(), sums);
    activate<H>(sums, scratch.values);
    raw[3] = output<H>(sums, w + shape.density(), bias[3]);
    KILO_UNROLL for (int o = 0; o < H; ++o) sums[o] = scratch.along[o];
    add_layer<H>(scratch.values, merged_row(cell), sums);
    activate<H>(sums, scratch.values);
    KILO_UNROLL for (int j = 0; j < 3; ++j) {
      raw[j] = output<H>(sums, w + shape.colour() + j * H, bias[j]);
    }
  }

 private:
  KILO_BOTH const float* row(int32_t cell) const {
    return weights + cell * static_cast<int64_t>(shape.parameters());
  }
  KILO_BOTH const float* merged_row(int32_t cell) const {
    return merged + cell * static_cast<int64_t>((H + 1) * H);
  }
};

// Goes from candidate `next` to the first one in a filled voxel of a cell with a network, and
// behind it; false at the end of the box. Bit by bit the samples of `march` in kilo_torch.py.
KILO_BOTH bool next_sample(const Volume& volume, const Span& span, const float* origin,
                           const float* direction, int32_t& next, Sample& sample) {
  for (;;) {
    const float distance = span.near + (static_cast<float>(next) + 0.5f) * volume.step;
    if (!(distance < span.far)) return false;
    int32_t voxel = 0, cell = 0;
    float local[3];
    KILO_UNROLL for (int a = 0; a < 3; ++a) {
      const float inside = origin[a] + distance * direction[a] - volume.low[a];
      const float in_voxels = inside * volume.voxels_per_unit[a];
      const float in_cells = inside * volume.cells_per_unit[a];
      const int32_t c = static_cast<int32_t>(clamp(in_cells, 0.0f, volume.last_cell[a]));
      voxel = voxel * volume.voxels[a] +
              static_cast<int32_t>(clamp(in_voxels, 0.0f, volume.last_voxel[a]));
      cell = cell * volume.cells[a] + c;
      local[a] = clamp(2.0f * (in_cells - static_cast<float>(c)) - 1.0f, -1.0f, 1.0f);
    }
    const int empty = volume.distance[voxel];
    next += 1 + (empty > 0 ? span.to_skip(empty) : 0);
    const int32_t network = empty > 0 ? -1 : volume.cell_index[cell];
    if (network >= 0) {
      sample = {distance, network, voxel, {local[0], local[1], local[2]}};
      return true;
    }
  }
}

// sigmoid(x), and what is left of 1.
KILO_BOTH float sigmoid(float x, float& rest) {
  const float e = expf(-clamp(x, -kRawLimit, kRawLimit));
  const float inverse = 1.0f / (1.0f + e);
  rest = e * inverse;
  return inverse;
}

// Adds up a ray's colour (premultiplied, with opacity) and depth; it ends where less light than
// `stop` passes. One step's opacity is 1 - exp(-softplus(x)) = sigmoid(x).
template <int H>
KILO_BOTH void trace(const Volume& volume, const Networks<H>& networks, const float* origin,
                     const float* direction, float stop, const Scratch& scratch, float* rgba,
                     float* depth) {
  const Span span(volume, origin, direction);
  Sample sample;
  float colour[3] = {}, far = 0.0f, transmittance = 1.0f;
  int32_t last = -1;
  for (int32_t next = 0; next_sample(volume, span, origin, direction, next, sample);) {
    if (sample.cell != last) networks.look_along(sample.cell, direction, scratch);
    last = sample.cell;
    float raw[4], passed, unused;
    networks.evaluate(sample.cell, sample.local, scratch, raw);
    const float weight = transmittance * sigmoid(raw[3], passed);
    KILO_UNROLL for (int j = 0; j < 3; ++j) colour[j] += weight * sigmoid(raw[j], unused);
    far += weight * sample.distance;
    transmittance *= passed;
    if (transmittance < stop) break;
  }
  for (int j = 0; j < 3; ++j) rgba[j] = colour[j];
  rgba[3] = 1.0f - transmittance;
  *depth = far;
}

// Everything that a thread needs to draw a pixel.
template <int H>
struct Picture {
  Volume volume;
  Networks<H> networks;
  PictureRequest request;

  explicit Picture(const PictureRequest& r)
      : volume(r.box, r.voxels, r.distance, r.cells, r.cell_index, r.step),
        networks{{H, r.position_frequencies, r.direction_frequencies}, r.weights, r.merged},
        request(r) {}

  // The ray of `Cameras.rays`, in double precision: what is rounded once is the same everywhere.
  KILO_BOTH void ray(int x, int y, float* origin, float* direction) const {
    const double right = (x + 0.5 - 0.5 * request.width) / request.focal_px;
    const double up = (0.5 * request.height - (y + 0.5)) / request.focal_px;
    const double inverse = 1.0 / sqrt(right * right + up * up + 1.0);
    for (int a = 0; a < 3; ++a) {
      const double* axes = request.rotation + 3 * a;
      origin[a] = static_cast<float>(request.centre[a]);
      direction[a] = static_cast<float>((axes[0] * right + axes[1] * up - axes[2]) * inverse);
    }
  }

  KILO_BOTH void draw(int x, int y, const Scratch& scratch) const {
    float origin[3], direction[3];
    ray(x, y, origin, direction);
    const int64_t pixel = static_cast<int64_t>(y) * request.width + x;
    trace(volume, networks, origin, direction, request.stop_transmittance, scratch,
          request.rgba + 4 * pixel, request.depth + pixel);
  }
};

}  // namespace kilo
