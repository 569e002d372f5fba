// The feed-forward networks of a mixture of experts, for tokens that have been routed.
//
// Letters: T tokens, K experts a token, E experts, D model width, F an expert's inner width.
// Each expert's tokens are gathered, so that its weights are read once, whatever T is.

#pragma once

#include <cmath>
#include <vector>

#include "matmul.h"

namespace isomorph {

struct Experts {
  int64_t tokens, chosen, experts, width, inner;
};

// SwiGLU of one row: `inner` gates, then as many values. `to` may be where an earlier row began.
inline void swiglu(const float* row, int64_t inner, float* to) {
  int64_t f = 0;
  for (; f + LANES <= inner; f += LANES) {
    const Floats gate = load_floats(row + f);
    const Floats out = gate / (1.0f + exponential(-gate)) * load_floats(row + inner + f);
    std::memcpy(to + f, &out, sizeof out);
  }
  for (; f < inner; ++f) to[f] = row[f] / (1.0f + std::exp(-row[f])) * row[inner + f];
}

// Which of the T x K choices fall on each expert: `order` lists them expert by expert, those of
// expert e from starts[e] to starts[e + 1].
struct Plan {
  std::vector<int64_t> starts, order;

  Plan(const int64_t* choices, const Experts& of)
      : starts(of.experts + 1), order(of.tokens * of.chosen) {
    const int64_t count = int64_t(order.size());
    for (int64_t c = 0; c < count; ++c) ++starts[choices[c] + 1];
    for (int64_t e = 0; e < of.experts; ++e) starts[e + 1] += starts[e];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t c = 0; c < count; ++c) order[next[choices[c]]++] = c;
  }
};

// One expert for its tokens; writes each choice's result, weighted, to its row of `results`.
template <typename Weight>
void run_expert(const float* x, const float* shares, const Weight& gate_up, const Weight& down,
                const int64_t* choices, int64_t count, const Experts& of, float* results) {
  std::vector<float> rows(count * of.width), inner(count * 2 * of.inner), out(count * of.width);
  for (int64_t c = 0; c < count; ++c) {
    const float* row = x + choices[c] / of.chosen * of.width;
    std::copy(row, row + of.width, rows.data() + c * of.width);
  }
  multiply(rows.data(), count, gate_up, 0, 2 * of.inner, inner.data(), 2 * of.inner);
  for (int64_t c = 0; c < count; ++c) {  // in place: row c of F begins where row c of 2F was read
    swiglu(inner.data() + c * 2 * of.inner, of.inner, inner.data() + c * of.inner);
  }
  multiply(inner.data(), count, down, 0, of.width, out.data(), of.width);
  for (int64_t c = 0; c < count; ++c) {
    float* to = results + choices[c] * of.width;
    for (int64_t d = 0; d < of.width; ++d) to[d] = shares[choices[c]] * out[c * of.width + d];
  }
}

// `gate_up` is [E x 2F, D] and `down` [E x D, F]: the experts' weights one below the other.
template <typename Weight>
void run_experts(const float* x, const int64_t* choices, const float* shares,
                 const Weight& gate_up, const Weight& down, float* out, const Experts& of,
                 int threads) {
  const Plan plan(choices, of);
  std::vector<float> results(of.tokens * of.chosen * of.width);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t e = 0; e < of.experts; ++e) {
      const int64_t count = plan.starts[e + 1] - plan.starts[e];
      if (count == 0) continue;
      run_expert(x, shares, gate_up.from(e * 2 * of.inner), down.from(e * of.width),
                 plan.order.data() + plan.starts[e], count, of, results.data());
    }
    // A token's results are added in the order of its choices, so any number of threads agrees.
#pragma omp for schedule(static)
    for (int64_t t = 0; t < of.tokens; ++t) {
      float* to = out + t * of.width;
      std::fill(to, to + of.width, 0.0f);
      for (int64_t k = 0; k < of.chosen; ++k) {
        const float* row = results.data() + (t * of.chosen + k) * of.width;
        for (int64_t d = 0; d < of.width; ++d) to[d] += row[d];
      }
    }
  }
}

}  // namespace isomorph
