// The rest of step.h: layers with experts, and what a step needs to work with.

#pragma once

#include "one_mixture.h"
#include "step.h"

namespace isomorph {

inline void Stepper::mixture(Member& team, const Layer& layer, int64_t index) {
  const OneMixture of = {
      layer.mixture, layer.gated.gate_up, layer.gated.down, of_.states,
      of_.choices + index * of_.rows * of_.most_chosen, shares_.get(), made_.get(),
      of_.rows, of_.width, of_.threads};
  route(team, of, logits_.get());
  team.run(1, [&](int64_t) { visits_[index] = visits_of(of, visited_.get()); });
  visits_[index]->run(team);
  const bool shared = layer.shared.down.numbers;
  if (shared) dense(team, layer.shared);
  combine(team, visited_.get(), shares_.get(), made_.get(), experts_of(of), shared);
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
    grow(most.inner, layer.mixture.experts ? 0 : layer.gated.down.inputs);
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
      visited_(scratch(of.rows * most.visits * of.width)),
      rounded_(of.rows, of.width),
      rounded_attended_(of.rows, most.attended),
      rounded_inner_(of.rows, most.inner),
      visits_(of.layer_count) {}

}  // namespace isomorph
