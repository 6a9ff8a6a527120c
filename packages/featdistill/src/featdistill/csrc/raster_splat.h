// Gaussians on one image plane, forward and backward, a gaussian per vector lane: the arithmetic of
// models/projection.py and models/spherical_harmonics.py with the derivatives written out.
#pragma once
#include <loom/simd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace raster {

using loom::fma;
using loom::fnma;
using loom::mask;
using loom::vf;

constexpr int kLanes = vf::width;
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

// Raw parameters of all gaussians, or the gradients of them.
template <class Float>
struct Rows {
  Float *means, *log_scales, *quaternions, *logits, *sh;
};

// `count` consecutive gaussians from `first`, one per lane; the last one fills unused lanes.
struct Lanes {
  int64_t first;
  int count;

  vf load(const float* rows, int stride, int component) const {
    float lane[kLanes];
    const float* from = rows + first * stride + component;
    for (int i = 0; i < kLanes; ++i) lane[i] = from[std::min(i, count - 1) * stride];
    return vf::load(lane);
  }
  template <int n>
  void load(const float* rows, vf (&out)[n]) const {
    for (int k = 0; k < n; ++k) out[k] = load(rows, n, k);
  }
  // Writes the lanes of gaussians that are seen; the others become zero.
  void store(float* rows, int stride, int component, mask seen, vf value) const {
    float lane[kLanes];
    loom::select(seen, value, vf(0.0f)).store(lane);
    float* to = rows + first * stride + component;
    for (int i = 0; i < count; ++i) to[i * stride] = lane[i];
  }
  template <int n>
  void store(float* rows, mask seen, const vf (&values)[n]) const {
    for (int k = 0; k < n; ++k) store(rows, n, k, seen, values[k]);
  }
};

inline vf negative(vf a) { return vf(0.0f) - a; }
inline vf dot3(vf a, vf b, vf c, vf x, vf y, vf z) { return fma(a, x, fma(b, y, c * z)); }

// Real spherical harmonics to degree 3 in the order of 3DGS, at a unit direction.
inline void sh_basis(const vf (&d)[3], vf (&out)[kSh]) {
  const vf x = d[0], y = d[1], z = d[2], xx = x * x, yy = y * y, zz = z * z;
  const vf five = vf(4.0f) * zz - xx - yy;
  out[0] = vf(0.28209479177387814f);
  out[1] = vf(-0.4886025119029199f) * y;
  out[2] = vf(0.4886025119029199f) * z;
  out[3] = vf(-0.4886025119029199f) * x;
  out[4] = vf(1.0925484305920792f) * x * y;
  out[5] = vf(-1.0925484305920792f) * y * z;
  out[6] = vf(0.31539156525252005f) * (zz + zz - xx - yy);
  out[7] = vf(-1.0925484305920792f) * x * z;
  out[8] = vf(0.5462742152960396f) * (xx - yy);
  out[9] = vf(-0.5900435899266435f) * y * (vf(3.0f) * xx - yy);
  out[10] = vf(2.890611442640554f) * x * y * z;
  out[11] = vf(-0.4570457994644658f) * y * five;
  out[12] = vf(0.3731763325901154f) * z * (zz + zz - vf(3.0f) * (xx + yy));
  out[13] = vf(-0.4570457994644658f) * x * five;
  out[14] = vf(1.445305721320277f) * z * (xx - yy);
  out[15] = vf(-0.5900435899266435f) * x * (xx - vf(3.0f) * yy);
}

