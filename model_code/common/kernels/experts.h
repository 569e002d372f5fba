// The feed-forward networks of a mixture of experts, for tokens that have been routed.
//
// Letters: T tokens, K experts a token, V visits (T x K), E experts, D model width, F an expert's
// inner width. Each expert's tokens are gathered, so that its weights are read once, whatever T is.

#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "matmul.h"
#include "team.h"

namespace isomorph {

struct Experts {
  int64_t tokens, chosen, experts, width, inner;

  int64_t visits() const { return tokens * chosen; }
};

// SwiGLU of one row, `count` gates and as many values; or with GELU by tanh in the place of SiLU.
// Both weigh the gate by a logistic function: GELU's tanh(z) is 2 / (1 + e^-2z) - 1.
template <bool GELU>
inline void gate(const float* gates, const float* values, int64_t count, float* to) {
  const auto weighed = [](Floats x) {
    const Floats z = GELU ? x * (1.59576912f + 0.0713548162f * x * x) : x;
    return x / (1.0f + exponential(-z));
  };
  int64_t f = 0;
  for (; f + LANES <= count; f += LANES) {
    const Floats out = weighed(load_floats(gates + f)) * load_floats(values + f);
    std::memcpy(to + f, &out, sizeof out);
  }
  for (; f < count; ++f) to[f] = weighed(broadcast(gates[f]))[0] * values[f];
}

// Which visits fall on each expert: `order` lists them expert by expert, those of touched[i] from
// starts[i] to starts[i + 1]. A choice below 0 is no visit: somebody else takes care of it.
struct Plan {
  std::vector<int64_t> touched, starts, order;

