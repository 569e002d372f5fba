// The rest of step.h: layers with experts, and what a step needs to work with.

#pragma once

#include "step.h"

namespace isomorph {

inline void Stepper::mixture(Member& team, const Layer& layer, int64_t index) {
  const Mixture& of = layer.mixture;
  const int64_t B = of_.rows, D = of_.width, F = layer.gated.down.inputs, chosen = of.chosen;
  int64_t* choices = of_.choices + index * B * of_.most_chosen;
  product(team, of.router, rounded_.of(of_.states, D), logits_.get());
  team.run(1, [&](int64_t) {
    const Rules rules = {of.experts, chosen, of.groups, of.kept_groups, of.best_of_group,
                         bool(of.sigmoid), bool(of.normalize), float(of.scale)};
    for (int64_t b = 0; b < B; ++b) {
      route_one(logits_.get() + b * of.experts, nullptr, of.correction, choices + b * chosen,
                shares_.get() + b * chosen, rules);
    }
    visits_[index].reset(new Visits(choices, {B, chosen, of.experts, D, F}));
  });
  const Plan& plan = visits_[index]->plan;
  team.run(B * chosen, [&](int64_t v) {
    const float* row = of_.states + plan.order[v] / chosen * D;
    std::copy(row, row + D, gathered_.get() + v * D);
    rounded_gathered_.round(gathered_.get(), D, v);
  });
  const int64_t touched = int64_t(plan.touched.size());
  team.run(touched * chunks(F), [&](int64_t task) {
    const int64_t i = task / chunks(F), first = plan.starts[i];
    const Rows x = rounded_gathered_.of(gathered_.get(), D).from(first);
    gate_chunk(layer.gated, plan.touched[i], x, plan.starts[i + 1] - first, first,
               task % chunks(F), F);
  });
  team.run(touched * chunks(D), [&](int64_t task) {
    const int64_t i = task / chunks(D), first = plan.starts[i], begin = task % chunks(D) * CHUNK;
    const Rows x = rounded_inner_.of(inner_.get(), F).from(first);
    multiply_some(layer.gated.down, x, plan.starts[i + 1] - first, plan.touched[i] * D + begin,
                  std::min(CHUNK, D - begin), visited_.get() + first * D + begin, D);
  });
  const bool shared = layer.shared.down.numbers;
  if (shared) dense(team, layer.shared);
  team.run(B, [&](int64_t b) {
    float* made = made_.get() + b * D;
    if (!shared) std::fill(made, made + D, 0.0f);
    for (int64_t v = b * chosen; v < (b + 1) * chosen; ++v) {
      const float* row = visited_.get() + visits_[index]->places[v] * D;
      for (int64_t d = 0; d < D; ++d) made[d] += shares_[v] * row[d];
    }
  });
}

inline Stepper::Sizes Stepper::sizes(const Step& of) {
  const int64_t B = of.rows;
  Sizes most = {};
  const auto grow = [](int64_t& size, int64_t wanted) { size = std::max(size, wanted); };
  for (int64_t b = 0; b < B; ++b) grow(most.longest, of.positions[b] + 1);
  for (int64_t i = 0; i < of.layer_count; ++i) {
    const Layer& layer = of.layers[i];
    const SelfAttention& part = layer.attention;
    const int64_t longest = std::min(most.longest, of.kept[i].length), run = run_of(longest);
    grow(most.qkv, part.qkv.outputs);
    grow(most.attended, part.output.inputs);
    grow(most.runs, (longest + run - 1) / run * part.heads * (part.width + 2));
    const int64_t visits = std::max<int64_t>(1, layer.mixture.chosen);
    grow(most.inner, visits * layer.gated.down.inputs);
    grow(most.inner, layer.shared.down.numbers ? layer.shared.down.inputs : 0);
    grow(most.experts, layer.mixture.experts);
    grow(most.visits, layer.mixture.chosen);
  }
  return most;
}

inline Stepper::Stepper(const Step& of) : Stepper(of, sizes(of)) {}

inline Stepper::Stepper(const Step& of, const Sizes& most)
    : of_(of),
      longest_(most.longest),
      qkv_(scratch(of.rows * most.qkv)),
      runs_(scratch(of.rows * most.runs)),
      attended_(scratch(of.rows * most.attended)),
      made_(scratch(of.rows * of.width)),
      inner_(scratch(of.rows * most.inner)),
      logits_(scratch(of.rows * most.experts)),
      shares_(scratch(of.rows * most.visits)),
      gathered_(scratch(of.rows * most.visits * of.width)),
      visited_(scratch(of.rows * most.visits * of.width)),
      rounded_(of.rows, of.width),
      rounded_attended_(of.rows, most.attended),
      rounded_inner_(of.rows, most.inner + GROUP * std::max<int64_t>(1, most.visits)),
      rounded_gathered_(of.rows * most.visits, of.width),
      visits_(of.layer_count) {}

}  // namespace isomorph
