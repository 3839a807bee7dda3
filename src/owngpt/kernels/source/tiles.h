/* The matrix unit. It multiplies a tile A (16 rows x 32 bf16) by a tile B (16 pairs of steps x 16 columns x 2 bf16, so that two
 * consecutive steps lie side by side) and adds the product to a tile C (16 x 16 float).
 *
 * Where the processor has AMX the unit is that, and C is in registers from begin to end. Elsewhere it is made of vectors, and C lies
 * in memory between calls. So whoever has several steps to do gives them in one call (one at least: without any, what lies in C stays),
 * and whoever begins leaves that memory alone until the end. */
#pragma once
#include "vectors.h"

#ifdef WIDE_VECTORS
#define MATRIX_UNIT

/* The compiler does not see that a tile load reads memory: the barriers keep plain stores before, and plain loads after. */
#define BARRIER() __asm__ volatile("" ::: "memory")

/* A's tiles of one call: rows `stride` bytes apart, `step` values from one step to the next. */
typedef struct {
    const bf16 *first, *second;
    int64_t stride, step;
} Rows;

/* B's tiles of one call, and the cache lines to ask memory for meanwhile. */
typedef struct {
    const bf16 *first, *second; /* the second only in a square */
    int64_t step;
    const void *coming; /* `lines` of it a step, into the first-level cache where `near` */
    int lines, near;
} Columns;

/* More steps of a sum: step i of B's tiles meets step from[i] of A's, whose rows are 64 bytes apart. A's steps come in rounds of
 * `period`, in which `depth` values matter; the others are zero. */
typedef struct {
    const bf16 *left, *right;
    const int64_t *from;
    int64_t steps, period, depth;
} Extra;

/* Pairs of step i that are not zero. */
static inline int pairs_that_matter(const Extra *extra, int64_t i) {
    int64_t values = extra->depth - extra->from[i] % extra->period * 32;
    return values >= 32 ? 16 : (int)(values + 1) / 2;
}

static const Extra NO_EXTRA = {0};

static inline __attribute__((always_inline)) void ask_for(const Columns *b, int64_t step) {
    const char *at = (const char *)b->coming + step * b->lines * 64;
    if (b->near)
        UNROLL
        for (int line = 0; line < b->lines; line++) _mm_prefetch(at + 64 * line, _MM_HINT_T0);
    else
        for (int line = 0; line < b->lines; line++) _mm_prefetch(at + 64 * line, _MM_HINT_T1);
}

#ifdef __AMX_BF16__
#include "amx_unit.h"
#else
#include "vector_unit.h"
#endif

/* B tile over the columns of a row-major matrix: 16 rows (the tile's columns) x 32 values. `present` rows exist, the rest are zero. */
static inline void pack_rows_as_columns(const bf16 *source, int64_t stride, int present, bf16 *tile) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = i < present ? _mm512_loadu_si512(source + i * stride) : _mm512_setzero_si512();
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(tile + i * 32, r[i]);
}

/* B tile over the rows of a row-major matrix: 32 rows (k) x 16 columns, consecutive rows interleaved. */
static inline void pack_row_pairs(const bf16 *source, int64_t stride, int present, bf16 *tile) {
    for (int pair = 0; pair < 16; pair++) {
        __m512i even = _mm512_setzero_si512(), odd = even;
        if (2 * pair < present) even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(source + 2 * pair * stride)));
        if (2 * pair + 1 < present) odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(source + (2 * pair + 1) * stride)));
        _mm512_storeu_si512(tile + pair * 32, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}
#endif
