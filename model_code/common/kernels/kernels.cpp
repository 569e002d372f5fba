// The plain C interface. model_code/common/kernels/__init__.py checks whatever it passes here.
//
// Inputs and outputs are float32, row after row without gaps; weights are [O, I] as in torch.

#include "mixture.h"
#include "one_token.h"

using namespace isomorph;

namespace {

// Waking a thread costs as much as reading so many weights.
constexpr int64_t WORTH_A_THREAD = 1 << 16;
constexpr int PARTS_OF_A_THREAD = 4;

template <typename Weight>
void share_out(const float* x, const Weight& weight, float* out, int64_t rows, int64_t outputs,
               int threads) {
  const int64_t worth = rows * weight.inputs * outputs / WORTH_A_THREAD + 1;
  const int useful = int(std::min<int64_t>(worth, threads));
  // More parts than threads: one that the system interrupts leaves its share to the others.
  const int parts = useful == 1 ? 1 : PARTS_OF_A_THREAD * useful;
  Rounded rounded(rows, weight.inputs);
  in_phases(useful, 2, [&](Member& team) {
    team.run(Weight::FEW_BITS ? rows : 0, [&](int64_t row) { rounded.round(x, weight.inputs, row); });
    team.run(parts, [&](int64_t part) {
      multiply(rounded.of(x, weight.inputs), rows, weight, outputs * part / parts,
               outputs * (part + 1) / parts, out, outputs);
    });
  });
}

}  // namespace

extern "C" {

void isomorph_multiply(int kind, const float* x, const void* weight, const void* scales,
                       float* out, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
  with_weight(kind, weight, scales, inputs,
              [=](auto made) { share_out(x, made, out, rows, outputs, threads); });
}

void isomorph_visit(int kind, const float* x, const int64_t* choices, const void* gate_up,
                    const void* gate_up_scales, const void* down, const void* down_scales,
                    float* results, int64_t tokens, int64_t chosen, int64_t experts,
                    int64_t width, int64_t inner, int threads) {
  with_weight(kind, gate_up, gate_up_scales, width, [=](auto first) {
    using Weight = decltype(first);
    const Weight last = Weight::of(down, down_scales, inner);
    const Experts of = {tokens, chosen, experts, width, inner};
    Visiting<Weight> visiting(x, choices, first, last, results, of, threads);
    in_phases(threads, visiting.PHASES, [&](Member& team) { visiting.run(team); });
  });
}

void isomorph_combine(const float* results, const float* shares, float* out, int64_t tokens,
                      int64_t chosen, int64_t width, int threads) {
  const Experts of = {tokens, chosen, 0, width, 0};
  const int useful = of.visits() * width < WORTH_A_THREAD ? 1 : threads;
  in_phases(useful, 1, [&](Member& team) { combine(team, results, shares, out, of, false); });
}

bool isomorph_mixture(const OneMixture* of) { return run(*of); }

void isomorph_attend_one_token(const OneToken* of) {
  of->kind == BFLOAT16 ? attend_one_token<BFloat16>(*of) : attend_one_token<float>(*of);
}

void isomorph_step(const Step* step) { Stepper(*step).run(); }

}  // extern "C"
