/* Parameter updates: fp32 master values and moments, gradients in bfloat16, one pass; the bfloat16 working copy is refreshed. */
#include "common.h"

/* AdamW (arXiv 1711.05101). correction1, correction2: 1 - beta^step. */
void owngpt_adamw(float *master, float *mean, float *square, const bf16 *gradient16, const float *gradient32, bf16 *working,
                  int64_t count, float gradient_scale, float rate, float beta1, float beta2, float epsilon, float decay,
                  float correction1, float correction2, int threads) {
    float root = sqrtf(correction2);
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        float g = gradient_scale * (gradient16 ? to_float(gradient16[i]) : gradient32[i]);
        float m = mean[i] + (1.0f - beta1) * (g - mean[i]);
        float v = square[i] + (1.0f - beta2) * (g * g - square[i]);
        mean[i] = m;
        square[i] = v;
        float p = master[i] * (1.0f - rate * decay) - rate / correction1 * m / (sqrtf(v) / root + epsilon);
        master[i] = p;
        if (working) working[i] = to_bf16(p);
    }
}

/* Muon, first half: momentum = beta*momentum + gradient; direction = gradient + beta*momentum (Nesterov), as bfloat16. */
void owngpt_momentum(float *momentum, const bf16 *gradient16, const float *gradient32, bf16 *direction, int64_t count,
                     float gradient_scale, float beta, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        float g = gradient_scale * (gradient16 ? to_float(gradient16[i]) : gradient32[i]);
        float m = momentum[i] + (1.0f - beta) * (g - momentum[i]);
        momentum[i] = m;
        direction[i] = to_bf16(g + beta * (m - g));
    }
}

/* Muon, second half: master = master*(1 - rate*decay) - rate*direction. */
void owngpt_apply(float *master, const bf16 *direction, bf16 *working, int64_t count, float rate, float decay_rate, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        float p = master[i] * (1.0f - decay_rate) - rate * to_float(direction[i]);
        master[i] = p;
        if (working) working[i] = to_bf16(p);
    }
}
