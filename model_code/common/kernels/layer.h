// What a decoder's layers are made of, as model_code/common/kernels/step.py describes them.
//
// Each field has 8 bytes, so that no compiler leaves gaps. Vectors and matrices without numbers are
// parts that a layer does not have.

#pragma once

#include <cmath>

#include "matmul.h"

namespace isomorph {

struct Vector {
  const void* numbers;
  int64_t kind;  // FLOAT32 or BFLOAT16
};

struct Matrix {
  const void* numbers;
  const void* scales;
  Vector bias;
  int64_t kind, outputs, inputs;
};

struct Norms {
  Vector before, after;
  int64_t after_sum;  // whether the second one norms the sum, not what the part made
};

struct SelfAttention {
  Norms norms;
  Matrix qkv, output;
  int64_t heads, kv_heads, width;
  double scale, softcap;      // 0 is no cap
  Vector query_norm, key_norm;
  int64_t all_heads;          // whether all heads are normed as one vector, not each by itself
  Vector cosine, sine;        // [positions, turned / 2]
  int64_t turned;             // numbers of a head that are rotated
};

struct Gated {
  Matrix gate_up, down;
  int64_t gelu;  // in the place of SiLU
};

struct Mixture {
  Matrix router;
  const float* correction;
  int64_t experts, chosen, groups, kept_groups, best_of_group, sigmoid, normalize;
  double scale;
};

struct Layer {
  SelfAttention attention;
  Norms norms;    // of the feed-forward part
  Gated gated;    // dense, or all experts one below the other
  Mixture mixture;
  Gated shared;
};

// A layer's keys and values, [slots, kv_heads, length, width]: position p is at p % length.
struct Kept {
  void* keys;
  void* values;
  int64_t kind, length;
};

struct Step {
  const Layer* layers;
  const Kept* kept;
  int64_t layer_count, rows, width, first_slot;
  int64_t tokens;            // of each sequence; rows are sequence by sequence, slot by slot
  const int64_t* positions;  // of each row's token; -1 is padding
  float* x;                  // [rows, width]: embeddings; overwritten
  float* states;             // [rows, width]: the normed states of the last layer
  int64_t* choices;          // [layers, rows, most_chosen]: experts
  int64_t most_chosen;
  Vector norm;
  double eps, offset;
  int64_t threads;
};

template <typename Use>
inline void with_vector(const Vector& vector, Use use) {
  if (vector.kind == BFLOAT16) return use(static_cast<const BFloat16*>(vector.numbers));
  use(static_cast<const float*>(vector.numbers));
}

inline void add_bias(const Vector& bias, int64_t begin, int64_t count, int64_t rows, float* out,
                     int64_t stride) {
  if (!bias.numbers) return;
  with_vector(bias, [=](auto numbers) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < count; ++o) out[r * stride + o] += to_float(numbers[begin + o]);
    }
  });
}

// The outputs begin to begin + count of a matrix, to the first columns of `out`.
inline void multiply_some(const Matrix& by, const Rows& x, int64_t rows, int64_t begin,
                          int64_t count, float* out, int64_t stride) {
  with_weight(by.kind, by.numbers, by.scales, by.inputs, [&](auto weight) {
    multiply(x, rows, weight.from(begin), 0, count, out, stride);
  });
  add_bias(by.bias, begin, count, rows, out, stride);
}

// What a row is multiplied by, so that its numbers' mean square is 1.
inline float norm_factor(const float* x, int64_t width, float eps) {
  Floats squares = {};
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    const Floats part = load_floats(x + i);
    squares = multiply_add(part, part, squares);
  }
  float total = sum(squares);
  for (; i < width; ++i) total += x[i] * x[i];
  return 1.0f / std::sqrt(total / float(width) + eps);
}

// Weighs numbers by their norm's weights from `begin` on; `x` may be `to`.
inline void weigh_normed(const float* x, int64_t count, float factor, const Vector& weights,
                         int64_t begin, float offset, float* to) {
  with_vector(weights, [=](auto numbers) {
    for (int64_t i = 0; i < count; ++i) {
      to[i] = x[i] * factor * (to_float(numbers[begin + i]) + offset);
    }
  });
}

// Turns pairs half of `turned` apart, each by its angle at a position.
inline void rotate(float* head, const SelfAttention& of, int64_t position) {
  const int64_t half = of.turned / 2;
  with_vector(of.cosine, [=](auto cosines) {
    const auto* cosine = cosines + position * half;
    const auto* sine = static_cast<decltype(cosine)>(of.sine.numbers) + position * half;
    for (int64_t i = 0; i < half; ++i) {
      const float left = head[i], right = head[half + i];
      head[i] = left * to_float(cosine[i]) - right * to_float(sine[i]);
      head[half + i] = right * to_float(cosine[i]) + left * to_float(sine[i]);
    }
  });
}

}  // namespace isomorph