// Sets `out` to sum_k w[k] dY_k/d(x, y, z).
inline void sh_basis_backward(const vf (&d)[3], const vf (&w)[kSh], vf (&out)[3]) {
  const vf x = d[0], y = d[1], z = d[2], xx = x * x, yy = y * y, zz = z * z;
  const vf c1(0.4886025119029199f), c20(1.0925484305920792f), c21(2 * 0.31539156525252005f);
  const vf c22(2 * 0.5462742152960396f), c30(3 * 0.5900435899266435f), c31(2.890611442640554f);
  const vf c32(0.4570457994644658f), c33(3 * 0.3731763325901154f), c34(1.445305721320277f);
  const vf two(2.0f), three(3.0f), four(4.0f), eight(8.0f);
  out[0] = c20 * (y * w[4] - z * w[7]) - c1 * w[3] + x * (c22 * w[8] - c21 * w[6]) -
           c30 * (two * x * y * w[9] + (xx - yy) * w[15]) + c31 * y * z * w[10] +
           c32 * (two * x * y * w[11] - (four * zz - three * xx - yy) * w[13]) +
           two * x * z * (c34 * w[14] - c33 * w[12]);
  out[1] = c20 * (x * w[4] - z * w[5]) - c1 * w[1] - y * (c22 * w[8] + c21 * w[6]) -
           c30 * ((xx - yy) * w[9] - two * x * y * w[15]) + c31 * x * z * w[10] -
           c32 * ((four * zz - xx - three * yy) * w[11] - two * x * y * w[13]) -
           two * y * z * (c33 * w[12] + c34 * w[14]);
  out[2] = c1 * w[2] - c20 * (y * w[5] + x * w[7]) + two * c21 * z * w[6] + c31 * x * y * w[10] -
           eight * c32 * z * (y * w[11] + x * w[13]) + c33 * (two * zz - xx - yy) * w[12] +
           c34 * (xx - yy) * w[14];
}

// Everything on the way from raw parameters to the conic that the way back needs again.
struct Projection {
  vf center[3];         // in the camera's frame
  vf quaternion[4];     // normalised
  vf inverse_norm;      // of the raw quaternion
  vf rotation[9], scale[3];
  vf inverse_z, k;      // 1 / z, focal / z
  vf slope[2];          // clamped centre / z
  vf inside[2];         // 0 where clamped, else 1
  vf screen[6];         // J W, 2 x 3
  vf axes[6];           // J W R S, 2 x 3
  vf xx, xy, yy;        // covariance with the blur
  vf direction[3], inverse_distance;

  Projection(const View& view, const Rows<const float>& rows, Lanes lanes) {
    vf mean[3], log_scale[3];
    lanes.load(rows.means, mean);
    lanes.load(rows.quaternions, quaternion);
    lanes.load(rows.log_scales, log_scale);
    const float* w = view.rotation;
    for (int i = 0; i < 3; ++i)
      center[i] = vf(view.translation[i]) + dot3(vf(w[3 * i]), vf(w[3 * i + 1]), vf(w[3 * i + 2]),
                                                 mean[0], mean[1], mean[2]);
    for (int i = 0; i < 3; ++i) scale[i] = loom::exp(log_scale[i]);
    rotate();
    project(view);
    for (int i = 0; i < 3; ++i) direction[i] = mean[i] - vf(view.center[i]);
    inverse_distance = vf(1.0f) / loom::sqrt(dot3(direction[0], direction[1], direction[2],
                                                  direction[0], direction[1], direction[2]));
    for (vf& d : direction) d *= inverse_distance;
  }

 private:
  void rotate() {
    vf* const q = quaternion;
    const vf norm = loom::sqrt(fma(q[0], q[0], dot3(q[1], q[2], q[3], q[1], q[2], q[3])));
    inverse_norm = vf(1.0f) / loom::max(norm, vf(1e-12f));
    for (int i = 0; i < 4; ++i) q[i] *= inverse_norm;
    const vf one(1.0f), two(2.0f), w = q[0], x = q[1], y = q[2], z = q[3];
    rotation[0] = one - two * (y * y + z * z);
    rotation[1] = two * (x * y - w * z);
    rotation[2] = two * (x * z + w * y);
    rotation[3] = two * (x * y + w * z);
    rotation[4] = one - two * (x * x + z * z);
    rotation[5] = two * (y * z - w * x);
    rotation[6] = two * (x * z - w * y);
    rotation[7] = two * (y * z + w * x);
    rotation[8] = one - two * (x * x + y * y);
  }

