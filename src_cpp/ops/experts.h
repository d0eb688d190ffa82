// A mixture of experts: a router gives each row to a few of many gated MLPs.
#pragma once

#include <vector>

#include "llada/types.h"
#include "ops/linear.h"

namespace llada {

struct Expert {
  Linear gate_proj, up_proj;  // [hidden, d_model]
  Linear down_proj;           // [d_model, hidden]
};

// How a router chooses, as ModelConfig says.
struct Choice {
  int64_t experts, chosen;
  Routing routing = Routing::softmax;
  int64_t groups = 1, chosen_groups = 1;
  double scale = 1;
  const float* bias = nullptr;  // [experts]; with Routing::sigmoid
};

// The experts of a row by its logits [experts], which become probabilities: ids [chosen] ascend, weights [chosen] are theirs. A row whose
// scores [experts] are not all finite goes to the first experts with weights that are NaN.
void route(const Choice& choice, float* logits, float* scores, int32_t* ids, float* weights);

// Which rows go to which experts, and the rows on their way, kept from call to call and grown to the largest. Every row has `chosen`
// copies; those of one expert lie side by side, so that an expert is one matrix product.
class Assignments {
 public:
  // Room for `rows` rows. Strong guarantee: std::bad_alloc leaves the old buffers in place.
  void fit(int64_t experts, int64_t chosen, int64_t d_model, int64_t hidden, int64_t rows);
  int64_t bytes() const;

  int64_t chosen = 0;
  Rows logits{}, scores{};       // [rows, experts] of the router, and what the choice goes by
  Rows copies{};                 // [rows * chosen, d_model] inputs of the experts that multiply float32, then the outputs of all
  QuantizedRows once;            // [rows, d_model] inputs of the others, before they are spread
  Rows gate{}, up{};             // [rows * chosen, hidden]
  AlignedArray<int32_t> ids;     // [rows, chosen]
  AlignedArray<float> weights;   // [rows, chosen]
  AlignedArray<int32_t> slots;   // [rows, chosen] where the copies of a row stand
  AlignedArray<int32_t> begins;  // [experts + 1] where those of an expert begin
  std::vector<GatedProduct> gated;  // [experts that have rows], those with the most first
  std::vector<Product> down;        // the same

 private:
  int64_t rows_ = 0;
  AlignedArray<float> memory_;
};

// x += sum over the chosen experts, in ascending order of their ids, of weight * down(silu(gate(h)) * up(h)). The bits of a row do not
// depend on its company. The router's matrix [experts, d_model] is float32.
void mixture_of_experts(Team& team, const KernelTable& kernels, QuantizedRows& quantized, const Linear& router, const Choice& choice,
                        const std::vector<Expert>& experts, Rows h, int64_t rows, Assignments& a, Rows x);

}  // namespace llada
