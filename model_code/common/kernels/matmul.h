// Rows times a transposed weight, for a few rows: what decoding does.
//
// Letters: R rows, O outputs. A tile of R x O sums stays in registers, so a weight is read from
// memory once for all rows of the tile. Its outputs lie `apart` from each other, so that several
// places are read at a time: memory gives more than for one place, whose next numbers the
// CPU fetches up to the end of a page.

#pragma once

#include "few_bits.h"

namespace isomorph {

constexpr int ROWS = 4;
constexpr int PLACES_OF_FEW = 4;  // that fewer rows read at: 8 gave no more

// A weight of floats.
template <typename Number>
struct Dense {
  static constexpr bool FEW_BITS = false;
  static constexpr int OUTPUTS = REGISTERS >= 32 ? 4 : 3;  // 12 sums leave AVX2 four registers
  const Number* numbers;
  int64_t inputs;

  static Dense of(const void* numbers, const void*, int64_t inputs) {
    return {static_cast<const Number*>(numbers), inputs};
  }
  Dense from(int64_t output) const { return {numbers + output * inputs, inputs}; }
};

// The pragmas keep the sums in registers: rolled up, the loops would index them in memory.
template <int R, int O, typename Number>
inline void tile(const Rows& x, const Dense<Number>& weight, int64_t apart, float* out,
                 int64_t stride) {
  const int64_t inputs = weight.inputs;
  Floats sums[O][R] = {};
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    Floats columns[O];
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      columns[o] = once(load_floats(weight.from(o * apart).numbers + i));
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats row = once(load_floats(x.floats + r * inputs + i));
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) sums[o][r] = multiply_add(row, columns[o], sums[o][r]);
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) write_sums(sums[o], out + o * apart, stride);
  for (; __builtin_expect(i < inputs, 0); ++i) {
    for (int o = 0; o < O; ++o) {
      const float number = to_float(weight.from(o * apart).numbers[i]);
      for (int r = 0; r < R; ++r) {
        out[r * stride + o * apart] += x.floats[r * inputs + i] * number;
      }
    }
  }
}

// O outputs for all rows.
template <int O, typename Weight>
inline void write_rows(const Rows& x, int64_t rows, const Weight& weight, int64_t apart, float* out,
                       int64_t stride) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS) {
    tile<ROWS, O>(x.from(r), weight, apart, out + r * stride, stride);
  }
  if (r + 3 == rows) return tile<3, O>(x.from(r), weight, apart, out + r * stride, stride);
  if (r + 2 == rows) return tile<2, O>(x.from(r), weight, apart, out + r * stride, stride);
  if (r < rows) tile<1, O>(x.from(r), weight, apart, out + r * stride, stride);
}

// The outputs of O places that divide those from `begin` to `end`; returns the first of the rest.
template <int O, typename Weight>
inline int64_t write_places(const Rows& x, int64_t rows, const Weight& weight, int64_t begin,
                            int64_t end, float* out, int64_t stride) {
  const int64_t apart = (end - begin) / O;
  for (int64_t o = begin; o < begin + apart; ++o) {
    write_rows<O>(x, rows, weight.from(o), apart, out + o, stride);
  }
  return begin + apart * O;
}

// The outputs from `begin` to `end`, of all rows. `stride` is the width of out's rows.
template <typename Weight>
inline void multiply(const Rows& x, int64_t rows, const Weight& weight, int64_t begin, int64_t end,
                     float* out, int64_t stride) {
  const auto first = rows < ROWS ? write_places<PLACES_OF_FEW, Weight>
                                 : write_places<Weight::OUTPUTS, Weight>;
  int64_t o = first(x, rows, weight, begin, end, out, stride);
  if (end - o > 1) o = write_places<2>(x, rows, weight, o, end, out, stride);
  if (o < end) write_places<1>(x, rows, weight, o, end, out, stride);
}

// How the numbers of a weight are stored; model_code/common/kernels/__init__.py has the same list.
enum Kind { FLOAT32, BFLOAT16, INT8, INT4 };

// Calls `use` with the weight that its pointers and width make up. `scales` is for int8 and int4.
template <typename Use>
inline void with_weight(int64_t kind, const void* numbers, const void* scales, int64_t inputs,
                        Use use) {
  switch (kind) {
    case FLOAT32: return use(Dense<float>::of(numbers, scales, inputs));
    case BFLOAT16: return use(Dense<BFloat16>::of(numbers, scales, inputs));
    case INT8: return use(Eight::of(numbers, scales, inputs));
    case INT4: return use(Four::of(numbers, scales, inputs));
  }
}

}  // namespace isomorph
