/* What products with a frozen weight share: a weight in panels of 32 columns with all their steps, a block of rows in strips of 32. */
#pragma once
#include "packing.h"

#ifdef MATRIX_UNIT

enum { PACKED_STEPS = 24, WHOLE_STEPS = 128, CACHED_STEPS = MADE_OF_VECTORS ? 6 : 9 /* each of 32 summed values */, LARGEST_BLOCK = 256 /* rows */ };

static inline int64_t whole_edges(int64_t count) { return blocks(count, EDGE) * EDGE; }

static inline void square_times_panel(const bf16 *left, const bf16 *right, int64_t steps, const Extra *extra, float *sums, int more, const char *next, int lines) {
    Unit unit;
    float *const c[4] = {sums, sums + 256, sums + 512, sums + 768};
    square_begin(&unit, c, 64, more);
    square_multiply(&unit, (Rows){left, left + 512, 64, PAIR}, (Columns){right, right + 512, PAIR, next, 2 * lines, 0}, steps, extra);
    square_end(&unit, c, 64);
}

/* A strip of 32 rows times a panel of 32 columns, or of 16 with one of two `halves`, added to `sums` where `more`. The next
 * panel, which comes from far away, is asked for meanwhile: `lines` of it a step. */
static inline void strip_times_panel(const bf16 *left, const bf16 *right, int64_t steps, const Extra *extra, float *sums, int more, int halves, const char *next, int lines) {
    if (MADE_OF_VECTORS && halves == 2) { /* faster than two pairs there, whatever else runs */
        square_times_panel(left, right, steps, extra, sums, more, next, lines);
        return;
    }
    for (int half = 0; half < halves; half++) {
        float *c = sums + half * 256;
        const bf16 *b = right + half * 512;
        Unit unit;
        pair_begin(&unit, c, c + 512, 64, more);
        pair_multiply(&unit, (Rows){left, left + 512, 64, PAIR}, (Columns){b, NULL, PAIR, next + half * steps * lines * 64, lines, 0}, steps);
        for (int64_t i = 0; i < extra->steps; i++) {
            const bf16 *a = extra->left + extra->from[i] * PAIR;
            pair_multiply(&unit, (Rows){a, a + 512, 64, 0}, (Columns){.first = extra->right + i * PAIR + half * 512}, 1);
        }
        pair_end(&unit, c, c + 512, 64);
    }
}

