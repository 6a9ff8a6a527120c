// One gaussian on one image plane, forward and backward: the arithmetic of models/projection.py and
// models/spherical_harmonics.py for a single row, with the derivatives written out.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace raster {

constexpr int kTile = 16;
constexpr int kSh = 16;
constexpr float kNear = 0.2f;
constexpr float kBlur = 0.3f;
constexpr float kMargin = 1.3f;
constexpr float kAlphaMin = 1.0f / 255.0f;
constexpr float kAlphaMax = 0.99f;
constexpr float kTransmittanceMin = 1e-4f;

// A pinhole camera; `rotation` and `translation` take world points to x right, y down, z forward.
struct View {
  float rotation[9];
  float translation[3];
  float center[3];
  float focal;
  int32_t width, height;
  int32_t columns() const { return (width + kTile - 1) / kTile; }
  int32_t rows() const { return (height + kTile - 1) / kTile; }
};

// 64 bytes: what blending needs of a gaussian.
struct Splat {
  float u, v;              // centre in pixels
  float xx, xy, yy;        // conic
  float opacity;
  float lowest_power;      // ln(1/255 / opacity): below it the gaussian is skipped
  float extent_x, extent_y;  // half size of the region where it is not
  float feature[4];        // red, green, blue, depth
  float unused[3];
};

// Tiles that a splat touches: columns [x0, x1), rows [y0, y1).
struct Rect {
  int32_t x0, y0, x1, y1;
  int64_t count() const { return static_cast<int64_t>(x1 - x0) * (y1 - y0); }
};

// Raw parameters of one gaussian, or the gradients of them.
template <class Float>
struct Row {
  Float *mean, *log_scale, *quaternion, *logit, *sh;
};

inline void multiply(const float* m, const float* v, float* out) {
  for (int i = 0; i < 3; ++i) out[i] = m[3 * i] * v[0] + m[3 * i + 1] * v[1] + m[3 * i + 2] * v[2];
}

inline void add_transposed(const float* m, const float* v, float* out) {
  for (int i = 0; i < 3; ++i) out[i] += m[i] * v[0] + m[3 + i] * v[1] + m[6 + i] * v[2];
}

// Real spherical harmonics to degree 3 in the order of 3DGS.
inline void sh_basis(const float* d, float* out) {
  const float x = d[0], y = d[1], z = d[2], xx = x * x, yy = y * y, zz = z * z;
  out[0] = 0.28209479177387814f;
  out[1] = -0.4886025119029199f * y;
  out[2] = 0.4886025119029199f * z;
  out[3] = -0.4886025119029199f * x;
  out[4] = 1.0925484305920792f * x * y;
  out[5] = -1.0925484305920792f * y * z;
  out[6] = 0.31539156525252005f * (2 * zz - xx - yy);
  out[7] = -1.0925484305920792f * x * z;
  out[8] = 0.5462742152960396f * (xx - yy);
  out[9] = -0.5900435899266435f * y * (3 * xx - yy);
  out[10] = 2.890611442640554f * x * y * z;
  out[11] = -0.4570457994644658f * y * (4 * zz - xx - yy);
  out[12] = 0.3731763325901154f * z * (2 * zz - 3 * xx - 3 * yy);
  out[13] = -0.4570457994644658f * x * (4 * zz - xx - yy);
  out[14] = 1.445305721320277f * z * (xx - yy);
  out[15] = -0.5900435899266435f * x * (xx - 3 * yy);
}

