/* The last step of RMSNorm (arXiv 1910.07467): a row times 1 / its deviation and the weight. */
#pragma once
#include "common.h"

static inline void normed_row(const bf16 *in, float rstd, const float *weight, bf16 *out, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) out[i] = to_bf16(to_float(in[i]) * rstd * weight[i]);
}
