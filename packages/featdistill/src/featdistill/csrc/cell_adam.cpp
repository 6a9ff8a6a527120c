// Adam over rows that keep their own step counters; models/cell_adam.py states the update.
#include <cmath>
#include <cstdint>

#include "loom/parallel.h"
#include "loom/simd.h"

using loom::vf;

namespace {

// Whether a row has a gradient: the first non-zero vector ends the search.
bool touched(const float* gradient, int64_t n) {
  const vf zero(0.0f);
  int64_t i = 0;
  for (; i + vf::width <= n; i += vf::width) {
    const vf g = vf::load(gradient + i);
    if (any((g < zero) | (zero < g))) return true;
    if (!all((g <= zero) & (zero <= g))) return true;  // not a number
  }
  for (; i < n; ++i) {
    if (gradient[i] != 0.0f) return true;
  }
  return false;
}

struct Rates {
  float beta1, beta2, step_size, scale, eps;  // scale = 1 / sqrt(1 - beta2^t)
};

void update(int64_t n, const Rates& r, const float* gradient, float* value, float* mean,
            float* square) {
  int64_t i = 0;
  for (; i + vf::width <= n; i += vf::width) {
    const vf g = vf::load(gradient + i);
    const vf m = fma(vf(1.0f - r.beta1), g - vf::load(mean + i), vf::load(mean + i));
    const vf s = fma(vf(1.0f - r.beta2) * g, g, vf(r.beta2) * vf::load(square + i));
    m.store(mean + i);
    s.store(square + i);
    const vf denominator = fma(sqrt(s), vf(r.scale), vf(r.eps));
    (vf::load(value + i) - vf(r.step_size) * m / denominator).store(value + i);
  }
  for (; i < n; ++i) {
    const float g = gradient[i];
    mean[i] += (1.0f - r.beta1) * (g - mean[i]);
    square[i] = r.beta2 * square[i] + (1.0f - r.beta2) * g * g;
    value[i] -= r.step_size * mean[i] / (std::sqrt(square[i]) * r.scale + r.eps);
  }
}

}  // namespace

extern "C" void cell_adam(int64_t rows, int64_t n, const float* gradient, float* value, float* mean,
                          float* square, int32_t* step, double rate, double beta1, double beta2,
                          double eps, int skip_untouched, int threads) {
  loom::parallel_items(rows, threads, [&](int64_t row, int) {
    const int64_t at = row * n;
    if (skip_untouched && !touched(gradient + at, n)) return;
    const double t = ++step[row];
    const Rates rates{static_cast<float>(beta1), static_cast<float>(beta2),
                      static_cast<float>(rate / (1.0 - std::pow(beta1, t))),
                      static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, t))),
                      static_cast<float>(eps)};
    update(n, rates, gradient + at, value + at, mean + at, square + at);
  });
}
