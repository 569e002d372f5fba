// A few tokens through all layers, in one call: threads are woken once. Each token is a row.
//
// Letters: D model width, N query heads, K key/value heads, G query heads
// of one of these, H head width, F inner width. Everything between matrices is float32.

#pragma once

#include "attend.h"
#include "experts.h"
#include "layer.h"
#include "router.h"

namespace isomorph {

class Stepper {
 public:
  explicit Stepper(const Step& of);

  void run() {
    in_phases(int(of_.threads), size_t(of_.layer_count * PHASES + 1), [&](Member& team) {
      settle(team, nullptr, of_.layers[0].attention.norms.before);
      for (int64_t i = 0; i < of_.layer_count; ++i) {
        const Layer& layer = of_.layers[i];
        const bool last = i + 1 == of_.layer_count;
        attention(team, layer.attention, of_.kept[i]);
        settle(team, &layer.attention.norms, layer.norms.before);
        if (layer.mixture.experts) {
          mixture(team, layer, i);
        } else {
          dense(team, layer.gated);
        }
        settle(team, &layer.norms, last ? of_.norm : of_.layers[i + 1].attention.norms.before);
      }
    });
  }

 private:
  static constexpr int64_t CHUNK = 32;         // outputs of a task: a group of the next rounding
  static constexpr int64_t RUN = 256;          // positions of a task, at least
  static constexpr int64_t MOST_ROWS = 64;     // model_code/common/kernels/step.py keeps to it
  static constexpr int64_t PHASES = 20;        // of a layer, at most

  // Positions of a run: of few positions there is one run, of many there are 64.
  static int64_t run_of(int64_t longest) { return std::max(RUN, (longest + 63) / 64); }

  static int64_t chunks(int64_t outputs) { return (outputs + CHUNK - 1) / CHUNK; }

  void product(Member& team, const Matrix& by, const Rows& x, float* out) {
    team.run(chunks(by.outputs), [&](int64_t chunk) {
      const int64_t begin = chunk * CHUNK, count = std::min(CHUNK, by.outputs - begin);
      multiply_some(by, x, of_.rows, begin, count, out + begin, by.outputs);
    });
  }

  // Adds what a part made to the rows, and makes the next part's input of them.
  void settle(Member& team, const Norms* norms, const Vector& next) {
    const int64_t D = of_.width;
    team.run(of_.rows, [&](int64_t row) {
      float *x = of_.x + row * D, *made = made_.get() + row * D, *state = of_.states + row * D;
      if (norms) {
        const bool post = norms->after_sum;
        if (norms->after.numbers && !post) norm(made, norms->after, made);
        for (int64_t i = 0; i < D; ++i) x[i] += made[i];
        if (post) norm(x, norms->after, x);
      }
      if (next.numbers) {
        norm(x, next, state);
      } else {
        std::copy(x, x + D, state);
      }
      rounded_.round(of_.states, D, row);
    });
  }

  void norm(const float* x, const Vector& weights, float* to) const {
    const float factor = norm_factor(x, of_.width, float(of_.eps));
    weigh_normed(x, of_.width, factor, weights, 0, float(of_.offset), to);
  }

  void attention(Member& team, const SelfAttention& part, const Kept& kept) {
    const int64_t N = part.heads, K = part.kv_heads, H = part.width, stride = H + 2;
    const int64_t longest = std::min(longest_, kept.length), run = run_of(longest);
    const int64_t most = (longest + run - 1) / run;
    product(team, part.qkv, rounded_.of(of_.states, of_.width), qkv_.get());
    team.run(of_.rows * K, [&](int64_t task) {
      if (kept.kind == BFLOAT16) {
        keep<BFloat16>(part, kept, task / K, task % K);
      } else {
        keep<float>(part, kept, task / K, task % K);
      }
    });
    team.run(of_.rows * K * most, [&](int64_t task) {
      const int64_t row = task / (K * most), head = task / most % K, begin = task % most * run;
      const int64_t end = std::min(begin + run, held(row, kept));
      if (begin >= end) return;
      float* out = runs_.get() + ((row * K + head) * most + task % most) * (N / K) * stride;
      if (kept.kind == BFLOAT16) {
        attend_run<BFloat16>(part, kept, row, head, begin, end, out);
      } else {
        attend_run<float>(part, kept, row, head, begin, end, out);
      }
    });
    team.run(of_.rows, [&](int64_t row) {
      const int64_t count = (held(row, kept) + run - 1) / run, G = N / K;
      for (int64_t n = 0; n < N; ++n) {
        const float* runs = runs_.get() + ((row * K + n / G) * most * G + n % G) * stride;
        join(runs, count, G * stride, H, attended_.get() + (row * N + n) * H);
      }
      rounded_attended_.round(attended_.get(), N * H, row);
    });
    product(team, part.output, rounded_attended_.of(attended_.get(), N * H), made_.get());
  }

  int64_t held(int64_t row, const Kept& kept) const {
    return std::min(of_.positions[row] + 1, kept.length);
  }

