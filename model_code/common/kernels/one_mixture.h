// A mixture of experts in one call: the router's choices, the experts, and their weighted sum.
//
// Letters: T tokens, K experts a token, E experts, D model width, F an expert's inner width.

#pragma once

#include "experts.h"
#include "layer.h"
#include "router.h"

namespace isomorph {

// As model_code/common/kernels/one_mixture.py describes it: 8 bytes a field.
struct OneMixture {
  Mixture routed;  // without a router, `choices` and `shares` are given
  Matrix gate_up;  // [E x 2F, D]; without it, choices and shares are all that is wanted
  Matrix down;     // [E x D, F]
  const float* x;    // [T, D]
  int64_t* choices;  // [T, K]
  float* shares;     // [T, K]
  float* out;        // [T, D]
  int64_t tokens, width, threads;
};

inline Rules rules_of(const Mixture& of) {
  return {of.experts, of.chosen, of.groups, of.kept_groups, of.best_of_group,
          bool(of.sigmoid), bool(of.normalize), float(of.scale)};
}

// Two phases. More parts than threads: one that the system interrupts leaves its share to others.
inline void route(Member& team, const OneMixture& of, float* logits) {
  const Mixture& by = of.routed;
  const int64_t parts = of.threads == 1 ? 1 : 4 * of.threads, E = by.experts;
  const Rows x = {of.x, nullptr, nullptr, nullptr, of.width};
  team.run(parts, [&](int64_t part) {
    const int64_t begin = E * part / parts, count = E * (part + 1) / parts - begin;
    multiply_some(by.router, x, of.tokens, begin, count, logits + begin, E);
  });
  team.run(of.tokens, [&](int64_t t) {
    route_one(logits + t * E, by.correction, of.choices + t * by.chosen, of.shares + t * by.chosen,
              rules_of(by));
  });
}

inline Experts experts_of(const OneMixture& of) {
  return {of.tokens, of.routed.chosen, of.routed.experts, of.width, of.down.inputs};
}

inline std::unique_ptr<Visits> visits_of(const OneMixture& of, float* results) {
  std::unique_ptr<Visits> made;
  const Matrix &first = of.gate_up, &last = of.down;
  with_weight(first.kind, first.numbers, first.scales, first.inputs, [&](auto gate_up) {
    using Weight = decltype(gate_up);
    made.reset(new Visiting<Weight>(of.x, of.choices, gate_up,
                                    Weight::of(last.numbers, last.scales, last.inputs), results,
                                    experts_of(of), int(of.threads)));
  });
  return made;
}

// Returns whether each given choice is an expert; otherwise nothing has been read.
inline bool run(const OneMixture& of) {
  const bool routed = of.routed.router.numbers, visited = of.gate_up.numbers;
  const Experts experts = experts_of(of);
  for (int64_t v = 0; !routed && v < experts.visits(); ++v) {
    if (of.choices[v] < 0 || of.choices[v] >= experts.experts) return false;
  }
  const Scratch logits = scratch(routed ? of.tokens * experts.experts : 0);
  const Scratch results = scratch(visited ? experts.visits() * of.width : 0);
  std::unique_ptr<Visits> visits;
  in_phases(int(of.threads), 4 + Visits::PHASES, [&](Member& team) {
    if (routed) route(team, of, logits.get());
    if (!visited) return;
    team.run(1, [&](int64_t) { visits = visits_of(of, results.get()); });
    visits->run(team);
    combine(team, results.get(), of.shares, of.out, experts, false);
  });
  return true;
}

}  // namespace isomorph
