/* SwiGLU (arXiv 2002.05202) of neighbouring values: silu(gate) * up, and its gradient. */
#pragma once
#include "common.h"

static inline void swiglu_values(const bf16 *gate, const bf16 *up, bf16 *out, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float g = to_float(gate[i]);
        out[i] = to_bf16(g * sigmoid_fast(g) * to_float(up[i]));
    }
}

/* `out`, which may lie where d_out does, becomes the values once more; or is NULL. */
static inline __attribute__((always_inline)) void swiglu_gradient(const bf16 *d_out, const bf16 *gate, const bf16 *up, bf16 *d_gate, bf16 *d_up, bf16 *out, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float g = to_float(gate[i]), u = to_float(up[i]), s = sigmoid_fast(g), d = to_float(d_out[i]);
        d_up[i] = to_bf16(d * g * s);
        d_gate[i] = to_bf16(d * u * s * (1.0f + g * (1.0f - s)));
        if (out) out[i] = to_bf16(g * s * u);
    }
}
