// One token's attention, over a run of cached positions, for the query heads that share their keys.
//
// Letters: G query heads, H head width, T positions. What a run gives is a head's weighted values
// [H], its largest score and the sum of its weights: runs are joined by these.

#pragma once

#include <cmath>

#include "matmul.h"

namespace isomorph {

// Turns scores into weights relative to the largest, and returns their sum.
inline float soften(float* scores, int64_t count, float softcap, float& largest) {
  largest = -INFINITY;
  for (int64_t t = 0; t < count; ++t) {
    if (softcap) scores[t] = softcap * std::tanh(scores[t] / softcap);
    largest = std::max(largest, scores[t]);
  }
  Floats total = {};
  int64_t t = 0;
  for (; t + LANES <= count; t += LANES) {
    const Floats weights = exponential(load_floats(scores + t) - largest);
    std::memcpy(scores + t, &weights, sizeof weights);
    total += weights;
  }
  float found = sum(total);
  for (; t < count; ++t) found += scores[t] = std::exp(scores[t] - largest);
  return found;
}

// Values of positions, `apart` numbers from each other.
template <typename Number>
struct Values {
  const Number* numbers;
  int64_t width, apart;
};

// R heads' weighted values, V registers of each at a time; returns where it stopped.
template <int R, int V, typename Number>
inline int64_t weigh(const float* weights, const Values<Number>& values, int64_t count, int64_t h,
                     float* out, int64_t stride) {
  for (; h + V * LANES <= values.width; h += V * LANES) {
    Floats sums[R][V] = {};
    for (int64_t t = 0; t < count; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Floats value = load_floats(values.numbers + t * values.apart + h + v * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          sums[r][v] = multiply_add(broadcast(weights[r * count + t]), value, sums[r][v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) std::memcpy(out + r * stride + h, sums[r], sizeof sums[r]);
  }
  return h;
}

template <int R, typename Number>
inline void weigh(const float* weights, const Values<Number>& values, int64_t count, float* out,
                  int64_t stride) {
  int64_t h = weigh<R, R == 1 ? 4 : 2>(weights, values, count, 0, out, stride);
  h = weigh<R, 1>(weights, values, count, h, out, stride);
  for (int r = 0; r < R; ++r) {
    for (int64_t rest = h; rest < values.width; ++rest) {
      float total = 0;
      for (int64_t t = 0; t < count; ++t) {
        total += weights[r * count + t] * to_float(values.numbers[t * values.apart + rest]);
      }
      out[r * stride + rest] = total;
    }
  }
}

// `queries` [G, W] are scaled, keys as wide; `scores` has room for [G, T]; `out` is [G, H + 2].
template <typename Number>
inline void attend(const float* queries, int64_t heads, const Dense<Number>& keys,
                   const Values<Number>& values, int64_t count, float softcap, float* scores,
                   float* out) {
  const Rows rows = {queries, nullptr, nullptr, nullptr, keys.inputs};
  multiply(rows, heads, keys, 0, count, scores, count);
  const int64_t stride = values.width + 2;
  for (int64_t g = 0; g < heads; ++g) {
    float* head = out + g * stride + values.width;
    head[1] = soften(scores + g * count, count, softcap, head[0]);
  }
  int64_t g = 0;
  for (; g + 4 <= heads; g += 4) {
    weigh<4>(scores + g * count, values, count, out + g * stride, stride);
  }
  for (; g + 2 <= heads; g += 2) {
    weigh<2>(scores + g * count, values, count, out + g * stride, stride);
  }
  if (g < heads) weigh<1>(scores + g * count, values, count, out + g * stride, stride);
}

// Joins the runs of one head, `stride` apart; without any, there is nothing to see.
inline void join(const float* runs, int64_t count, int64_t stride, int64_t width, float* out) {
  float largest = -INFINITY, total = 0;
  for (int64_t c = 0; c < count; ++c) largest = std::max(largest, runs[c * stride + width]);
  std::fill(out, out + width, 0.0f);
  for (int64_t c = 0; c < count; ++c) {
    const float* run = runs + c * stride;
    const float share = std::exp(run[width] - largest);
    total += share * run[width + 1];
    for (int64_t h = 0; h < width; ++h) out[h] += share * run[h];
  }
  if (count == 0) return;
  for (int64_t h = 0; h < width; ++h) out[h] /= total;
}

}  // namespace isomorph
