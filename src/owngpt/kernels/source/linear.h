/* What products with packed weights have in common, whatever they multiply with: the layer, its outputs, the activation. */
#pragma once
#include "values.h"

#ifdef MATRIX_UNIT

/* A product of a packed weight, as its steps' slots say it. */
typedef struct {
    const uint8_t *weight;
    const float *bias; /* an output each, or NULL */
    int64_t kind, outputs, inputs, rows, depth, out_stride, x_stride;
    const bf16 *x, *tiles; /* row-major rows x inputs; packed */
    void *out;
    int wide; /* out is float, else bf16 */
} Linear;

static inline __m512 finish(const Linear *l, int64_t output, __m512 sums, __mmask16 here) {
    if (l->bias) sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(here, l->bias + output));
    return sums;
}

static inline void put(const Linear *l, int64_t row, int64_t output, __m512 sums, __mmask16 here) {
    sums = finish(l, output, sums, here);
    int64_t at = row * l->out_stride + output;
    if (l->wide) _mm512_mask_storeu_ps((float *)l->out + at, here, sums);
    else _mm256_mask_storeu_epi16((bf16 *)l->out + at, here, (__m256i)_mm512_cvtneps_pbh(sums));
}

static inline __mmask16 outputs_here(const Linear *l, int64_t output) {
    int64_t left = l->outputs - output;
    return left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
}

enum { ASKED = 8192 /* bytes ahead */ };

/* Ask for what a thread will read a little later, `bytes` of it. Into the second-level cache: the first has few places for lines that
 * are on their way, and asking there for one row's weights takes a third more time than not asking at all. */
static inline __attribute__((always_inline)) void ask_ahead(const uint8_t *tile, const int64_t bytes) {
    UNROLL /* as a loop the compiler takes it for nothing, and leaves it out */
    for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch((const char *)tile + ASKED + line, _MM_HINT_T1);
}

static inline __m512bh row_of(const Linear *l, int64_t row, int64_t k) {
    __mmask32 inside = l->inputs - 32 * k >= 32 ? 0xffffffffu : (1u << (l->inputs - 32 * k)) - 1;
    return (__m512bh)_mm512_maskz_loadu_epi16(inside, l->x + row * l->x_stride + 32 * k);
}

static inline __m512 sigmoid16(__m512 x) {
    __m512 down = exp2_16(_mm512_mul_ps(_mm512_min_ps(x, _mm512_set1_ps(80.0f)), _mm512_set1_ps(-1.44269504f)));
    return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_add_ps(_mm512_set1_ps(1.0f), down));
}

/* x * sigmoid(x), or GELU by tanh: x * (1 + tanh(u)) / 2 = x * sigmoid(2u). */
static inline __m512 activated(__m512 x, int tanh_form) {
    if (!tanh_form) return _mm512_mul_ps(x, sigmoid16(x));
    __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(0.044715f), _mm512_mul_ps(x, x)), x, x);
    return _mm512_mul_ps(x, sigmoid16(_mm512_mul_ps(_mm512_set1_ps(1.5957691216f), cubic)));
}

#endif
