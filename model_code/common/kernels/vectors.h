// Vectors of float as wide as the CPU's registers, and how weights become such vectors.
//
// x86 has intrinsics for the conversions, since compilers turn the portable form into dozens of
// scalar moves. Everything else is written with the compiler's own vector types, for any CPU.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace isomorph {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int REGISTERS = 32;
#else
constexpr int LANES = 8;
constexpr int REGISTERS = 16;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

// bfloat16 is the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) {
  const uint32_t word = uint32_t(value.bits) << 16;
  float number;
  std::memcpy(&number, &word, sizeof number);
  return number;
}

// To the nearest, and to the even one of two.
inline BFloat16 to_bfloat16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return {uint16_t((word + 0x7FFF + (word >> 16 & 1)) >> 16)};
}

// In halves, so that the additions do not wait for each other.
inline float sum(Floats vector) {
  float lanes[LANES];
  std::memcpy(lanes, &vector, sizeof lanes);
#pragma GCC unroll 4
  for (int width = LANES / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

// Four sums, each added up in the order of `sum`, for little more than the price of one.
inline void sums_of_four(const Floats (&of)[4], float (&to)[4]) {
#if defined(__AVX2__)
  const auto ends = [](Floats x, Floats y) {  // the sums of halves: four numbers of x, four of y
#if defined(__AVX512F__)
    const auto half = [](Floats of) {
      return _mm256_add_ps(_mm512_castps512_ps256((__m512)of),
                           _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)of, 1)));
    };
    const __m256 a = half(x), b = half(y);
#else
    const __m256 a = (__m256)x, b = (__m256)y;
#endif
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  };
  const __m256 first = ends(of[0], of[1]), last = ends(of[2], of[3]);
  const __m256 pairs =
      _mm256_add_ps(_mm256_shuffle_ps(first, last, 0x44), _mm256_shuffle_ps(first, last, 0xEE));
  float found[8];
  _mm256_storeu_ps(found, _mm256_add_ps(pairs, _mm256_movehdup_ps(pairs)));
  to[0] = found[0], to[1] = found[4], to[2] = found[2], to[3] = found[6];
#else
  for (int i = 0; i < 4; ++i) to[i] = sum(of[i]);
#endif
}

// What the vectors of R rows add up to, each to its row.
template <int R>
inline void write_sums(const Floats (&of)[R], float* to, int64_t stride) {
  if constexpr (R == 4) {
    float found[4];
    sums_of_four(of, found);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) to[r * stride] = found[r];
  } else {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) to[r * stride] = sum(of[r]);
  }
}

// Arrays of sums must stay in registers: copied as a whole they would be kept in memory.
inline void store(Floats vector, float* to) { std::memcpy(to, &vector, sizeof vector); }

// Loaded once, and in this order: GCC would rather load a vector again for each product, and keep
// sums in memory when it has loaded others too early.
inline Floats once(Floats vector) {
#if defined(__AVX2__)
  asm volatile("" : "+x"(vector));
#endif
  return vector;
}

inline Floats broadcast(float value) { return value - Floats{}; }

// 2^x by its bits: the whole part is the exponent, a polynomial makes the rest. Error below 2e-7 of
// the result (Cephes' coefficients for e^r); beyond +-87 it stays at the end of float's range.
inline Floats exponential(Floats x) {
  const Floats limit = broadcast(87.0f);
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  const Floats scaled = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds
  Ints exponent;
  std::memcpy(&exponent, &scaled, sizeof exponent);
  const Floats whole = scaled - 12582912.0f;
  const Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats power = r * 1.9875691500e-4f + 1.3981999507e-3f;
  power = power * r + 8.3334519073e-3f;
  power = power * r + 4.1665795894e-2f;
  power = power * r + 1.6666665459e-1f;
  power = power * r + 5.0000001201e-1f;
  power = power * r * r + r + 1.0f;
  Ints bits;
  std::memcpy(&bits, &power, sizeof bits);
  bits += exponent << 23;  // what rounding left in the upper bits falls off
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

#if defined(__AVX512F__)

inline Floats load_floats(const float* from) { return (Floats)_mm512_loadu_ps(from); }
inline Floats load_floats(const BFloat16* from) {
  const __m256i halves = _mm256_loadu_si256((const __m256i*)from);
  const __m512i words = _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
  return (Floats)_mm512_castsi512_ps(words);
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

#elif defined(__AVX2__) && defined(__FMA__)

inline Floats load_floats(const float* from) { return (Floats)_mm256_loadu_ps(from); }
inline Floats load_floats(const BFloat16* from) {
  const __m128i halves = _mm_loadu_si128((const __m128i*)from);
  const __m256i words = _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
  return (Floats)_mm256_castsi256_ps(words);
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  // Spelled out: for these CPUs GCC's tuning splits a chain of sums into two instructions each.
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

#else

template <typename Value>
inline Floats load_floats(const Value* from) {
  Floats floats;
  for (int lane = 0; lane < LANES; ++lane) floats[lane] = to_float(from[lane]);
  return floats;
}
inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }

#endif

}  // namespace isomorph
