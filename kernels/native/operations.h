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

}  // extern "C"