  void project(const View& view) {
    inverse_z = vf(1.0f) / center[2];
    k = vf(view.focal) * inverse_z;
    const float half[2] = {0.5f * view.width, 0.5f * view.height};
    for (int i = 0; i < 2; ++i) {
      const vf raw = center[i] * inverse_z, limit(kMargin * half[i] / view.focal);
      slope[i] = loom::min(loom::max(raw, negative(limit)), limit);
      inside[i] = loom::select((raw <= limit) & (negative(limit) <= raw), vf(1.0f), vf(0.0f));
      for (int j = 0; j < 3; ++j)
        screen[3 * i + j] =
            k * fnma(slope[i], vf(view.rotation[6 + j]), vf(view.rotation[3 * i + j]));
    }
    const vf* r = rotation;
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 3; ++j)
        axes[3 * i + j] = scale[j] * dot3(screen[3 * i], screen[3 * i + 1], screen[3 * i + 2],
                                          r[j], r[3 + j], r[6 + j]);
    const vf* a = axes;
    xx = dot3(a[0], a[1], a[2], a[0], a[1], a[2]) + vf(kBlur);
    xy = dot3(a[0], a[1], a[2], a[3], a[4], a[5]);
    yy = dot3(a[3], a[4], a[5], a[3], a[4], a[5]) + vf(kBlur);
  }
};

// Completes one splat from its projected lane; returns the tiles it touches, none if unseen.
inline Rect bound(const View& view, Splat& s, float covariance_xx, float covariance_yy) {
  const Rect nothing{0, 0, 0, 0};
  if (!(s.feature[3] > kNear) || !(s.opacity > kAlphaMin)) return nothing;
  s.lowest_power = std::log(kAlphaMin / s.opacity);
  s.extent_x = std::sqrt(-2 * s.lowest_power * covariance_xx);
  s.extent_y = std::sqrt(-2 * s.lowest_power * covariance_yy);
  const float left = s.u - s.extent_x, right = s.u + s.extent_x;
  const float top = s.v - s.extent_y, bottom = s.v + s.extent_y;
  if (!(right > 0 && left < view.width && bottom > 0 && top < view.height)) return nothing;
  auto tile = [](float pixel, int count) {  // clipped to the image, where truncation is floor
    return static_cast<int32_t>(std::min(std::max(pixel, 0.0f), count * float(kTile) - 1)) / kTile;
  };
  return {tile(left, view.columns()), tile(top, view.rows()), tile(right, view.columns()) + 1,
          tile(bottom, view.rows()) + 1};
}

// Projects the gaussians of `lanes`; without `rows.sh` they are black.
inline void project(const View& view, const Rows<const float>& rows, Lanes lanes, Splat* splats,
                    Rect* rects) {
  const Projection p(view, rows, lanes);
  enum { u, v, conic_xx, conic_xy, conic_yy, opacity, red, depth = red + 3, cov_xx, cov_yy, fields };
  float field[fields][kLanes];
  const vf inverse = vf(1.0f) / (p.xx * p.yy - p.xy * p.xy);
  fma(p.k, p.center[0], vf(0.5f * view.width)).store(field[u]);
  fma(p.k, p.center[1], vf(0.5f * view.height)).store(field[v]);
  (p.yy * inverse).store(field[conic_xx]);
  negative(p.xy * inverse).store(field[conic_xy]);
  (p.xx * inverse).store(field[conic_yy]);
  const vf logit = lanes.load(rows.logits, 1, 0);
  (vf(1.0f) / (vf(1.0f) + loom::exp(negative(logit)))).store(field[opacity]);
  p.center[2].store(field[depth]);
  p.xx.store(field[cov_xx]);
  p.yy.store(field[cov_yy]);
  vf color[3] = {vf(0.0f), vf(0.0f), vf(0.0f)};
  if (rows.sh) {
    vf basis[kSh];
    sh_basis(p.direction, basis);
    for (int c = 0; c < 3; ++c) {
      color[c] = vf(0.5f);
      for (int k = 0; k < kSh; ++k)
        color[c] = fma(basis[k], lanes.load(rows.sh, 3 * kSh, 3 * k + c), color[c]);
      color[c] = loom::max(color[c], vf(0.0f));
    }
  }
  for (int c = 0; c < 3; ++c) color[c].store(field[red + c]);
  for (int i = 0; i < lanes.count; ++i) {
    Splat& s = splats[lanes.first + i];
    s.u = field[u][i];
    s.v = field[v][i];
    s.xx = field[conic_xx][i];
    s.xy = field[conic_xy][i];
    s.yy = field[conic_yy][i];
    s.opacity = field[opacity][i];
    for (int k = 0; k < 4; ++k) s.feature[k] = field[red + k][i];
    rects[lanes.first + i] = bound(view, s, field[cov_xx][i], field[cov_yy][i]);
  }
}

