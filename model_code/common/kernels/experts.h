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

// Tokens that visit their experts: what the threads of a team share on the way.
struct Visits {
  static constexpr int64_t PHASES = 5;  // at most

  virtual void run(Member& team) = 0;
  virtual ~Visits() = default;
};

// Writes what each expert makes of its tokens to the visits' rows of `results` [V, D].
// `gate_up` is [E x 2F, D] and `down` [E x D, F]: the experts' weights one below the other.
template <typename Weight>
class Visiting final : public Visits {
 public:

  Visiting(const float* x, const int64_t* choices, const Weight& gate_up, const Weight& down,
           float* results, const Experts& of, int threads)
      : x_(x), gate_up_(gate_up), down_(down), results_(results), of_(of), plan_(choices, of),
        visits_(int64_t(plan_.order.size())), touched_(int64_t(plan_.touched.size())),
        parts_(parts_of_expert(plan_.touched.size(), threads)), each_alone_(parts_ == 1),
        rows_(room(of.width)), out_(room(of.width)), made_up_(room(2 * of.inner)),
        inner_(room(of.inner)), rounded_rows_(each_alone_ ? 0 : visits_, of.width),
        rounded_inner_(each_alone_ ? 0 : visits_, of.inner) {}

  void run(Member& team) override {
    if (!each_alone_) return all_together(team);
    team.run(touched_, [&](int64_t i) {
      const int64_t begin = plan_.starts[i], e = plan_.touched[i];
      visit_expert(x_, plan_.order.data() + begin, plan_.starts[i + 1] - begin,
                   gate_up_.from(e * 2 * of_.inner), down_.from(e * of_.width), results_, of_);
    });
  }

 private:
  Scratch room(int64_t width) const { return scratch(each_alone_ ? 0 : visits_ * width); }

  void all_together(Member& team) {
    const int64_t D = of_.width, F = of_.inner;
    team.run(visits_, [&](int64_t v) {
      const float* row = x_ + plan_.order[v] / of_.chosen * D;
      std::copy(row, row + D, rows_.get() + v * D);
      if (Weight::FEW_BITS) rounded_rows_.round(rows_.get(), D, v);
    });
    team.run(touched_ * parts_, [&](int64_t task) {
      const int64_t i = task / parts_, from = end_of_part(F, task % parts_, parts_);
      const int64_t to = end_of_part(F, task % parts_ + 1, parts_), begin = plan_.starts[i];
      const int64_t count = plan_.starts[i + 1] - begin;
      const Weight weight = gate_up_.from(plan_.touched[i] * 2 * F);
      const Rows given = rounded_rows_.of(rows_.get(), D).from(begin);
      float* made = made_up_.get() + begin * 2 * F;
      multiply(given, count, weight, from, to, made, 2 * F);
      multiply(given, count, weight, F + from, F + to, made, 2 * F);
    });
    team.run(visits_, [&](int64_t v) {
      const float* row = made_up_.get() + v * 2 * F;
      gate<false>(row, row + F, F, inner_.get() + v * F);
      if (Weight::FEW_BITS) rounded_inner_.round(inner_.get(), F, v);
    });
    team.run(touched_ * parts_, [&](int64_t task) {
      const int64_t i = task / parts_, from = end_of_part(D, task % parts_, parts_);
      const int64_t to = end_of_part(D, task % parts_ + 1, parts_), begin = plan_.starts[i];
      const int64_t count = plan_.starts[i + 1] - begin;
      multiply(rounded_inner_.of(inner_.get(), F).from(begin), count,
               down_.from(plan_.touched[i] * D), from, to, out_.get() + begin * D, D);
    });
    team.run(visits_, [&](int64_t v) {
      const float* row = out_.get() + v * D;
      std::copy(row, row + D, results_ + plan_.order[v] * D);
    });
  }

  const float* const x_;
  const Weight gate_up_, down_;
  float* const results_;
  const Experts of_;
  const Plan plan_;
  const int64_t visits_, touched_, parts_;
  const bool each_alone_;
  const Scratch rows_, out_, made_up_, inner_;
  Rounded rounded_rows_, rounded_inner_;
};

// Adds up each token's results [T, K, D], weighted, in the order of its choices: so any number of
// threads agrees, and so does any division of the visits. Begins with what is in `out`, or with 0.
inline void combine(Member& team, const float* results, const float* shares, float* out,
                    const Experts& of, bool on_top) {
  team.run(of.tokens, [&](int64_t t) {
    if (!on_top) std::fill_n(out + t * of.width, of.width, 0.0f);
    for (int64_t v = t * of.chosen; v < (t + 1) * of.chosen; ++v) {
      for (int64_t d = 0; d < of.width; ++d) {
        out[t * of.width + d] += shares[v] * results[v * of.width + d];
      }
    }
  });
}

}  // namespace isomorph
