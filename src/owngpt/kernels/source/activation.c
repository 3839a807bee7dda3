/* Feed-forward activations: SwiGLU, GELU in its tanh form (arXiv 1606.08415) and squared ReLU (arXiv 2109.08668). */
#include "gate.h"

/* gate_up: rows x 2*width, the gate half first. out = silu(gate) * up. */
void owngpt_swiglu(const bf16 *gate_up, bf16 *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *gate = gate_up + row * 2 * width;
        swiglu_values(gate, gate + width, out + row * width, width);
    }
}

void owngpt_swiglu_backward(const bf16 *d_out, const bf16 *gate_up, bf16 *d_gate_up, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *gate = gate_up + row * 2 * width;
        bf16 *d_gate = d_gate_up + row * 2 * width;
        swiglu_gradient(d_out + row * width, gate, gate + width, d_gate, d_gate + width, NULL, width);
    }
}

/* gelu(x) = x * sigmoid(2u), u = sqrt(2/pi) * (x + 0.044715 x^3): the same as 0.5 x (1 + tanh u). */
void owngpt_gelu(const bf16 *x, bf16 *out, int64_t count, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        float v = to_float(x[i]);
        out[i] = to_bf16(v * sigmoid_fast(1.5957691216f * (v + 0.044715f * v * v * v)));
    }
}

void owngpt_gelu_backward(const bf16 *d_out, const bf16 *x, bf16 *d_x, int64_t count, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        float v = to_float(x[i]);
        float s = sigmoid_fast(1.5957691216f * (v + 0.044715f * v * v * v));
        float slope = 1.5957691216f * (1.0f + 0.134145f * v * v);
        d_x[i] = to_bf16(to_float(d_out[i]) * (s + v * s * (1.0f - s) * slope));
    }
}

void owngpt_relu2(const bf16 *x, bf16 *out, int64_t count, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        float v = to_float(x[i]);
        v = v > 0.0f ? v : 0.0f;
        out[i] = to_bf16(v * v);
    }
}

void owngpt_relu2_backward(const bf16 *d_out, const bf16 *x, bf16 *d_x, int64_t count, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        float v = to_float(x[i]);
        d_x[i] = to_bf16(v > 0.0f ? 2.0f * v * to_float(d_out[i]) : 0.0f);
    }
}