// Sums over pixels of p = dL/d(power) times powers of the offset from the centre, and dL/d(feature).
struct Moments {
  vf one, x, y, xx, xy, yy;
  vf feature[4];
};

inline void rotation_backward(const Projection& p, const vf (&g)[9], vf (&out)[4]) {
  const vf w = p.quaternion[0], x = p.quaternion[1], y = p.quaternion[2], z = p.quaternion[3];
  const vf two(2.0f);
  out[0] = two * (z * (g[3] - g[1]) + y * (g[2] - g[6]) + x * (g[7] - g[5]));
  out[1] = two * (y * (g[1] + g[3]) + z * (g[2] + g[6]) + w * (g[7] - g[5]) -
                  two * x * (g[4] + g[8]));
  out[2] = two * (x * (g[1] + g[3]) + z * (g[5] + g[7]) + w * (g[2] - g[6]) -
                  two * y * (g[0] + g[8]));
  out[3] = two * (x * (g[2] + g[6]) + y * (g[5] + g[7]) + w * (g[3] - g[1]) -
                  two * z * (g[0] + g[4]));
  const vf along = fma(w, out[0], dot3(x, y, z, out[1], out[2], out[3]));
  for (int i = 0; i < 4; ++i) out[i] = fnma(p.quaternion[i], along, out[i]) * p.inverse_norm;
}

// Gradients from the covariance (through J W R S and the centre in the camera's frame) down to the
// raw scales and rotation; adds what the Jacobian passes on to `d_center` and returns dL/dk.
inline vf covariance_backward(const View& view, const Projection& p, vf s_xx, vf s_xy, vf s_yy,
                              vf (&d_log_scale)[3], vf (&d_quaternion)[4], vf (&d_center)[3]) {
  vf d_axes[6], d_screen[6], d_rotation[9];
  const vf two(2.0f);
  for (int j = 0; j < 3; ++j) {
    d_axes[j] = two * fma(s_xx, p.axes[j], s_xy * p.axes[3 + j]);
    d_axes[3 + j] = two * fma(s_xy, p.axes[j], s_yy * p.axes[3 + j]);
    d_log_scale[j] = fma(d_axes[j], p.axes[j], d_axes[3 + j] * p.axes[3 + j]);
  }
  for (int i = 0; i < 3; ++i) {
    d_screen[i] = d_screen[3 + i] = vf(0.0f);
    for (int j = 0; j < 3; ++j) {
      const vf rs = p.rotation[3 * i + j] * p.scale[j];
      d_rotation[3 * i + j] =
          p.scale[j] * fma(p.screen[i], d_axes[j], p.screen[3 + i] * d_axes[3 + j]);
      d_screen[i] = fma(d_axes[j], rs, d_screen[i]);
      d_screen[3 + i] = fma(d_axes[3 + j], rs, d_screen[3 + i]);
    }
  }
  rotation_backward(p, d_rotation, d_quaternion);
  vf d_k(0.0f);
  for (int i = 0; i < 2; ++i) {
    vf d_slope(0.0f);
    for (int j = 0; j < 3; ++j) {
      const vf row(view.rotation[3 * i + j]), axis(view.rotation[6 + j]);
      d_k = fma(d_screen[3 * i + j], fnma(p.slope[i], axis, row), d_k);
      d_slope = fnma(d_screen[3 * i + j] * p.k, axis, d_slope);
    }
    d_slope *= p.inside[i] * p.inverse_z;
    d_center[i] += d_slope;
    d_center[2] = fnma(d_slope, p.slope[i], d_center[2]);
  }
  return d_k;
}

