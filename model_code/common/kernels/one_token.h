// One token's attention on what a cache keeps: keys and values of heads, or latents, which are both
// for all heads at once (MLA).
//
// Letters: B sequences, K key/value heads, G query heads of one of these, T positions, W width of a
// key, R of a value.

#pragma once

#include "attend.h"
#include "team.h"

namespace isomorph {

// As model_code/common/kernels/one_token.py describes it: 8 bytes a field.
struct OneToken {
  const float* queries;  // [B, K, G, W]
  const void* keys;      // [B, K, T, W]; `keys_of_slot` numbers from a sequence to the next
  const void* values;    // [B, K, T, R]
  const uint8_t* mask;   // [B, T]: which positions are seen; null: all
  float* out;            // [B, K, G, R]
  int64_t kind, sequences, kv_heads, group, positions, width, value_width;
  int64_t keys_of_slot, keys_of_head, values_of_slot, values_of_head, value_apart;
  double scale;
  int64_t threads;
};

// Positions whose keys stay in a core's own cache while all heads go over them.
constexpr int64_t RUN_OF_KEYS = 128;

// Positions of a task, so that a sequence has 64 at most: whole runs, the same for any threads.
inline int64_t span_of(int64_t positions) {
  const int64_t runs = (positions + RUN_OF_KEYS - 1) / RUN_OF_KEYS;
  return (runs + 63) / 64 * RUN_OF_KEYS;
}

// What the G heads see of the positions from `begin` to `end`, stretch by stretch of those that the
// mask shows: [G, R + 2].
template <typename Number>
inline void attend_span(const OneToken& of, int64_t b, int64_t k, int64_t begin, int64_t end,
                        const float* queries, float* all) {
  const int64_t G = of.group, W = of.width, R = of.value_width, stride = R + 2;
  const Number* const keys =
      static_cast<const Number*>(of.keys) + b * of.keys_of_slot + k * of.keys_of_head;
  const Number* const values =
      static_cast<const Number*>(of.values) + b * of.values_of_slot + k * of.values_of_head;
  const uint8_t* const mask = of.mask ? of.mask + b * of.positions : nullptr;
  static thread_local std::vector<float> scores, part;
  scores.resize(room_for_scores(G, RUN_OF_KEYS));
  part.resize(G * stride);
  for (int64_t g = 0; g < G; ++g) {
    std::fill_n(all + g * stride, stride, 0.0f);
    all[g * stride + R] = -INFINITY;
  }
  for (int64_t t = begin, stop; t < end; t = stop) {
    for (stop = t; stop < end && mask && !mask[stop];) ++stop;
    if (stop > t) continue;
    while (stop < end && stop < t + RUN_OF_KEYS && (!mask || mask[stop])) ++stop;
    attend(queries, G, Dense<Number>{keys + t * W, W},
           Values<Number>{values + t * of.value_apart, R, of.value_apart}, stop - t, 0.0f,
           scores.data(), part.data());
    for (int64_t g = 0; g < G; ++g) merge(part.data() + g * stride, R, all + g * stride);
  }
}

template <typename Number>
inline void attend_one_token(const OneToken& of) {
  const int64_t B = of.sequences, K = of.kv_heads, G = of.group, W = of.width;
  const int64_t R = of.value_width, stride = R + 2, N = K * G;
  const int64_t span = span_of(of.positions), spans = (of.positions + span - 1) / span;
  const Scratch queries = scratch(B * N * W), found = scratch(B * K * spans * G * stride);
  for (int64_t i = 0; i < B * N * W; ++i) queries[i] = of.queries[i] * float(of.scale);
  in_phases(int(of.threads), 2, [&](Member& team) {
    team.run(B * K * spans, [&](int64_t task) {
      const int64_t head = task / spans, begin = task % spans * span;
      attend_span<Number>(of, head / K, head % K, begin, std::min(begin + span, of.positions),
                          queries.get() + head * G * W, found.get() + task * G * stride);
    });
    team.run(B * N, [&](int64_t head) {
      const float* runs = found.get() + (head / G * spans * G + head % G) * stride;
      join(runs, spans, G * stride, R, of.out + head * R);
    });
  });
}

}  // namespace isomorph
