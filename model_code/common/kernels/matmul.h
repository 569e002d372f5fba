// Rows times a transposed weight, for a few rows: what decoding does.
//
// Letters: R rows, O outputs. A tile of R x O sums stays in registers, so a weight is read from
// memory once for all rows of the tile. A tile of one sum keeps U parts of it, which do not wait
// for each other.

#pragma once

#include "few_bits.h"

namespace isomorph {

constexpr int ROWS = 4;
constexpr int64_t CACHE_LINE = 64;
constexpr int OUTPUTS_OF_ONE = 4;      // sums that a single row keeps in flight: of short outputs
constexpr int64_t LONG = 1024;         // bytes of an output that is read along, one after the other
constexpr int PARTS_OF_LONG = 4;

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
  int64_t bytes() const { return inputs * int64_t(sizeof(Number)); }
};

// The pragmas keep the sums in registers: rolled up, the loops would index them in memory.
template <int R, int O, int U, typename Number>
inline void tile(const Rows& x, const Dense<Number>& weight, float (&out)[R][O]) {
  const int64_t inputs = weight.inputs;
  Floats sums[U][R][O] = {};
  const auto add = [&](int64_t i, Floats (&to)[R][O]) __attribute__((always_inline)) {
    Floats rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) rows[r] = load_floats(x.floats + r * inputs + i);
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const Number* const numbers = weight.numbers + o * inputs + i;
      if (i * int64_t(sizeof(Number)) % CACHE_LINE == 0) {
        prefetch<O>(numbers, inputs * sizeof(Number));
      }
      const Floats column = load_floats(numbers);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) to[r][o] = multiply_add(rows[r], column, to[r][o]);
    }
  };
  int64_t i = 0;
  for (; i + U * LANES <= inputs; i += U * LANES) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) add(i + u * LANES, sums[u]);
  }
  for (; i + LANES <= inputs; i += LANES) add(i, sums[0]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      out[r][o] = sum(all_parts(sums, r, o));
      for (int64_t rest = i; rest < inputs; ++rest) {
        out[r][o] += x.floats[r * inputs + rest] * to_float(weight.numbers[o * inputs + rest]);
      }
    }
  }
}

template <int R, int O, int U, typename Weight>
inline void write_tile(const Rows& x, const Weight& weight, float* out, int64_t stride) {
  float found[R][O];
  tile<R, O, U>(x, weight, found);
  for (int r = 0; r < R; ++r) std::copy(found[r], found[r] + O, out + r * stride);
}

// O outputs for all rows.
template <int O, int U, typename Weight>
inline void write_rows(const Rows& x, int64_t rows, const Weight& weight, float* out,
                       int64_t stride) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS) {
    write_tile<ROWS, O, 1>(x.from(r), weight, out + r * stride, stride);
  }
  if (r + 3 == rows) return write_tile<3, O, U>(x.from(r), weight, out + r * stride, stride);
  if (r + 2 == rows) return write_tile<2, O, U>(x.from(r), weight, out + r * stride, stride);
  if (r < rows) write_tile<1, O, U>(x.from(r), weight, out + r * stride, stride);
}

// The outputs from `begin` to `end`, of all rows. `stride` is the width of out's rows.
template <typename Weight>
inline void multiply(const Rows& x, int64_t rows, const Weight& weight, int64_t begin, int64_t end,
                     float* out, int64_t stride) {
  int64_t o = begin;
  if (rows < ROWS && weight.bytes() >= LONG) {
    for (; o < end; ++o) {
      write_rows<1, PARTS_OF_LONG>(x, rows, weight.from(o), out + o, stride);
    }
    return;
  }
  if (rows < ROWS) {
    for (; o + OUTPUTS_OF_ONE <= end; o += OUTPUTS_OF_ONE) {
      write_rows<OUTPUTS_OF_ONE, 1>(x, rows, weight.from(o), out + o, stride);
    }
  }
  for (; o + Weight::OUTPUTS <= end; o += Weight::OUTPUTS) {
    write_rows<Weight::OUTPUTS, 1>(x, rows, weight.from(o), out + o, stride);
  }
  for (; o < end; ++o) write_rows<1, 1>(x, rows, weight.from(o), out + o, stride);
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