// Writes the gradients of the raw parameters; rows outside `seen` become zero.
inline void project_backward(const View& view, const Rows<const float>& rows, Lanes lanes,
                             mask seen, const Moments& m, const Rows<float>& grads) {
  const Projection p(view, rows, lanes);
  const vf logit = lanes.load(rows.logits, 1, 0);
  const vf transparency = vf(1.0f) / (vf(1.0f) + loom::exp(logit));
  lanes.store(grads.logits, 1, 0, seen, m.one * transparency);

  // Conic -> covariance: dL/dCov = -K H K for K = conic and H = dL/dK.
  const vf inverse = vf(1.0f) / (p.xx * p.yy - p.xy * p.xy);
  const vf a = p.yy * inverse, b = negative(p.xy * inverse), c = p.xx * inverse;
  const vf half(0.5f);
  const vf t00 = half * (a * m.xx + b * m.xy), t01 = half * (a * m.xy + b * m.yy);
  const vf t10 = half * (b * m.xx + c * m.xy), t11 = half * (b * m.xy + c * m.yy);
  vf d_log_scale[3], d_quaternion[4], d_mean[3];
  vf d_center[3] = {vf(0.0f), vf(0.0f), m.feature[3]};
  vf d_k = covariance_backward(view, p, t00 * a + t01 * b, t00 * b + t01 * c, t10 * b + t11 * c,
                               d_log_scale, d_quaternion, d_center);
  const vf d_px[2] = {fma(a, m.x, b * m.y), fma(b, m.x, c * m.y)};
  for (int i = 0; i < 2; ++i) {
    d_k = fma(d_px[i], p.center[i], d_k);
    d_center[i] = fma(d_px[i], p.k, d_center[i]);
  }
  d_center[2] = fnma(d_k * p.k, p.inverse_z, d_center[2]);

  vf basis[kSh], d_basis[kSh], d_color[3], d_direction[3];
  sh_basis(p.direction, basis);
  for (int i = 0; i < 3; ++i) d_color[i] = m.feature[i];
  for (int k = 0; k < kSh; ++k) {
    d_basis[k] = vf(0.0f);
    for (int i = 0; i < 3; ++i) {
      lanes.store(grads.sh, 3 * kSh, 3 * k + i, seen, basis[k] * d_color[i]);
      d_basis[k] = fma(lanes.load(rows.sh, 3 * kSh, 3 * k + i), d_color[i], d_basis[k]);
    }
  }
  sh_basis_backward(p.direction, d_basis, d_direction);
  const vf along = dot3(p.direction[0], p.direction[1], p.direction[2], d_direction[0],
                        d_direction[1], d_direction[2]);
  const float* w = view.rotation;
  for (int i = 0; i < 3; ++i)
    d_mean[i] = fma(fnma(p.direction[i], along, d_direction[i]), p.inverse_distance,
                    dot3(vf(w[i]), vf(w[3 + i]), vf(w[6 + i]), d_center[0], d_center[1],
                         d_center[2]));
  lanes.store(grads.means, seen, d_mean);
  lanes.store(grads.log_scales, seen, d_log_scale);
  lanes.store(grads.quaternions, seen, d_quaternion);
}

}  // namespace raster