  // Where a key/value head of a row's sequence begins in its cache.
  int64_t begin_of(const SelfAttention& part, const Kept& kept, int64_t row, int64_t head) const {
    const int64_t slot = of_.first_slot + row / of_.tokens;
    return (slot * part.kv_heads + head) * kept.length * part.width;
  }

  // Stores a row's key and value of one head.
  template <typename Number>
  void keep(const SelfAttention& part, const Kept& kept, int64_t row, int64_t head) const {
    const int64_t N = part.heads, K = part.kv_heads, H = part.width;
    const int64_t position = of_.positions[row];
    if (position < 0) return;
    const float* made = qkv_.get() + row * (N + 2 * K) * H;
    const int64_t place = begin_of(part, kept, row, head) + position % kept.length * H;
    static thread_local std::vector<float> key;
    key.resize(H);
    turned(part, part.key_norm, made + N * H, K, head, position, 1.0f, key.data());
    store(key.data(), H, static_cast<Number*>(kept.keys) + place);
    store(made + (N + K + head) * H, H, static_cast<Number*>(kept.values) + place);
  }

  // What the queries of one key/value head of a row see of a run of places.
  template <typename Number>
  void attend_run(const SelfAttention& part, const Kept& kept, int64_t row, int64_t head,
                  int64_t begin, int64_t end, float* out) const {
    const int64_t N = part.heads, K = part.kv_heads, H = part.width, G = N / K;
    const int64_t place = begin_of(part, kept, row, head) + begin * H;
    static thread_local std::vector<float> room;
    room.resize(G * H + room_for_scores(G, end - begin));
    float* queries = room.data();
    for (int64_t g = 0; g < G; ++g) {
      turned(part, part.query_norm, qkv_.get() + row * (N + 2 * K) * H, N, head * G + g,
             of_.positions[row], float(part.scale), queries + g * H);
    }
    attend(queries, G, Dense<Number>{static_cast<const Number*>(kept.keys) + place, H},
           Values<Number>{static_cast<const Number*>(kept.values) + place, H, H}, end - begin,
           float(part.softcap), queries + G * H, out);
  }

  // One of the heads of queries or keys: normed, rotated and scaled.
  void turned(const SelfAttention& part, const Vector& weights, const float* all, int64_t heads,
              int64_t head, int64_t position, float scale, float* to) const {
    const int64_t H = part.width;
    const float* from = all + head * H;
    if (weights.numbers) {
      const bool all_heads = part.all_heads;
      const float* normed = all_heads ? all : from;
      const float factor = norm_factor(normed, all_heads ? heads * H : H, float(of_.eps));
      weigh_normed(from, H, factor, weights, all_heads ? head * H : 0, float(of_.offset), to);
    } else {
      std::copy(from, from + H, to);
    }
    rotate(to, part, position);
    for (int64_t i = 0; i < H; ++i) to[i] *= scale;
  }

  static void store(const float* from, int64_t count, float* to) {
    std::copy(from, from + count, to);
  }
  static void store(const float* from, int64_t count, BFloat16* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(from[i]);
  }

  // A chunk of the inner numbers of all rows.
  void gate_chunk(const Gated& part, const Rows& x, int64_t chunk, int64_t F) {
    const int64_t begin = chunk * CHUNK, count = std::min(CHUNK, F - begin), rows = of_.rows;
    float gates[MOST_ROWS * CHUNK], values[MOST_ROWS * CHUNK];
    multiply_some(part.gate_up, x, rows, begin, count, gates, CHUNK);
    multiply_some(part.gate_up, x, rows, F + begin, count, values, CHUNK);
    for (int64_t r = 0; r < rows; ++r) {
      float *row = gates + r * CHUNK, *to = inner_.get() + r * F + begin;
      (part.gelu ? gate<true> : gate<false>)(row, values + r * CHUNK, count, to);
      rounded_inner_.round(inner_.get(), F, r, chunk);
    }
  }

  void dense(Member& team, const Gated& part) {
    const int64_t F = part.down.inputs;
    const Rows x = rounded_.of(of_.states, of_.width);
    team.run(chunks(F), [&](int64_t c) { gate_chunk(part, x, c, F); });
    product(team, part.down, rounded_inner_.of(inner_.get(), F), made_.get());
  }

  void mixture(Member& team, const Layer& layer, int64_t index);

  // The most that any layer needs.
  struct Sizes {
    int64_t longest, qkv, runs, attended, inner, experts, visits;
  };
  static Sizes sizes(const Step& of);
  Stepper(const Step& of, const Sizes& most);

  const Step& of_;
  const int64_t longest_;
  Scratch qkv_, runs_, attended_, made_, inner_, logits_, shares_, visited_;
  Rounded rounded_, rounded_attended_, rounded_inner_;
  std::vector<std::unique_ptr<Visits>> visits_;  // of each layer: who comes late looks again
};

}  // namespace isomorph
