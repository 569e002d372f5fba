// The rows that a weight is multiplied with: as floats and, for weights of few bits, rounded to 8.
//
// A group of 32 neighbours is rounded to whole numbers from -127 to 127 and one step for all, so
// that a product adds up whole numbers (what llama.cpp calls Q8_0 and Q8_1).

#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "vectors.h"

namespace isomorph {

// Memory that nobody has filled with zeros first. No register's worth of it lies in two lines of a
// cache: that would take two loads.
constexpr std::align_val_t LINE{64};
struct GiveBack {
  void operator()(float* numbers) const { operator delete[](numbers, LINE); }
};
using Scratch = std::unique_ptr<float[], GiveBack>;
inline Scratch scratch(int64_t numbers) { return Scratch(new (LINE) float[numbers]); }

constexpr int GROUP = 32;

inline int64_t groups_of(int64_t inputs) { return (inputs + GROUP - 1) / GROUP; }

struct Rows {
  const float* floats;
  const int8_t* bytes;  // each row filled up to whole groups with zeros
  const float* steps;   // of each group: what its bytes are multiplied by
  const float* sums;    // of each group: what its rounded numbers add up to
  int64_t inputs;

  Rows from(int64_t row) const {
    const int64_t group = row * groups_of(inputs);
    return {floats + row * inputs, bytes + group * GROUP, steps + group, sums + group, inputs};
  }
};

// Owns what the rounded part of `Rows` points to: room for `rows` of up to `inputs`.
class Rounded {
 public:
  Rounded(int64_t rows, int64_t inputs)
      : bytes_(new int8_t[rows * groups_of(inputs) * GROUP]),
        steps_(new float[rows * groups_of(inputs)]),
        sums_(new float[rows * groups_of(inputs)]) {}

  Rows of(const float* floats, int64_t inputs) const {
    return {floats, bytes_.get(), steps_.get(), sums_.get(), inputs};
  }

  void round(const float* floats, int64_t inputs, int64_t row) {
    for (int64_t group = 0; group < groups_of(inputs); ++group) round(floats, inputs, row, group);
  }

  // One group of one row of `floats`, which has all rows.
  void round(const float* floats, int64_t inputs, int64_t row, int64_t group) {
    const int64_t place = row * groups_of(inputs) + group, begin = group * GROUP;
    const float* from = floats + row * inputs + begin;
    float filled[GROUP] = {};
    if (begin + GROUP > inputs) {
      std::copy(from, floats + (row + 1) * inputs, filled);
      from = filled;
    }
    const float most = largest(from);
    // What is too small to divide by becomes zero.
    const Floats inverse = broadcast(most < 1e-30f ? 0.0f : 127.0f / most);
    Ints total = {};
    for (int i = 0; i < GROUP; i += LANES) {
      const Ints numbers = nearest(load_floats(from + i), inverse);
      total += numbers;
      for (int lane = 0; lane < LANES; ++lane) {
        bytes_[place * GROUP + i + lane] = int8_t(numbers[lane]);
      }
    }
    steps_[place] = most / 127.0f;
    int sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += total[lane];
    sums_[place] = steps_[place] * float(sum);
  }

 private:
  static float largest(const float* from) {
    Floats most = {};
    for (int i = 0; i < GROUP; i += LANES) {
      const Floats x = load_floats(from + i);
      const Floats size = x < 0.0f ? -x : x;
      most = size > most ? size : most;
    }
    float found = 0;
    for (int lane = 0; lane < LANES; ++lane) found = std::max(found, most[lane]);
    return found;
  }

  // x * factor to the nearest whole number: adding 1.5 * 2^23 leaves it in the lowest bits.
  static Ints nearest(Floats x, Floats factor) {
    const Floats shifted = multiply_add(x, factor, broadcast(12582912.0f));
    Ints bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4B400000;
  }

  std::unique_ptr<int8_t[]> bytes_;
  std::unique_ptr<float[]> steps_, sums_;
};

}  // namespace isomorph