// Adds sum_k weight[k] dY_k/d(x, y, z) to `out`.
inline void sh_basis_backward(const float* d, const float* weight, float* out) {
  const float x = d[0], y = d[1], z = d[2], xx = x * x, yy = y * y, zz = z * z;
  const float* w = weight;
  const float c1 = 0.4886025119029199f, c20 = 1.0925484305920792f, c21 = 0.31539156525252005f;
  const float c22 = 0.5462742152960396f, c30 = 0.5900435899266435f, c31 = 2.890611442640554f;
  const float c32 = 0.4570457994644658f, c33 = 0.3731763325901154f, c34 = 1.445305721320277f;
  out[0] += -c1 * w[3] + c20 * (y * w[4] - z * w[7]) - 2 * c21 * x * w[6] + 2 * c22 * x * w[8] -
            6 * c30 * x * y * w[9] + c31 * y * z * w[10] + 2 * c32 * x * y * w[11] -
            6 * c33 * x * z * w[12] - c32 * (4 * zz - 3 * xx - yy) * w[13] +
            2 * c34 * x * z * w[14] - 3 * c30 * (xx - yy) * w[15];
  out[1] += -c1 * w[1] + c20 * (x * w[4] - z * w[5]) - 2 * c21 * y * w[6] - 2 * c22 * y * w[8] -
            3 * c30 * (xx - yy) * w[9] + c31 * x * z * w[10] -
            c32 * (4 * zz - xx - 3 * yy) * w[11] - 6 * c33 * y * z * w[12] +
            2 * c32 * x * y * w[13] - 2 * c34 * y * z * w[14] + 6 * c30 * x * y * w[15];
  out[2] += c1 * w[2] - c20 * (y * w[5] + x * w[7]) + 4 * c21 * z * w[6] + c31 * x * y * w[10] -
            8 * c32 * y * z * w[11] + 3 * c33 * (2 * zz - xx - yy) * w[12] -
            8 * c32 * x * z * w[13] + c34 * (xx - yy) * w[14];
}

// Everything on the way from raw parameters to the conic that the way back needs again.
struct Projection {
  float center[3];     // in the camera's frame
  float rotation[9];   // of the normalised quaternion
  float quaternion[4];  // normalised
  float norm;          // of the raw quaternion
  float scale[3];
  float k, slope[2];   // focal / z, clamped centre / z
  bool clamped[2];
  float screen[6];     // J W, 2 x 3
  float axes[6];       // J W R S, 2 x 3
  float direction[3], distance;
  float xx, xy, yy;    // covariance with the blur

  bool in_front(const View& view, const float* mean) {
    multiply(view.rotation, mean, center);
    for (int i = 0; i < 3; ++i) center[i] += view.translation[i];
    return center[2] > kNear;
  }

  void compute(const View& view, const Row<const float>& row) {
    const float* q = row.quaternion;
    norm = std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    for (int i = 0; i < 4; ++i) quaternion[i] = q[i] / std::max(norm, 1e-12f);
    const float w = quaternion[0], x = quaternion[1], y = quaternion[2], z = quaternion[3];
    const float r[9] = {1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)};
    std::copy(r, r + 9, rotation);
    for (int i = 0; i < 3; ++i) scale[i] = std::exp(row.log_scale[i]);

    k = view.focal / center[2];
    const float limit[2] = {kMargin * 0.5f * view.width / view.focal,
                            kMargin * 0.5f * view.height / view.focal};
    for (int i = 0; i < 2; ++i) {
      const float raw = center[i] / center[2];
      slope[i] = std::min(std::max(raw, -limit[i]), limit[i]);
      clamped[i] = slope[i] != raw;
      for (int j = 0; j < 3; ++j)
        screen[3 * i + j] = k * (view.rotation[3 * i + j] - slope[i] * view.rotation[6 + j]);
    }
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 3; ++j)
        axes[3 * i + j] = scale[j] * (screen[3 * i] * r[j] + screen[3 * i + 1] * r[3 + j] +
                                      screen[3 * i + 2] * r[6 + j]);
    xx = axes[0] * axes[0] + axes[1] * axes[1] + axes[2] * axes[2] + kBlur;
    xy = axes[0] * axes[3] + axes[1] * axes[4] + axes[2] * axes[5];
    yy = axes[3] * axes[3] + axes[4] * axes[4] + axes[5] * axes[5] + kBlur;
  }

  void look(const View& view, const float* mean) {
    for (int i = 0; i < 3; ++i) direction[i] = mean[i] - view.center[i];
    distance = std::sqrt(direction[0] * direction[0] + direction[1] * direction[1] +
                         direction[2] * direction[2]);
    for (float& d : direction) d /= distance;
  }
};