/* 32 x 32 sums -> rows x columns of bfloat16. */
static inline void put_block(const float *sums, const float *bias, float factor, bf16 *to, int64_t stride, int rows, int columns) {
    __m512 first = _mm512_setzero_ps(), second = first, by = _mm512_set1_ps(factor);
    __mmask32 there = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
    if (bias) {
        first = _mm512_maskz_loadu_ps((__mmask16)there, bias);
        second = _mm512_maskz_loadu_ps((__mmask16)(there >> 16), bias + 16);
    }
    for (int i = 0; i < rows; i++) {
        const float *row = sums + (i / 16) * 512 + (i % 16) * 16;
        __m512 low = _mm512_fmadd_ps(_mm512_load_ps(row), by, first), high = _mm512_fmadd_ps(_mm512_load_ps(row + 256), by, second);
        _mm512_mask_storeu_epi16(to + i * stride, there, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

static inline void pack_strips(const bf16 *values, int64_t stride, int64_t rows, int64_t depth, bf16 *to) {
    Factor a = {values, stride, 1};
    int64_t steps = blocks(depth, EDGE);
    for (int64_t s = 0; s < blocks(rows, EDGE); s++)
        for (int64_t k = 0; k < steps; k++)
            pack_left(&a, s * EDGE, k * EDGE, (int)least(EDGE, rows - s * EDGE), (int)least(EDGE, depth - k * EDGE), to + (s * steps + k) * PAIR);
}

/* rows x depth (strips) times packed panels, plus more steps of both, into a block of bfloat16. */
typedef struct {
    const bf16 *values; /* the left factor, which is packed a chunk at a time into `left`; NULL: it lies there whole */
    int64_t stride;
    bf16 *left;
    int64_t rows, depth;
    const bf16 *panels;
    int64_t columns;
    const bf16 *extra_left; /* strips of `extra_strip` steps, in rounds of `extra_period` with `extra_depth` values */
    int64_t extra_strip, extra_period, extra_depth;
    const bf16 *extra_right;                  /* steps of all panels */
    const int64_t *extra_first, *extra_from; /* a panel's first of them; for each, where its left step lies in the strip */
    const float *bias;
    bf16 *out;
    int64_t out_stride;
} Block;

/* Steps that are added up before the next ones: all that there are, unless the left factor is packed on the way or far too large. */
static inline int64_t chunk_of(int64_t depth, int packed) { return least(blocks(depth, EDGE), packed ? WHOLE_STEPS : PACKED_STEPS); }

static inline void finish_block(const Block *p, int64_t strip, int64_t panel, const float *sums) {
    put_block(sums, p->bias ? p->bias + panel * EDGE : NULL, 1.0f, p->out + strip * EDGE * p->out_stride + panel * EDGE, p->out_stride,
              (int)least(EDGE, p->rows - strip * EDGE), (int)least(EDGE, p->columns - panel * EDGE));
}

static inline Extra extra_of(const Block *p, int64_t strip, int64_t panel) {
    if (!p->extra_left) return NO_EXTRA;
    int64_t at = p->extra_first[panel];
    return (Extra){p->extra_left + strip * p->extra_strip * PAIR, p->extra_right + at * PAIR, p->extra_from + at, p->extra_first[panel + 1] - at, p->extra_period, p->extra_depth};
}

/* Few steps at a time: a panel's and a strip's then stay in the first-level cache while all strips pass. */
static inline void chunk_of_block(const Block *p, int64_t first, int64_t steps, int begun, int last, float *all) {
    int64_t strips = blocks(p->rows, EDGE), panels = blocks(p->columns, EDGE), deep = blocks(p->depth, EDGE);
    int64_t strip = p->values ? steps : deep, start = p->values ? 0 : first;
    int lines = (int)blocks(EDGE, 2 * strips); /* 32 cache lines a step of the next panel, over all passes of this one */
    float own[LARGEST_BLOCK / EDGE * PAIR] __attribute__((aligned(64)));
    for (int64_t n = 0; n < panels; n++) {
        const bf16 *right = p->panels + (n * deep + first) * PAIR;
        const char *next = (const char *)(right + deep * PAIR);
        for (int64_t k = 0; k < steps; k += CACHED_STEPS) {
            int64_t here = least(CACHED_STEPS, steps - k);
            int ends = last && k + here == steps;
            for (int64_t s = 0; s < strips; s++, next += 2 * here * lines * 64) {
                float *c = begun || !last ? all + (s * panels + n) * PAIR : own + s * PAIR;
                Extra extra = ends ? extra_of(p, s, n) : NO_EXTRA;
                strip_times_panel(p->left + (s * strip + start + k) * PAIR, right + k * PAIR, here, &extra, c, begun || k, 2, next, n + 1 < panels ? lines : 0);
                if (ends) finish_block(p, s, n, c);
            }
        }
    }
}

static inline void whole_block(const Block *p, float *all) {
    int64_t steps = blocks(p->depth, EDGE), most = chunk_of(p->depth, !p->values);
    for (int64_t k = 0; k < steps; k += most) {
        int64_t deep = least(most, steps - k);
        if (p->values) pack_strips(p->values + k * EDGE, p->stride, p->rows, least(deep * EDGE, p->depth - k * EDGE), p->left);
        chunk_of_block(p, k, deep, k > 0, k + deep == steps, all);
    }
}

/* Floats that whole_block needs to add up several chunks. */
static inline size_t sums_of(int64_t strips, int64_t columns, int64_t depth, int packed) {
    return blocks(depth, EDGE) > chunk_of(depth, packed) ? (size_t)(strips * blocks(columns, EDGE) * PAIR) : PAIR;
}

#endif
