// The choice of experts from a router's logits, as model_code/moe/model.py's Router makes it.
//
// Letters: T tokens, E experts, K experts that a token visits.

#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "vectors.h"

namespace isomorph {

struct Rules {
  int64_t experts, chosen, groups, kept_groups, best_of_group;
  bool sigmoid, normalize;
  float scale;
};

inline void score(float* logits, const Rules& of) {
  if (of.sigmoid) {
    for (int64_t e = 0; e < of.experts; ++e) logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float most = *std::max_element(logits, logits + of.experts);
  float total = 0.0f;
  for (int64_t e = 0; e < of.experts; ++e) total += logits[e] = std::exp(logits[e] - most);
  for (int64_t e = 0; e < of.experts; ++e) logits[e] /= total;
}

// Leaves out the experts of all groups but the best ones. A group is worth the sum of its best.
inline void keep_best_groups(float* wanted, const Rules& of, std::vector<float>& worth,
                             std::vector<int64_t>& order, std::vector<float>& sorted) {
  const int64_t size = of.experts / of.groups;
  for (int64_t g = 0; g < of.groups; ++g) {
    sorted.assign(wanted + g * size, wanted + (g + 1) * size);
    std::partial_sort(sorted.begin(), sorted.begin() + of.best_of_group, sorted.end(),
                      std::greater<float>());
    worth[g] = std::accumulate(sorted.begin(), sorted.begin() + of.best_of_group, 0.0f);
    order[g] = g;
  }
  std::sort(order.begin(), order.begin() + of.groups,
            [&](int64_t a, int64_t b) { return worth[a] > worth[b] || (worth[a] == worth[b] && a < b); });
  for (int64_t place = of.kept_groups; place < of.groups; ++place) {
    float* group = wanted + order[place] * size;
    std::fill(group, group + size, -std::numeric_limits<float>::infinity());
  }
}

// Chooses for one token, whose `scores` [E] are logits on the way in. `correction` [E] may be null.
inline void route_one(float* scores, const float* correction, int64_t* choices, float* shares,
                      const Rules& of) {
  std::vector<float> wanted(of.experts), worth(of.groups), sorted;
  std::vector<int64_t> order(std::max(of.experts, of.groups));
  score(scores, of);
  for (int64_t e = 0; e < of.experts; ++e) {
    wanted[e] = correction ? scores[e] + correction[e] : scores[e];
  }
  if (of.kept_groups < of.groups) keep_best_groups(wanted.data(), of, worth, order, sorted);
  std::iota(order.begin(), order.begin() + of.experts, 0);
  std::partial_sort(order.begin(), order.begin() + of.chosen, order.begin() + of.experts,
                    [&](int64_t a, int64_t b) {
                      return wanted[a] > wanted[b] || (wanted[a] == wanted[b] && a < b);
                    });
  float total = 1e-20f;
  for (int64_t k = 0; k < of.chosen; ++k) total += scores[order[k]];
  const float factor = of.normalize ? of.scale / total : of.scale;
  for (int64_t k = 0; k < of.chosen; ++k) {
    choices[k] = order[k];
    shares[k] = scores[order[k]] * factor;
  }
}

}  // namespace isomorph
