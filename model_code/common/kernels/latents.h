// One token's attention on latents, which are keys and values of all heads at once (MLA, decoding).
//
// Letters: B sequences, N heads, T positions, W width of what a position keeps, R of its latent,
// which comes first.

#pragma once

#include "attend.h"

namespace isomorph {

struct Latents {
  const float* queries;    // [B, N, W]
  const void* kept;        // [T, W] of each sequence, `apart` numbers from the next one's
  const int64_t* lengths;  // [B], each at least 1
  float* out;              // [B, N, R]
  int64_t sequences, heads, width, rank, apart;
  float scale;
};

// A run of positions is a task: short enough for its latents to stay in a core's own cache while
// all heads go over them.
constexpr int64_t RUN_OF_LATENTS = 128;

template <typename Number>
inline void attend_latents(const Latents& of, int threads) {
  const int64_t B = of.sequences, N = of.heads, W = of.width, R = of.rank, run = RUN_OF_LATENTS;
  const int64_t longest = *std::max_element(of.lengths, of.lengths + B);
  const int64_t most = (longest + run - 1) / run, stride = R + 2;
  const Scratch queries = scratch(B * N * W), runs = scratch(B * most * N * stride);
  for (int64_t i = 0; i < B * N * W; ++i) queries[i] = of.queries[i] * of.scale;
#pragma omp parallel num_threads(threads)
  {
    const Scratch scores = scratch(N * run);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < B * most; ++task) {
      const int64_t b = task / most, begin = task % most * run;
      const int64_t count = std::min(run, of.lengths[b] - begin);
      if (count <= 0) continue;
      const Number* kept = static_cast<const Number*>(of.kept) + b * of.apart + begin * W;
      attend(queries.get() + b * N * W, N, Dense<Number>{kept, W}, Values<Number>{kept, R, W},
             count, 0.0f, scores.get(), runs.get() + task * N * stride);
    }
#pragma omp for schedule(static)
    for (int64_t head = 0; head < B * N; ++head) {
      const int64_t b = head / N, count = (of.lengths[b] + run - 1) / run;
      join(runs.get() + (b * most * N + head % N) * stride, count, N * stride, R,
           of.out + head * R);
    }
  }
}

}  // namespace isomorph