// Returns the tiles that the gaussian touches, none if it cannot be seen. Without `sh` it is black.
inline Rect project(const View& view, const Row<const float>& row, Splat& splat) {
  const Rect nothing{0, 0, 0, 0};
  Projection p;
  if (!p.in_front(view, row.mean)) return nothing;
  splat.opacity = 1.0f / (1.0f + std::exp(-row.logit[0]));
  if (splat.opacity <= kAlphaMin) return nothing;
  p.compute(view, row);
  splat.u = p.k * p.center[0] + 0.5f * view.width;
  splat.v = p.k * p.center[1] + 0.5f * view.height;
  const float inverse = 1.0f / (p.xx * p.yy - p.xy * p.xy);
  splat.xx = p.yy * inverse;
  splat.xy = -p.xy * inverse;
  splat.yy = p.xx * inverse;
  splat.lowest_power = std::log(kAlphaMin / splat.opacity);
  splat.extent_x = std::sqrt(-2 * splat.lowest_power * p.xx);
  splat.extent_y = std::sqrt(-2 * splat.lowest_power * p.yy);
  auto tile = [](float pixel, int last) {
    return static_cast<int32_t>(std::min(std::max(std::floor(pixel / kTile), 0.0f), float(last)));
  };
  if (!(splat.u + splat.extent_x > 0 && splat.u - splat.extent_x < view.width &&
        splat.v + splat.extent_y > 0 && splat.v - splat.extent_y < view.height))
    return nothing;
  const int right = view.columns() - 1, bottom = view.rows() - 1;
  const Rect rect{tile(splat.u - splat.extent_x, right), tile(splat.v - splat.extent_y, bottom),
                  tile(splat.u + splat.extent_x, right) + 1,
                  tile(splat.v + splat.extent_y, bottom) + 1};
  for (int c = 0; c < 3; ++c) splat.feature[c] = 0.0f;
  splat.feature[3] = p.center[2];
  if (row.sh) {
    p.look(view, row.mean);
    float basis[kSh];
    sh_basis(p.direction, basis);
    float color[3] = {0.5f, 0.5f, 0.5f};
    for (int k = 0; k < kSh; ++k)
      for (int c = 0; c < 3; ++c) color[c] += basis[k] * row.sh[3 * k + c];
    for (int c = 0; c < 3; ++c) splat.feature[c] = std::max(color[c], 0.0f);
  }
  return rect;
}

// Sums over pixels of p = dL/d(power) times powers of the offset from the centre, and dL/d(feature).
struct Moments {
  float one, x, y, xx, xy, yy;
  float feature[4];
};

inline void rotation_backward(const Projection& p, const float* g, float* out) {
  const float w = p.quaternion[0], x = p.quaternion[1], y = p.quaternion[2], z = p.quaternion[3];
  const float d[4] = {
      2 * (-z * g[1] + y * g[2] + z * g[3] - x * g[5] - y * g[6] + x * g[7]),
      2 * (y * g[1] + z * g[2] + y * g[3] - 2 * x * g[4] - w * g[5] + z * g[6] + w * g[7] -
           2 * x * g[8]),
      2 * (-2 * y * g[0] + x * g[1] + w * g[2] + x * g[3] + z * g[5] - w * g[6] + z * g[7] -
           2 * y * g[8]),
      2 * (-2 * z * g[0] - w * g[1] + x * g[2] + w * g[3] - 2 * z * g[4] + y * g[5] + x * g[6] +
           y * g[7])};
  const float along = w * d[0] + x * d[1] + y * d[2] + z * d[3];
  for (int i = 0; i < 4; ++i) out[i] = (d[i] - p.quaternion[i] * along) / std::max(p.norm, 1e-12f);
}

