// The plain C interface. model_code/common/kernels/__init__.py checks whatever it passes here.
//
// Inputs and outputs are float32, row after row without gaps; weights are [O, I] as in torch.

#include "experts.h"

using namespace isomorph;

namespace {

// Waking a thread costs as much as reading so many weights.
constexpr int64_t WORTH_A_THREAD = 1 << 16;

template <typename Weight>
void share_out(const float* x, const Weight& weight, float* out, int64_t rows, int64_t outputs,
               int threads) {
  const int64_t worth = rows * weight.inputs * outputs / WORTH_A_THREAD + 1;
  const int parts = int(std::min<int64_t>(worth, threads));
#pragma omp parallel for schedule(static) num_threads(parts)
  for (int part = 0; part < parts; ++part) {
    multiply(x, rows, weight, outputs * part / parts, outputs * (part + 1) / parts, out, outputs);
  }
}

}  // namespace

extern "C" {

void isomorph_bf16(const float* x, const BFloat16* weight, float* out, int64_t rows,
                   int64_t inputs, int64_t outputs, int threads) {
  share_out(x, Dense<BFloat16>{weight, nullptr, inputs}, out, rows, outputs, threads);
}

void isomorph_int8(const float* x, const int8_t* weight, const float* scale, float* out,
                   int64_t rows, int64_t inputs, int64_t outputs, int threads) {
  share_out(x, Dense<int8_t>{weight, scale, inputs}, out, rows, outputs, threads);
}

void isomorph_int4(const float* x, const uint8_t* weight, const BFloat16* scales, float* out,
                   int64_t rows, int64_t inputs, int64_t outputs, int threads) {
  share_out(x, Grouped{weight, scales, inputs}, out, rows, outputs, threads);
}

void isomorph_experts_f32(const float* x, const int64_t* choices, const float* shares,
                          const float* gate_up, const float* down, float* out, int64_t tokens,
                          int64_t chosen, int64_t experts, int64_t width, int64_t inner,
                          int threads) {
  run_experts(x, choices, shares, gate_up, down, out, {tokens, chosen, experts, width, inner},
              threads);
}

void isomorph_experts_bf16(const float* x, const int64_t* choices, const float* shares,
                           const BFloat16* gate_up, const BFloat16* down, float* out,
                           int64_t tokens, int64_t chosen, int64_t experts, int64_t width,
                           int64_t inner, int threads) {
  run_experts(x, choices, shares, gate_up, down, out, {tokens, chosen, experts, width, inner},
              threads);
}

}  // extern "C"