  Plan(const int64_t* choices, const Experts& of) {
    std::vector<int64_t> next(of.experts);
    for (int64_t v = 0; v < of.visits(); ++v) {
      if (choices[v] >= 0) ++next[choices[v]];
    }
    int64_t start = 0;
    for (int64_t e = 0; e < of.experts; ++e) {
      const int64_t count = next[e];
      if (count == 0) continue;
      touched.push_back(e);
      starts.push_back(start);
      next[e] = start;
      start += count;
    }
    starts.push_back(start);
    order.resize(start);
    for (int64_t v = 0; v < of.visits(); ++v) {
      if (choices[v] >= 0) order[next[choices[v]]++] = v;
    }
  }
};

// How each expert's outputs are divided: few experts are cut, so that each thread has its share.
inline int64_t parts_of_expert(size_t touched, int threads) {
  const int64_t wanted = threads == 1 ? 1 : 4 * threads;
  return std::max<int64_t>(1, wanted / std::max<int64_t>(1, int64_t(touched)));
}

// Where part p of n ends, in whole registers of outputs but for the last.
inline int64_t end_of_part(int64_t outputs, int64_t p, int64_t parts) {
  return p == parts ? outputs : outputs * p / parts / LANES * LANES;
}

// What one expert makes of its tokens, those of the visits `order`, into their rows of `results`.
// All that it needs stays in the caches of its thread, and no large memory is asked for: pages that
// the system gives for the first time took a third of 512 tokens' time.
template <typename Weight>
void visit_expert(const float* x, const int64_t* order, int64_t count, const Weight& gate_up,
                  const Weight& down, float* results, const Experts& of) {
  const int64_t D = of.width, F = of.inner;
  const Scratch rows = scratch(count * D), made_up = scratch(count * 2 * F);
  const Scratch inner = scratch(count * F);
  Rounded rounded_rows(count, D), rounded_inner(count, F);
  for (int64_t v = 0; v < count; ++v) {
    const float* row = x + order[v] / of.chosen * D;
    std::copy(row, row + D, rows.get() + v * D);
    if (Weight::FEW_BITS) rounded_rows.round(rows.get(), D, v);
  }
  multiply(rounded_rows.of(rows.get(), D), count, gate_up, 0, 2 * F, made_up.get(), 2 * F);
  for (int64_t v = 0; v < count; ++v) {
    const float* row = made_up.get() + v * 2 * F;
    gate<false>(row, row + F, F, inner.get() + v * F);
    if (Weight::FEW_BITS) rounded_inner.round(inner.get(), F, v);
  }
  float* out = rows.get();  // the tokens were read
  multiply(rounded_inner.of(inner.get(), F), count, down, 0, D, out, D);
  for (int64_t v = 0; v < count; ++v) {
    std::copy(out + v * D, out + (v + 1) * D, results + order[v] * D);
  }
}

// Writes what each visited expert makes of its tokens to the visits' rows of `results` [V, D].
// `gate_up` is [E x 2F, D] and `down` [E x D, F]: the experts' weights one below the other.
template <typename Weight>
void visit_experts(const float* x, const int64_t* choices, const Weight& gate_up,
                   const Weight& down, float* results, const Experts& of, int threads) {
  const Plan plan(choices, of);
  const int64_t visits = int64_t(plan.order.size()), D = of.width, F = of.inner;
  const int64_t touched = int64_t(plan.touched.size());
  const int64_t parts = parts_of_expert(plan.touched.size(), threads);
  // With a row or two an expert, phases over all of them were measured to be no slower.
  if (parts == 1 && visits >= 4 * touched) {
    in_phases(threads, 1, [&](Member& team) {
      team.run(touched, [&](int64_t i) {
        const int64_t begin = plan.starts[i], e = plan.touched[i];
        visit_expert(x, plan.order.data() + begin, plan.starts[i + 1] - begin,
                     gate_up.from(e * 2 * F), down.from(e * D), results, of);
      });
    });
    return;
  }
  const Scratch rows = scratch(visits * D), out = scratch(visits * D);
  const Scratch made_up = scratch(visits * 2 * F), inner = scratch(visits * F);
  Rounded rounded_rows(visits, D), rounded_inner(visits, F);
  in_phases(threads, 5, [&](Member& team) {
    team.run(visits, [&](int64_t v) {
      const float* row = x + plan.order[v] / of.chosen * D;
      std::copy(row, row + D, rows.get() + v * D);
      if (Weight::FEW_BITS) rounded_rows.round(rows.get(), D, v);
    });
    team.run(touched * parts, [&](int64_t task) {
      const int64_t i = task / parts, from = end_of_part(F, task % parts, parts);
      const int64_t to = end_of_part(F, task % parts + 1, parts), begin = plan.starts[i];
      const int64_t count = plan.starts[i + 1] - begin;
      const Weight weight = gate_up.from(plan.touched[i] * 2 * F);
      const Rows given = rounded_rows.of(rows.get(), D).from(begin);
      float* made = made_up.get() + begin * 2 * F;
      multiply(given, count, weight, from, to, made, 2 * F);
      multiply(given, count, weight, F + from, F + to, made, 2 * F);
    });
    team.run(visits, [&](int64_t v) {
      const float* row = made_up.get() + v * 2 * F;
      gate<false>(row, row + F, F, inner.get() + v * F);
      if (Weight::FEW_BITS) rounded_inner.round(inner.get(), F, v);
    });
    team.run(touched * parts, [&](int64_t task) {
      const int64_t i = task / parts, from = end_of_part(D, task % parts, parts);
      const int64_t to = end_of_part(D, task % parts + 1, parts), begin = plan.starts[i];
      const int64_t count = plan.starts[i + 1] - begin;
      multiply(rounded_inner.of(inner.get(), F).from(begin), count,
               down.from(plan.touched[i] * D), from, to, out.get() + begin * D, D);
    });
    team.run(visits, [&](int64_t v) {
      const float* row = out.get() + v * D;
      std::copy(row, row + D, results + plan.order[v] * D);
    });
  });
}

// Adds each token's results [T, K, D], weighted, in the order of its choices: so any number of
// threads agrees, and so does any division of the visits.
inline void combine(const float* results, const float* shares, float* out, const Experts& of,
                    int threads) {
  const int useful = of.visits() * of.width < (1 << 16) ? 1 : threads;
  in_phases(useful, 1, [&](Member& team) {
    team.run(of.tokens, [&](int64_t t) {
      float* to = out + t * of.width;
      std::fill(to, to + of.width, 0.0f);
      for (int64_t v = t * of.chosen; v < (t + 1) * of.chosen; ++v) {
        const float* row = results + v * of.width;
        for (int64_t d = 0; d < of.width; ++d) to[d] += shares[v] * row[d];
      }
    });
  });
}

}  // namespace isomorph
