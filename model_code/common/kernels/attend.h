// One token's attention, over a run of cached positions, for the query heads that share their keys.
//
// Letters: G query heads, H head width, T positions. What a run gives is a head's weighted values
// [H], its largest score and the sum of its weights: runs are joined by these.

#pragma once

#include <cmath>
#include <vector>

#include "matmul.h"

namespace isomorph {

// Scores of a run, which become weights: head g's of position t is at g * head + t * position.
struct Scores {
  float* numbers;
  int64_t head, position;

  float& at(int64_t g, int64_t t) const { return numbers[g * head + t * position]; }
};

// Turns scores into weights relative to the largest, and returns their sum.
inline float soften(float* scores, int64_t count, float softcap, float& largest) {
  largest = -INFINITY;
  for (int64_t t = 0; t < count; ++t) {
    if (softcap) scores[t] = softcap * std::tanh(scores[t] / softcap);
    largest = std::max(largest, scores[t]);
  }
  Floats total = {};
  int64_t t = 0;
  for (; t + LANES <= count; t += LANES) {
    const Floats weights = exponential(load_floats(scores + t) - largest);
    store(weights, scores + t);
    total += weights;
  }
  float found = sum(total);
  for (; t < count; ++t) found += scores[t] = std::exp(scores[t] - largest);
  return found;
}

// The same for LANES heads side by side, `apart` numbers from a position to the next.
inline Floats soften_lanes(float* scores, int64_t count, int64_t apart, float softcap,
                           Floats& largest) {
  largest = broadcast(-INFINITY);
  for (int64_t t = 0; t < count; ++t) {
    float* const at = scores + t * apart;
    for (int lane = 0; softcap && lane < LANES; ++lane) {
      at[lane] = softcap * std::tanh(at[lane] / softcap);
    }
    const Floats found = load_floats(at);
    largest = found > largest ? found : largest;
  }
  Floats total = {};
  for (int64_t t = 0; t < count; ++t) {
    const Floats weights = exponential(load_floats(scores + t * apart) - largest);
    store(weights, scores + t * apart);
    total += weights;
  }
  return total;
}

// Values of positions, `apart` numbers from each other.
template <typename Number>
struct Values {
  const Number* numbers;
  int64_t width, apart;
};

// R heads' weighted values from column `h` on, V registers of each, added to what is there.
template <int R, int V, typename Number>
inline void weigh(const Scores& weights, int64_t g, const Values<Number>& values, int64_t begin,
                  int64_t end, int64_t h, float* out, int64_t stride) {
  Floats sums[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = load_floats(out + (g + r) * stride + h + v * LANES);
  }
  for (int64_t t = begin; t < end; ++t) {
    Floats columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      columns[v] = once(load_floats(values.numbers + t * values.apart + h + v * LANES));
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Floats weight = broadcast(weights.at(g + r, t));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = multiply_add(weight, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums[r][v], out + (g + r) * stride + h + v * LANES);
  }
}

// V registers' columns of the values for all heads, while they are in a core's first cache.
template <int V, typename Number>
inline int64_t weigh_columns(const Scores& weights, int64_t heads, const Values<Number>& values,
                             int64_t begin, int64_t end, int64_t h, float* out, int64_t stride) {
  for (; h + V * LANES <= values.width; h += V * LANES) {
    int64_t g = 0;
    for (; g + 4 <= heads; g += 4) weigh<4, V>(weights, g, values, begin, end, h, out, stride);
    for (; g + 2 <= heads; g += 2) weigh<2, V>(weights, g, values, begin, end, h, out, stride);
    if (g < heads) weigh<1, V>(weights, g, values, begin, end, h, out, stride);
  }
  return h;
}

template <typename Number>
inline void weigh_all(const Scores& weights, int64_t heads, const Values<Number>& values,
                      int64_t count, float* out, int64_t stride) {
  constexpr int64_t TOGETHER = 64;  // positions
  for (int64_t g = 0; g < heads; ++g) std::fill_n(out + g * stride, values.width, 0.0f);
  for (int64_t begin = 0; begin < count; begin += TOGETHER) {
    const int64_t end = std::min(count, begin + TOGETHER);
    int64_t h = weigh_columns<2>(weights, heads, values, begin, end, 0, out, stride);
    h = weigh_columns<1>(weights, heads, values, begin, end, h, out, stride);
    for (; h < values.width; ++h) {
      for (int64_t g = 0; g < heads; ++g) {
        for (int64_t t = begin; t < end; ++t) {
          out[g * stride + h] += weights.at(g, t) * to_float(values.numbers[t * values.apart + h]);
        }
      }
    }
  }
}

// The scores of T positions for V registers of heads: `queries` [count, V * LANES] are a part of
// their width, `keys` the same part of T positions. Scores of the parts before are added to.
template <int T, int V>
inline void score(const float* queries, const float* keys, int64_t apart, int64_t count,
                  float* scores) {
  Floats sums[T][V];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[t][v] = load_floats(scores + (t * V + v) * LANES);
  }
  for (int64_t w = 0; w < count; ++w) {
    if (w % 16 == 0) {  // a line of the cache
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) __builtin_prefetch(keys + (T + t) * apart + w);
    }
    Floats heads[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) heads[v] = load_floats(queries + (w * V + v) * LANES);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const Floats key = broadcast(keys[t * apart + w]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[t][v] = multiply_add(key, heads[v], sums[t][v]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums[t][v], scores + (t * V + v) * LANES);
  }
}