// Writes the gradients of the raw parameters of a gaussian that was seen.
inline void project_backward(const View& view, const Row<const float>& row, const Splat& splat,
                             const Moments& m, const Row<float>& grad) {
  Projection p;
  p.in_front(view, row.mean);
  p.compute(view, row);
  grad.logit[0] = m.one * (1.0f - splat.opacity);

  // Conic -> covariance: dL/dCov = -K H K for K = conic and H = dL/dK.
  const float hxx = -0.5f * m.xx, hxy = -0.5f * m.xy, hyy = -0.5f * m.yy;
  const float a = splat.xx, b = splat.xy, c = splat.yy;
  const float t00 = a * hxx + b * hxy, t01 = a * hxy + b * hyy;
  const float t10 = b * hxx + c * hxy, t11 = b * hxy + c * hyy;
  const float s00 = -(t00 * a + t01 * b), s01 = -(t00 * b + t01 * c), s11 = -(t10 * b + t11 * c);

  float d_axes[6], d_screen[6] = {}, d_rotation[9];
  for (int j = 0; j < 3; ++j) {
    d_axes[j] = 2 * (s00 * p.axes[j] + s01 * p.axes[3 + j]);
    d_axes[3 + j] = 2 * (s01 * p.axes[j] + s11 * p.axes[3 + j]);
    grad.log_scale[j] = d_axes[j] * p.axes[j] + d_axes[3 + j] * p.axes[3 + j];
  }
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      d_rotation[3 * i + j] =
          p.scale[j] * (p.screen[i] * d_axes[j] + p.screen[3 + i] * d_axes[3 + j]);
      d_screen[i] += d_axes[j] * p.scale[j] * p.rotation[3 * i + j];
      d_screen[3 + i] += d_axes[3 + j] * p.scale[j] * p.rotation[3 * i + j];
    }
  rotation_backward(p, d_rotation, grad.quaternion);

  const float d_center_px[2] = {a * m.x + b * m.y, b * m.x + c * m.y};
  float d_center[3] = {0, 0, m.feature[3]};
  float d_k = 0;
  for (int i = 0; i < 2; ++i) {
    float d_slope = 0;
    for (int j = 0; j < 3; ++j) {
      d_k += d_screen[3 * i + j] * (view.rotation[3 * i + j] - p.slope[i] * view.rotation[6 + j]);
      d_slope -= d_screen[3 * i + j] * p.k * view.rotation[6 + j];
    }
    d_k += d_center_px[i] * p.center[i];
    d_center[i] += d_center_px[i] * p.k;
    if (!p.clamped[i]) {
      d_center[i] += d_slope / p.center[2];
      d_center[2] -= d_slope * p.slope[i] / p.center[2];
    }
  }
  d_center[2] -= d_k * p.k / p.center[2];
  std::fill(grad.mean, grad.mean + 3, 0.0f);
  add_transposed(view.rotation, d_center, grad.mean);

  p.look(view, row.mean);
  float basis[kSh], d_basis[kSh], d_color[3], d_direction[3] = {};
  sh_basis(p.direction, basis);
  for (int i = 0; i < 3; ++i) d_color[i] = splat.feature[i] > 0 ? m.feature[i] : 0.0f;
  for (int k = 0; k < kSh; ++k) {
    d_basis[k] = 0;
    for (int i = 0; i < 3; ++i) {
      grad.sh[3 * k + i] = basis[k] * d_color[i];
      d_basis[k] += row.sh[3 * k + i] * d_color[i];
    }
  }
  sh_basis_backward(p.direction, d_basis, d_direction);
  const float along = p.direction[0] * d_direction[0] + p.direction[1] * d_direction[1] +
                      p.direction[2] * d_direction[2];
  for (int i = 0; i < 3; ++i)
    grad.mean[i] += (d_direction[i] - p.direction[i] * along) / p.distance;
}

}  // namespace raster
