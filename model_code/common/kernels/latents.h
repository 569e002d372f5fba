// One token's attention on latents, which are keys and values of all heads at once (MLA, decoding).
//
// Letters: B sequences, N heads, T positions, W width of what a position keeps, R of its latent,
// which comes first.

#pragma once

#include "attend.h"
#include "team.h"

namespace isomorph {

struct Latents {
  const float* queries;    // [B, N, W]
  const void* kept;        // [T, W] of each sequence, `apart` numbers from the next one's
  const int64_t* lengths;  // [B], each at least 1
  float* out;              // [B, N, R]
  int64_t sequences, heads, width, rank, apart;
  float scale;
};

// Positions whose latents stay in a core's own cache while all heads go over them.
constexpr int64_t RUN_OF_LATENTS = 128;
// Positions of a task, so that a sequence has 64 at most: whole runs, the same for any threads.
inline int64_t span_of_latents(int64_t longest) {
  const int64_t runs = (longest + RUN_OF_LATENTS - 1) / RUN_OF_LATENTS;
  return (runs + 63) / 64 * RUN_OF_LATENTS;
}

template <typename Number>
inline void attend_latents(const Latents& of, int threads) {
  const int64_t B = of.sequences, N = of.heads, W = of.width, R = of.rank, stride = R + 2;
  const int64_t longest = *std::max_element(of.lengths, of.lengths + B);
  const int64_t span = span_of_latents(longest), spans = (longest + span - 1) / span;
  const Scratch queries = scratch(B * N * W), found = scratch(B * spans * N * stride);
  for (int64_t i = 0; i < B * N * W; ++i) queries[i] = of.queries[i] * of.scale;
  in_phases(threads, 2, [&](Member& team) {
    team.run(B * spans, [&](int64_t task) {
      const int64_t b = task / spans, first = task % spans * span;
      const int64_t end = std::min(first + span, of.lengths[b]);
      static thread_local std::vector<float> scores, part;
      scores.resize(room_for_scores(N, RUN_OF_LATENTS));
      part.resize(N * stride);
      float* const all = found.get() + task * N * stride;
      for (int64_t begin = first; begin < end; begin += RUN_OF_LATENTS) {
        const Number* kept = static_cast<const Number*>(of.kept) + b * of.apart + begin * W;
        attend(queries.get() + b * N * W, N, Dense<Number>{kept, W}, Values<Number>{kept, R, W},
               std::min(RUN_OF_LATENTS, end - begin), 0.0f, scores.data(),
               begin == first ? all : part.data());
        for (int64_t n = 0; begin > first && n < N; ++n) {
          merge(part.data() + n * stride, R, all + n * stride);
        }
      }
    });
    team.run(B * N, [&](int64_t head) {
      const int64_t b = head / N, count = (of.lengths[b] + span - 1) / span;
      join(found.get() + (b * spans * N + head % N) * stride, count, N * stride, R,
           of.out + head * R);
    });
  });
}

}  // namespace isomorph
