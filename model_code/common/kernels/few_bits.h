// Weights of 8 and 4 bits, times rows that are rounded to 8: whole numbers are multiplied.
//
// Letters: R rows, O outputs of a tile, as in matmul.h.

#pragma once

#include <cmath>

#include "rows.h"

namespace isomorph {

// int8 with one scale an output.
struct Eight {
  static constexpr bool FEW_BITS = true;
  static constexpr int OUTPUTS = REGISTERS >= 32 ? 4 : 2;  // of a tile of 4 rows
  const int8_t* numbers;
  const float* scale;
  int64_t inputs;

  static Eight of(const void* numbers, const void* scales, int64_t inputs) {
    return {static_cast<const int8_t*>(numbers), static_cast<const float*>(scales), inputs};
  }
  Eight from(int64_t output) const { return {numbers + output * inputs, scale + output, inputs}; }
};

// int4 in groups. Byte j of a group has input j in its lower half, j + 16 in its upper one; a
// group's number n stands for n * scale + offset, both bfloat16, in that order.
struct Four {
  static constexpr bool FEW_BITS = true;
  static constexpr int OUTPUTS = Eight::OUTPUTS;
  const uint8_t* nibbles;
  const BFloat16* scales;
  int64_t inputs;

  static Four of(const void* numbers, const void* scales, int64_t inputs) {
    return {static_cast<const uint8_t*>(numbers), static_cast<const BFloat16*>(scales), inputs};
  }
  Four from(int64_t output) const {
    return {nibbles + output * inputs / 2, scales + output * inputs / GROUP * 2, inputs};
  }
};

typedef float Octet __attribute__((vector_size(32)));

inline Octet octet(float value) { return value - Octet{}; }
#if defined(__AVX512F__)  // elsewhere that is what `Floats` are
inline float sum(Octet x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}
inline Octet multiply_add(Octet a, Octet b, Octet c) {
  return (Octet)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#endif

#if defined(__AVX2__) && defined(__FMA__)

typedef __m256i Bytes;  // a group

inline Bytes load_bytes(const int8_t* from) { return _mm256_loadu_si256((const __m256i*)from); }
inline Bytes load_nibbles(const uint8_t* from) {
  const __m128i pairs = _mm_loadu_si128((const __m128i*)from);
  const __m256i both = _mm256_set_m128i(_mm_srli_epi16(pairs, 4), pairs);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}
inline Bytes magnitude(Bytes x) { return _mm256_abs_epi8(x); }
inline Bytes with_sign(Bytes x, Bytes of) { return _mm256_sign_epi8(x, of); }
// Eight sums of four products each; x is from 0 to 128, y from -127 to 127.
inline Octet dots(Bytes x, Bytes y) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), x, y);
#elif defined(__AVXVNNI__)
  const __m256i sums = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), x, y);
#else  // two products fit into 16 bits: 2 * 128 * 127 < 2^15
  const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), _mm256_set1_epi16(1));
#endif
  return (Octet)_mm256_cvtepi32_ps(sums);
}

#else

struct Bytes {
  int16_t at[GROUP];
};

inline Bytes load_bytes(const int8_t* from) {
  Bytes bytes;
  for (int i = 0; i < GROUP; ++i) bytes.at[i] = from[i];
  return bytes;
}
inline Bytes load_nibbles(const uint8_t* from) {
  Bytes bytes;
  for (int i = 0; i < GROUP / 2; ++i) {
    bytes.at[i] = from[i] & 15;
    bytes.at[i + GROUP / 2] = from[i] >> 4;
  }
  return bytes;
}
inline Bytes magnitude(Bytes x) { return x; }
inline Bytes with_sign(Bytes x, Bytes) { return x; }
inline Octet dots(const Bytes& x, const Bytes& y) {
  int32_t sums[8] = {};
  for (int i = 0; i < GROUP; ++i) sums[i / 4] += int32_t(x.at[i]) * y.at[i];
  Octet found;
  for (int i = 0; i < 8; ++i) found[i] = float(sums[i]);
  return found;
}

#endif

// |w| times x with the sign of w, since there are products of unsigned with signed bytes only.
template <int R, int O>
inline void tile(const Rows& x, const Eight& weight, int64_t apart, float* out, int64_t stride) {
  const int64_t inputs = weight.inputs, whole = inputs / GROUP, groups = groups_of(inputs);
  Octet sums[R][O] = {};
  for (int64_t g = 0; g < whole; ++g) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const Bytes column = load_bytes(weight.from(o * apart).numbers + g * GROUP);
      const Bytes size = magnitude(column);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Bytes row = load_bytes(x.bytes + (r * groups + g) * GROUP);
        const Octet found = dots(size, with_sign(row, column));
        sums[r][o] = multiply_add(found, octet(x.steps[r * groups + g]), sums[r][o]);
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    const Eight column = weight.from(o * apart);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int rest = 0;
      for (int64_t i = whole * GROUP; i < inputs; ++i) {
        rest += int(x.bytes[r * groups * GROUP + i]) * column.numbers[i];
      }
      float total = sum(sums[r][o]);
      // Spelled out, so that each tile rounds alike.
      if (rest) total = std::fma(float(rest), x.steps[r * groups + whole], total);
      out[r * stride + o * apart] = total * *column.scale;
    }
  }
}

// What a row's groups add up to, times their offsets.
inline float offsets(const BFloat16* scales, const float* sums, int64_t groups) {
  Floats total = {};
  int64_t g = 0;
  for (; g + LANES <= groups; g += LANES) {
    Ints pairs;
    std::memcpy(&pairs, scales + 2 * g, sizeof pairs);
    pairs &= int32_t(0xFFFF0000);  // an offset is the upper half of its pair
    Floats offset;
    std::memcpy(&offset, &pairs, sizeof offset);
    total = multiply_add(offset, load_floats(sums + g), total);
  }
  float found = sum(total);
  for (; g < groups; ++g) found += to_float(scales[2 * g + 1]) * sums[g];
  return found;
}

template <int R, int O>
inline void tile(const Rows& x, const Four& weight, int64_t apart, float* out, int64_t stride) {
  const int64_t groups = weight.inputs / GROUP;
  Octet sums[R][O] = {};
  for (int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const Four column = weight.from(o * apart);
      const Bytes numbers = load_nibbles(column.nibbles + g * GROUP / 2);
      const float scale = to_float(column.scales[2 * g]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Bytes row = load_bytes(x.bytes + (r * groups + g) * GROUP);
        const Octet step = octet(scale * x.steps[r * groups + g]);
        sums[r][o] = multiply_add(dots(numbers, row), step, sums[r][o]);
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    const Four column = weight.from(o * apart);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float shifted = offsets(column.scales, x.sums + r * groups, groups);
      out[r * stride + o * apart] = sum(sums[r][o]) + shifted;
    }
  }
}

}  // namespace isomorph
