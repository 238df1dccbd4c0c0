// Exported operations that fused.cpp calls.
#pragma once
#include <cstdint>

extern "C" {

// linear.cpp
void linear(const uint8_t* words, const void* x, int64_t x_is_bf16, void* y, int64_t y_is_bf16, int64_t batch,
            int64_t tokens, int64_t in, int64_t out, int64_t x_token_stride, int64_t x_batch_stride,
            int64_t y_token_stride, int64_t y_batch_stride, int64_t threads);

// elementwise.cpp
void rms_norm(const void* x, int64_t is_bf16, int64_t x_stride, const uint16_t* weight, void* out, int64_t rows,
              int64_t width, float eps, int64_t threads);
void add_rms_norm(const void* x, int64_t is_bf16, int64_t x_stride, const void* residual, int64_t residual_stride,
                  const uint16_t* weight, void* total, void* out, int64_t rows, int64_t width, float eps,
                  int64_t threads);
void norm_rope_store(void* cache, int64_t is_bf16, int64_t block_stride, int64_t token_stride, int64_t block_tokens,
                     const int64_t* slots, const void* latent, int64_t latent_stride, int64_t latent_width,
                     const void* key, int64_t key_stride, int64_t key_width, const uint16_t* weight, float eps,
                     const int64_t* positions, const float* inv_freq, int64_t tokens, int64_t threads);
void silu_mul(const void* gate_up, int64_t is_bf16, int64_t stride, void* out, int64_t rows, int64_t width,
              int64_t threads);
void rope(const void* x, int64_t is_bf16, const int64_t* positions, const float* inv_freq, void* out, int64_t tokens,
          int64_t heads, int64_t width, int64_t token_stride, int64_t head_stride, int64_t threads);

// attention_decode.cpp
void mla_decode(const void* q_latent, const void* q_rope, const void* cache, int64_t is_bf16,
                const int32_t* block_tables, const int32_t* context_lens, void* out, int64_t rows, int64_t heads,
                int64_t latent, int64_t rope, int64_t block_tokens, const int64_t* strides, float scale,
                int64_t threads);

// router.cpp
void route(const void* hidden, int64_t is_bf16, int64_t stride, const float* gate, const float* bias, int64_t tokens,
           int64_t experts, int64_t width, int64_t top_k, int64_t num_groups, int64_t topk_groups, int64_t normalize,
           float scale, int32_t* ids, float* weights, int64_t threads);

// experts.cpp
void expert_mlp(const uint8_t* const* experts, int64_t num_experts, int64_t hidden, int64_t width, const void* x,
                int64_t x_is_bf16, int64_t x_stride, const int32_t* ids, const float* weights, int64_t tokens,
                int64_t top_k, double* out, int64_t threads);

// fused.cpp
struct MlaWeights {
  const uint8_t* qkv_a;
  const uint16_t* q_a_norm;
  const uint8_t* q_b;
  const uint16_t* kv_a_norm;
  const uint8_t *key_absorbed, *value_up, *o;
  const float* inv_freq;
};
struct MlaSizes {
  int64_t hidden, q_lora, latent, rope, heads, nope, v;
};
// cache_strides: of a block and of a token
void absorbed_attention(const void* x, int64_t is_bf16, int64_t x_stride, int64_t tokens, const MlaWeights* weights,
                        const MlaSizes* sizes, float eps, float scale, void* cache, const int64_t* cache_strides,
                        int64_t block_tokens, const int64_t* slots, const int64_t* positions,
                        const int32_t* block_tables, int64_t table_stride, const int32_t* context_lens, void* out,
                        int64_t threads);
void swiglu_mlp(const void* x, int64_t is_bf16, int64_t x_stride, const uint8_t* gate_up, const uint8_t* down, void* y,
                int64_t tokens, int64_t in, int64_t width, int64_t out, int64_t threads);

}  // extern "C"
