// One vector type for three instruction sets, chosen by the flags a translation unit is compiled
// with: AVX-512 (16 floats), AVX2 with FMA (8 floats), or the compiler's portable 16-byte vectors
// (4 floats, SSE2 and NEON). Kernels are written once against `vf` and its `width`.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace loom {

#if defined(__AVX512F__)

inline constexpr const char* isa_name = "avx512";
struct mask { __mmask16 m; };
struct vf {
  static constexpr int width = 16;
  __m512 v;
  vf() = default;
  vf(__m512 x) : v(x) {}
  vf(float x) : v(_mm512_set1_ps(x)) {}
  static vf load(const float* p) { return _mm512_loadu_ps(p); }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
};
inline vf operator+(vf a, vf b) { return _mm512_add_ps(a.v, b.v); }
inline vf operator-(vf a, vf b) { return _mm512_sub_ps(a.v, b.v); }
inline vf operator*(vf a, vf b) { return _mm512_mul_ps(a.v, b.v); }
inline vf operator/(vf a, vf b) { return _mm512_div_ps(a.v, b.v); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }   // a*b + c
inline vf fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); } // c - a*b
inline vf max(vf a, vf b) { return _mm512_max_ps(a.v, b.v); }
inline vf min(vf a, vf b) { return _mm512_min_ps(a.v, b.v); }
inline vf sqrt(vf a) { return _mm512_sqrt_ps(a.v); }
inline vf round(vf a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf scale_by_power_of_two(vf a, vf n) { return _mm512_scalef_ps(a.v, n.v); }
inline float sum(vf a) { return _mm512_reduce_add_ps(a.v); }
inline mask operator<(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline mask operator<=(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline mask operator&(mask a, mask b) { return {static_cast<__mmask16>(a.m & b.m)}; }
inline mask operator|(mask a, mask b) { return {static_cast<__mmask16>(a.m | b.m)}; }
inline bool any(mask a) { return a.m != 0; }
inline bool all(mask a) { return a.m == 0xffff; }
inline vf select(mask m, vf a, vf b) { return _mm512_mask_blend_ps(m.m, b.v, a.v); }  // m ? a : b

#elif defined(__AVX2__) && defined(__FMA__)

inline constexpr const char* isa_name = "avx2";
struct mask { __m256 m; };
struct vf {
  static constexpr int width = 8;
  __m256 v;
  vf() = default;
  vf(__m256 x) : v(x) {}
  vf(float x) : v(_mm256_set1_ps(x)) {}
  static vf load(const float* p) { return _mm256_loadu_ps(p); }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
};
inline vf operator+(vf a, vf b) { return _mm256_add_ps(a.v, b.v); }
inline vf operator-(vf a, vf b) { return _mm256_sub_ps(a.v, b.v); }
inline vf operator*(vf a, vf b) { return _mm256_mul_ps(a.v, b.v); }
inline vf operator/(vf a, vf b) { return _mm256_div_ps(a.v, b.v); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline vf fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }
inline vf max(vf a, vf b) { return _mm256_max_ps(a.v, b.v); }
inline vf min(vf a, vf b) { return _mm256_min_ps(a.v, b.v); }
inline vf sqrt(vf a) { return _mm256_sqrt_ps(a.v); }
inline vf round(vf a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf scale_by_power_of_two(vf a, vf n) {  // n integral in [-126, 127]
  __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a.v, _mm256_castsi256_ps(bits));
}
inline float sum(vf a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
inline mask operator<(vf a, vf b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline mask operator<=(vf a, vf b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
inline mask operator&(mask a, mask b) { return {_mm256_and_ps(a.m, b.m)}; }
inline mask operator|(mask a, mask b) { return {_mm256_or_ps(a.m, b.m)}; }
inline bool any(mask a) { return _mm256_movemask_ps(a.m) != 0; }
inline bool all(mask a) { return _mm256_movemask_ps(a.m) == 0xff; }
inline vf select(mask m, vf a, vf b) { return _mm256_blendv_ps(b.v, a.v, m.m); }

#else

inline constexpr const char* isa_name = "portable";
typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));
struct mask { int4 m; };
struct vf {
  static constexpr int width = 4;
  float4 v;
  vf() = default;
  vf(float4 x) : v(x) {}
  vf(float x) : v(float4{x, x, x, x}) {}
  static vf load(const float* p) { float4 x; std::memcpy(&x, p, sizeof x); return x; }
  void store(float* p) const { std::memcpy(p, &v, sizeof v); }
};
inline vf operator+(vf a, vf b) { return a.v + b.v; }
inline vf operator-(vf a, vf b) { return a.v - b.v; }
inline vf operator*(vf a, vf b) { return a.v * b.v; }
inline vf operator/(vf a, vf b) { return a.v / b.v; }
inline vf fma(vf a, vf b, vf c) { return a.v * b.v + c.v; }
inline vf fnma(vf a, vf b, vf c) { return c.v - a.v * b.v; }
inline vf select(mask m, vf a, vf b) {
  return (float4)(((int4)a.v & m.m) | ((int4)b.v & ~m.m));
}
inline mask operator<(vf a, vf b) { return {(int4)(a.v < b.v)}; }
inline mask operator<=(vf a, vf b) { return {(int4)(a.v <= b.v)}; }
inline mask operator&(mask a, mask b) { return {a.m & b.m}; }
inline mask operator|(mask a, mask b) { return {a.m | b.m}; }
inline bool any(mask a) { return (a.m[0] | a.m[1] | a.m[2] | a.m[3]) != 0; }
inline bool all(mask a) { return (a.m[0] & a.m[1] & a.m[2] & a.m[3]) != 0; }
inline vf max(vf a, vf b) { return select(b < a, a, b); }
inline vf min(vf a, vf b) { return select(a < b, a, b); }
inline vf sqrt(vf a) {
  return float4{std::sqrt(a.v[0]), std::sqrt(a.v[1]), std::sqrt(a.v[2]), std::sqrt(a.v[3])};
}
inline vf round(vf a) {
  return float4{std::nearbyint(a.v[0]), std::nearbyint(a.v[1]), std::nearbyint(a.v[2]),
                std::nearbyint(a.v[3])};
}
inline vf scale_by_power_of_two(vf a, vf n) {
  int4 bits = (__builtin_convertvector(n.v, int4) + 127) << 23;
  return a.v * (float4)bits;
}
inline float sum(vf a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

#endif

inline vf& operator+=(vf& a, vf b) { a = a + b; return a; }
inline vf& operator-=(vf& a, vf b) { a = a - b; return a; }
inline vf& operator*=(vf& a, vf b) { a = a * b; return a; }

// exp(x) with a relative error below 2e-7; the argument is clamped to [-87, 88].
inline vf exp(vf x) {
  x = min(max(x, vf(-87.0f)), vf(88.0f));
  vf n = round(x * vf(1.44269504088896341f));
  vf r = fnma(n, vf(0.693359375f), x);
  r = fnma(n, vf(-2.12194440e-4f), r);
  vf p = vf(1.9875691500e-4f);
  p = fma(p, r, vf(1.3981999507e-3f));
  p = fma(p, r, vf(8.3334519073e-3f));
  p = fma(p, r, vf(4.1665795894e-2f));
  p = fma(p, r, vf(1.6666665459e-1f));
  p = fma(p, r, vf(5.0000001201e-1f));
  p = fma(p, r * r, r + vf(1.0f));
  return scale_by_power_of_two(p, n);
}

}  // namespace loom