// Many heads lie side by side in registers: then no sum goes across a register, and a key's number
// is loaded once for all. A part of the queries stays in a core's first cache.
template <int V>
inline void score_lanes(const float* queries, const Dense<float>& keys, int64_t count,
                        float* scores) {
  constexpr int64_t PART = 192, T = 12 / V, WIDE = V * LANES;
  const int64_t W = keys.inputs;
  std::fill(scores, scores + count * WIDE, 0.0f);
  for (int64_t w = 0; w < W; w += PART) {
    const int64_t part = std::min(PART, W - w);
    int64_t t = 0;
    for (; t + T <= count; t += T) {
      score<T, V>(queries + w * WIDE, keys.numbers + t * W + w, W, part, scores + t * WIDE);
    }
    for (; t < count; ++t) {
      score<1, V>(queries + w * WIDE, keys.numbers + t * W + w, W, part, scores + t * WIDE);
    }
  }
}

// A run's numbers as floats: themselves, or a copy in `room`.
inline const float* floats_of(const float* numbers, int64_t, std::vector<float>&) {
  return numbers;
}
inline const float* floats_of(const BFloat16* numbers, int64_t count, std::vector<float>& room) {
  constexpr int64_t AHEAD = 512;  // the CPU's own prefetcher stops at each 4 KiB
  room.resize(count);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    __builtin_prefetch(numbers + i + AHEAD);
    store(load_floats(numbers + i), room.data() + i);
  }
  for (; i < count; ++i) room[i] = to_float(numbers[i]);
  return room.data();
}

constexpr int64_t FEW_HEADS = 4;

// Room that `attend` needs for scores: [T, G], G filled up to whole registers.
inline int64_t room_for_scores(int64_t heads, int64_t count) {
  return (heads + 2 * LANES) * count;
}

// V registers of heads, of which there may be fewer.
template <int V>
inline void attend_lanes(const float* queries, int64_t heads, const Dense<float>& keys,
                         const Values<float>& values, int64_t count, float softcap, float* scores,
                         float* out) {
  constexpr int64_t WIDE = V * LANES;
  const int64_t W = keys.inputs, stride = values.width + 2;
  static thread_local std::vector<float> turned;
  turned.assign(W * WIDE, 0.0f);
  for (int64_t g = 0; g < heads; ++g) {
    for (int64_t w = 0; w < W; ++w) turned[w * WIDE + g] = queries[g * W + w];
  }
  score_lanes<V>(turned.data(), keys, count, scores);
  for (int64_t first = 0; first < heads; first += LANES) {
    Floats largest;
    const Floats total = soften_lanes(scores + first, count, WIDE, softcap, largest);
    for (int64_t g = first; g < std::min(heads, first + LANES); ++g) {
      out[g * stride + values.width] = largest[g - first];
      out[g * stride + values.width + 1] = total[g - first];
    }
  }
  weigh_all(Scores{scores, 1, WIDE}, heads, values, count, out, stride);
}

// `queries` [G, W] are scaled, keys as wide; `out` is [G, H + 2]. Many heads' keys and values may
// be the same numbers.
template <typename Number>
inline void attend(const float* queries, int64_t heads, const Dense<Number>& keys,
                   const Values<Number>& values, int64_t count, float softcap, float* scores,
                   float* out) {
  const int64_t W = keys.inputs, stride = values.width + 2;
  if (heads <= FEW_HEADS) {
    multiply({queries, nullptr, nullptr, nullptr, W}, heads, keys, 0, count, scores, count);
    for (int64_t g = 0; g < heads; ++g) {
      float* head = out + g * stride + values.width;
      head[1] = soften(scores + g * count, count, softcap, head[0]);
    }
    return weigh_all(Scores{scores, count, 1}, heads, values, count, out, stride);
  }
  static thread_local std::vector<float> room, second_room;
  const Dense<float> seen = {floats_of(keys.numbers, count * W, room), W};
  const bool same = values.numbers == keys.numbers;
  const int64_t reach = (count - 1) * values.apart + values.width;
  const Values<float> weighed = {
      same ? seen.numbers : floats_of(values.numbers, reach, second_room),
      values.width, values.apart};
  for (int64_t g = 0; g < heads; g += 2 * LANES) {
    const int64_t some = std::min<int64_t>(2 * LANES, heads - g);
    const auto lanes = some > LANES ? attend_lanes<2> : attend_lanes<1>;
    lanes(queries + g * W, some, seen, weighed, count, softcap, scores, out + g * stride);
  }
}

// Adds a run of one head to another one's.
inline void merge(const float* run, int64_t width, float* all) {
  const float largest = std::max(run[width], all[width]);
  const float share = std::exp(run[width] - largest), kept = std::exp(all[width] - largest);
  for (int64_t h = 0; h < width; ++h) all[h] = kept * all[h] + share * run[h];
  all[width] = largest;
  all[width + 1] = kept * all[width + 1] + share * run[width + 1];
}

// Joins the runs of one head, `stride` apart. Without any, or if none saw anything, there is nothing
// to see.
inline void join(const float* runs, int64_t count, int64_t stride, int64_t width, float* out) {
  float largest = -INFINITY, total = 0;
  for (int64_t c = 0; c < count; ++c) largest = std::max(largest, runs[c * stride + width]);
  std::fill(out, out + width, 0.0f);
  for (int64_t c = 0; c < count; ++c) {
    const float* run = runs + c * stride;
    if (run[width + 1] == 0) continue;  // it saw nothing
    const float share = std::exp(run[width] - largest);
    total += share * run[width + 1];
    for (int64_t h = 0; h < width; ++h) out[h] += share * run[h];
  }
  for (int64_t h = 0; total > 0 && h < width; ++h) out[h] /= total;
}

}  // namespace isomorph
