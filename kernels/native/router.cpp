// The router: scores every expert in float32, chooses by score + bias, weights by score.
#include <cmath>

#include "parallel.h"
#include "simd.h"

namespace moonshard {
namespace {

constexpr int64_t LANES = 16;
constexpr int64_t SMALL_WORK = int64_t(1) << 15;
constexpr int64_t TASK_EXPERTS = 16;
constexpr int64_t TASK_TOKENS = 64;

struct Router {
  const void* hidden;  // [tokens, width]
  int64_t stride;
  const float* gate;  // [experts, width]
  const float* bias;
  int64_t tokens, experts, width, top_k, num_groups, topk_groups, normalize;
  float scale;
  int32_t* ids;    // [tokens, top_k]
  float* weights;  // [tokens, top_k]
};

// scores[m][e] of M tokens and E experts; each has sixteen partial sums, added in a fixed tree.
template <int M, int E, class T>
void score(const T* hidden, int64_t stride, const float* gate, int64_t width, float* scores, int64_t score_stride) {
  F16 sums[M][E];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 16
    for (int e = 0; e < E; e++) sums[m][e] = zeros();
  int64_t k = 0;
  for (; k + LANES <= width; k += LANES)
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const F16 x = load(hidden + m * stride + k);
#pragma GCC unroll 16
      for (int e = 0; e < E; e++) sums[m][e] = fma(x, load(gate + e * width + k), sums[m][e]);
    }
  for (int m = 0; m < M; m++)
    for (int e = 0; e < E; e++) {
      float logit = sum(sums[m][e]);
      for (int64_t j = k; j < width; j++) logit = std::fma(widen(hidden[m * stride + j]), gate[e * width + j], logit);
      scores[m * score_stride + e] = 1.0f / (1.0f + std::exp(-logit));
    }
}

template <class T>
void score_task(const Router& r, int64_t first_token, int64_t tokens, int64_t first_expert, int64_t experts,
                float* scores) {
  const T* hidden = static_cast<const T*>(r.hidden) + first_token * r.stride;
  const float* gate = r.gate + first_expert * r.width;
  float* to = scores + first_token * r.experts + first_expert;
  // Four tokens share each read of the gate.
  const auto score_tokens = [&]<int M>(int64_t m) {
    const T* x = hidden + m * r.stride;
    float* out = to + m * r.experts;
    int64_t e = 0;
    for (; e + 4 <= experts; e += 4) score<M, 4>(x, r.stride, gate + e * r.width, r.width, out + e, r.experts);
    for (; e < experts; e++) score<M, 1>(x, r.stride, gate + e * r.width, r.width, out + e, r.experts);
  };
  int64_t m = 0;
  for (; m + 4 <= tokens; m += 4) score_tokens.template operator()<4>(m);
  for (; m < tokens; m++) score_tokens.template operator()<1>(m);
}

// Index of the largest value not yet taken; of equal values the first; NaN counts as the largest; -1 if all are taken.
int64_t take_largest(const float* values, uint8_t* taken, int64_t count) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; i++) {
    if (taken[i]) continue;
    if (best < 0 || values[i] > values[best] || (values[i] != values[i] && values[best] == values[best])) best = i;
  }
  if (best >= 0) taken[best] = 1;
  return best;
}

// Score of a group: the sum of its two largest values.
float best_two(const float* values, int64_t count) {
  float first = -INFINITY, second = -INFINITY;
  for (int64_t i = 0; i < count; i++) {
    if (values[i] > first) {
      second = first;
      first = values[i];
    } else if (values[i] > second) {
      second = values[i];
    }
  }
  return count > 1 ? first + second : first;
}

struct Choice;
struct Taken;

void choose(const Router& r, const float* scores, int64_t token) {
  float* choice = scratch<Choice, float>(r.experts + r.num_groups);
  uint8_t* taken = scratch<Taken, uint8_t>(r.experts + r.num_groups);
  for (int64_t e = 0; e < r.experts; e++) choice[e] = scores[e] + r.bias[e];
  std::memset(taken, 0, size_t(r.experts + r.num_groups));
  if (r.num_groups > 1) {
    const int64_t size = r.experts / r.num_groups;
    float* groups = choice + r.experts;
    uint8_t* kept = taken + r.experts;
    for (int64_t g = 0; g < r.num_groups; g++) groups[g] = best_two(choice + g * size, size);
    for (int64_t i = 0; i < r.topk_groups; i++) take_largest(groups, kept, r.num_groups);
    for (int64_t e = 0; e < r.experts; e++)
      if (!kept[e / size]) choice[e] = 0.0f;
  }
  int32_t* ids = r.ids + token * r.top_k;
  float* weights = r.weights + token * r.top_k;
  float total = 0.0f;
  for (int64_t i = 0; i < r.top_k; i++) {
    ids[i] = int32_t(take_largest(choice, taken, r.experts));
    weights[i] = scores[ids[i]];
    total += weights[i];
  }
  for (int64_t i = 0; i < r.top_k; i++)
    weights[i] = (r.normalize ? weights[i] / (total + 1e-20f) : weights[i]) * r.scale;
}

struct Scores;

template <class T>
void run(const Router& r, int64_t threads) {
  float* scores = scratch<Scores, float>(r.tokens * r.experts);
  if (r.tokens * r.experts * r.width < SMALL_WORK) threads = 1;
  const int64_t expert_tasks = (r.experts + TASK_EXPERTS - 1) / TASK_EXPERTS;
  const int64_t token_tasks = (r.tokens + TASK_TOKENS - 1) / TASK_TOKENS;
  const auto score_some = [&](int64_t task) {
    const int64_t token = task / expert_tasks * TASK_TOKENS, expert = task % expert_tasks * TASK_EXPERTS;
    const int64_t tokens = r.tokens - token < TASK_TOKENS ? r.tokens - token : TASK_TOKENS;
    const int64_t experts = r.experts - expert < TASK_EXPERTS ? r.experts - expert : TASK_EXPERTS;
    score_task<T>(r, token, tokens, expert, experts, scores);
  };
  const auto choose_some = [&](int64_t task) {
    for (int64_t t = task * TASK_TOKENS; t < r.tokens && t < (task + 1) * TASK_TOKENS; t++)
      choose(r, scores + t * r.experts, t);
  };
  parallel(threads, Phase(expert_tasks * token_tasks, score_some), Phase(token_tasks, choose_some));
}

}  // namespace
}  // namespace moonshard

using namespace moonshard;

extern "C" void route(const void* hidden, int64_t is_bf16, int64_t stride, const float* gate, const float* bias,
                      int64_t tokens, int64_t experts, int64_t width, int64_t top_k, int64_t num_groups,
                      int64_t topk_groups, int64_t normalize, float scale, int32_t* ids, float* weights,
                      int64_t threads) {
  const Router r{hidden, stride,     gate,        bias,      tokens, experts, width,
                 top_k,  num_groups, topk_groups, normalize, scale,  ids,     weights};
  if (is_bf16)
    run<uint16_t>(r, threads);
  else
    run<float>(r, threads);
}
