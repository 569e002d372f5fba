// The plain C interface. model_code/common/kernels/__init__.py checks whatever it passes here.
//
// Inputs and outputs are float32, row after row without gaps; weights are [O, I] as in torch.

#include "experts.h"
#include "router.h"

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
#pragma omp parallel for schedule(dynamic) num_threads(useful)
  for (int part = 0; part < parts; ++part) {
    multiply(x, rows, weight, outputs * part / parts, outputs * (part + 1) / parts, out, outputs);
  }
}

// How the numbers of a weight are stored; model_code/common/kernels/__init__.py has the same list.
enum Kind { FLOAT32, BFLOAT16, INT8, INT4 };

// Calls `use` with a function that makes a weight of its pointers and width. `scales` may be null
// but for int8 and int4.
template <typename Use>
void with_weights(int kind, Use use) {
  const auto dense = [use](auto number) {
    using Number = decltype(number);
    use([](const void* numbers, const void* scales, int64_t inputs) {
      return Dense<Number>{static_cast<const Number*>(numbers), static_cast<const float*>(scales),
                           inputs};
    });
  };
  switch (kind) {
    case FLOAT32: return dense(float());
    case BFLOAT16: return dense(BFloat16());
    case INT8: return dense(int8_t());
    case INT4:
      return use([](const void* numbers, const void* scales, int64_t inputs) {
        return Grouped{static_cast<const uint8_t*>(numbers), static_cast<const BFloat16*>(scales),
                       inputs};
      });
  }
}

}  // namespace

extern "C" {

void isomorph_multiply(int kind, const float* x, const void* weight, const void* scales,
                       float* out, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
  with_weights(kind, [=](auto make) {
    share_out(x, make(weight, scales, inputs), out, rows, outputs, threads);
  });
}

void isomorph_visit(int kind, const float* x, const int64_t* choices, const void* gate_up,
                    const void* gate_up_scales, const void* down, const void* down_scales,
                    float* results, int64_t tokens, int64_t chosen, int64_t experts,
                    int64_t width, int64_t inner, int threads) {
  with_weights(kind, [=](auto make) {
    visit_experts(x, choices, make(gate_up, gate_up_scales, width),
                  make(down, down_scales, inner), results,
                  {tokens, chosen, experts, width, inner}, threads);
  });
}

void isomorph_combine(const float* results, const float* shares, float* out, int64_t tokens,
                      int64_t chosen, int64_t width, int threads) {
  combine(results, shares, out, {tokens, chosen, 0, width, 0}, threads);
}

void isomorph_route(int kind, const float* x, const void* weight, const float* bias,
                    const float* correction, int64_t* choices, float* shares, int64_t tokens,
                    int64_t experts, int64_t width, int64_t chosen, int64_t groups,
                    int64_t kept_groups, int64_t best_of_group, int sigmoid, int normalize,
                    float scale, int threads) {
  const Rules rules = {experts, chosen, groups, kept_groups, best_of_group,
                       bool(sigmoid), bool(normalize), scale};
  const Scratch logits = scratch(tokens * experts);
  with_weights(kind, [&](auto make) {
    share_out(x, make(weight, nullptr, width), logits.get(), tokens, experts, threads);
  });
  route(logits.get(), bias, correction, choices, shares, tokens, rules, threads);
}

}  // extern "C"
