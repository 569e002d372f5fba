// x times a transposed weight, for a few rows of x: what decoding does.
//
// Letters: R rows of x, O outputs. A tile of R x O sums stays in registers, so a weight is read
// from memory once and turned into floats once for all rows of the tile.

#pragma once

#include <algorithm>

#include "vectors.h"

namespace isomorph {

constexpr int ROWS = 4;
constexpr int OUTPUTS = REGISTERS >= 32 ? 4 : 3;  // 12 sums leave AVX2 four registers
constexpr int64_t CACHE_LINE = 64;
constexpr int OUTPUTS_OF_ONE = 4;                 // sums that a single row keeps in flight

// A weight of numbers that stand for themselves, but for one scale an output (null: none).
template <typename Number>
struct Dense {
  const Number* numbers;
  const float* scale;
  int64_t inputs;

  Dense from(int64_t output) const {
    return {numbers + output * inputs, scale ? scale + output : nullptr, inputs};
  }
};

// int4 in groups of 32 inputs. Byte j of a group has input j in its lower half, j + 16 in its
// upper one; a group's number n stands for n * scale + offset, both bfloat16, in that order.
struct Grouped {
  static constexpr int GROUP = 32;
  const uint8_t* nibbles;
  const BFloat16* scales;
  int64_t inputs;

  Grouped from(int64_t output) const {
    return {nibbles + output * inputs / 2, scales + output * inputs / GROUP * 2, inputs};
  }
};

// The pragmas keep the sums in registers: rolled up, the loops would index them in memory.
template <int R, int O, typename Number>
inline void tile(const float* x, const Dense<Number>& weight, float (&out)[R][O]) {
  const int64_t inputs = weight.inputs;
  Floats sums[R][O] = {};
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    Floats rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) rows[r] = load_floats(x + r * inputs + i);
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const Number* const numbers = weight.numbers + o * inputs + i;
      // One row waits for memory, and the CPU's own prefetcher stops at each 4 KiB: the same place
      // of the next O outputs is fetched meanwhile. Beyond the last one that does nothing.
      if (R == 1 && i * int64_t(sizeof(Number)) % CACHE_LINE == 0) {
        __builtin_prefetch(numbers + O * inputs);
      }
      const Floats column = load_floats(numbers);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][o] = multiply_add(rows[r], column, sums[r][o]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      float total = sum(sums[r][o]);
      for (int64_t rest = i; rest < inputs; ++rest) {
        total += x[r * inputs + rest] * to_float(weight.numbers[o * inputs + rest]);
      }
      out[r][o] = weight.scale ? total * weight.scale[o] : total;
    }
  }
}

template <int R, int O>
inline void tile(const float* x, const Grouped& weight, float (&out)[R][O]) {
  constexpr int HALF = Grouped::GROUP / 2;
  const int64_t inputs = weight.inputs;
  Floats sums[R][O] = {};
  for (int64_t group = 0; group < inputs / Grouped::GROUP; ++group) {
    const float* part = x + group * Grouped::GROUP;
    Floats totals[R] = {};  // of x: what the offset is multiplied with
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < Grouped::GROUP; i += LANES) {
        totals[r] += load_floats(part + r * inputs + i);
      }
    }
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) {
      const Grouped column = weight.from(o);
      Floats products[R] = {};
#pragma GCC unroll 2
      for (int i = 0; i < HALF; i += LANES) {
        Floats low, high;
        load_nibbles(column.nibbles + group * HALF + i, low, high);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const float* row = part + r * inputs + i;
          products[r] = multiply_add(load_floats(row), low, products[r]);
          products[r] = multiply_add(load_floats(row + HALF), high, products[r]);
        }
      }
      const Floats scale = broadcast(to_float(column.scales[2 * group]));
      const Floats offset = broadcast(to_float(column.scales[2 * group + 1]));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        sums[r][o] = multiply_add(products[r], scale, sums[r][o]);
        sums[r][o] = multiply_add(totals[r], offset, sums[r][o]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) out[r][o] = sum(sums[r][o]);
  }
}

template <int R, int O, typename Weight>
inline void write_tile(const float* x, const Weight& weight, float* out, int64_t stride) {
  float found[R][O];
  tile<R, O>(x, weight, found);
  for (int r = 0; r < R; ++r) std::copy(found[r], found[r] + O, out + r * stride);
}

// O outputs for all rows.
template <int O, typename Weight>
inline void write_rows(const float* x, int64_t rows, const Weight& weight, float* out,
                       int64_t stride) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS) {
    write_tile<ROWS, O>(x + r * weight.inputs, weight, out + r * stride, stride);
  }
  for (; r < rows; ++r) {
    write_tile<1, O>(x + r * weight.inputs, weight, out + r * stride, stride);
  }
}

// The outputs from `begin` to `end`, of all rows. `stride` is the width of out's rows.
template <typename Weight>
inline void multiply(const float* x, int64_t rows, const Weight& weight, int64_t begin,
                     int64_t end, float* out, int64_t stride) {
  int64_t o = begin;
  if (rows < ROWS) {
    for (; o + OUTPUTS_OF_ONE <= end; o += OUTPUTS_OF_ONE) {
      write_rows<OUTPUTS_OF_ONE>(x, rows, weight.from(o), out + o, stride);
    }
  }
  for (; o + OUTPUTS <= end; o += OUTPUTS) {
    write_rows<OUTPUTS>(x, rows, weight.from(o), out + o, stride);
  }
  for (; o < end; ++o) write_rows<1>(x, rows, weight.from(o), out + o, stride);
}

}  // namespace isomorph
