/* Matrix products on tiles: C (m x n) = A (m x k) B (k x n), each factor row-major or transposed, sums in float32.
 *
 * Blocked after Goto and van de Geijn (ACM TOMS 34, 2008). Both factors are repacked into whole tiles first: rows at large strides
 * fall into few sets of the first-level cache. All of B (a slice of it, where it is large) is packed by all threads together;
 * then each task packs a block of A into the second-level cache, and 32 columns of B wait in the first-level cache while all
 * strips of that block pass. Missing rows, columns and steps are zeros, so any size works. What a task computes does not depend
 * on which thread runs it. */
#include "packing.h"

#ifdef MATRIX_UNIT

enum { DEPTH = 768, TALL = 256, WIDE = 1024 };
#define SLICE ((int64_t)6 * 1024 * 1024) /* values of B packed at once */

static inline void write_result(const float *sums, const float *bias, bf16 *to, int64_t stride, int rows, int columns) {
    __m512 first = _mm512_setzero_ps(), second = first;
    __mmask32 there = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
    if (bias) {
        first = _mm512_maskz_loadu_ps((__mmask16)there, bias);
        second = _mm512_maskz_loadu_ps((__mmask16)(there >> 16), bias + 16);
    }
    for (int i = 0; i < rows; i++) {
        const float *row = sums + (i / 16) * 512 + (i % 16) * 16;
        __m512 low = _mm512_add_ps(_mm512_load_ps(row), first), high = _mm512_add_ps(_mm512_load_ps(row + 256), second);
        _mm512_mask_storeu_epi16(to + i * stride, there, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

typedef struct {
    Factor a, b;
    const float *bias;
    bf16 *c;
    int64_t c_stride, rows, columns, depth;
    bf16 *packed; /* B: per 32 columns all steps of the slice */
} Product;

/* Rows [row, row + tall) x columns [column, column + wide) over the slice's steps [step, step + deep). */
static void task(const Product *p, int64_t row, int64_t tall, int64_t column, int64_t wide, int64_t step, int64_t deep, int64_t first_column,
                 int begun, int last, bf16 *left, float *sums) {
    int64_t strips = blocks(tall, EDGE), panels = blocks(wide, EDGE), all_steps = blocks(deep, EDGE), most = DEPTH / EDGE;
    for (int64_t k = 0; k < all_steps; k += most) {
        int64_t steps = least(most, all_steps - k);
        int more = begun || k, final = last && k + steps == all_steps;
        if (!p->a.across) /* along its rows: a strip at a time would touch a page for every 64 bytes */
            for (int64_t i = 0; i < steps; i++)
                for (int64_t s = 0; s < strips; s++)
                    pack_left(&p->a, row + s * EDGE, step + (k + i) * EDGE, (int)least(EDGE, tall - s * EDGE), (int)least(EDGE, deep - (k + i) * EDGE),
                              left + (s * steps + i) * PAIR);
        for (int64_t s = 0; s < strips; s++) {
            int here = (int)least(EDGE, tall - s * EDGE);
            bf16 *strip = p->a.across ? left : left + s * steps * PAIR;
            if (p->a.across)
                for (int64_t i = 0; i < steps; i++)
                    pack_left(&p->a, row + s * EDGE, step + (k + i) * EDGE, here, (int)least(EDGE, deep - (k + i) * EDGE), strip + i * PAIR);
            for (int64_t n = 0; n < panels; n++) {
                int64_t over = column + n * EDGE;
                float *block = more || !final ? sums + (s * panels + n) * PAIR : sums;
                multiply(strip, p->packed + ((over - first_column) / EDGE * all_steps + k) * PAIR, steps, block, more);
                if (final)
                    write_result(block, p->bias ? p->bias + over : NULL, p->c + (row + s * EDGE) * p->c_stride + over, p->c_stride, here,
                                 (int)least(EDGE, wide - n * EDGE));
            }
        }
    }
}

/* bias (float32, one a column) may be NULL. Returns 0, or 1 without memory. */
int owngpt_product(const bf16 *a, int64_t a_stride, int a_across, const bf16 *b, int64_t b_stride, int b_across, const float *bias, bf16 *c,
                   int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, int threads) {
    Product p = {{a, a_stride, a_across}, {b, b_stride, b_across}, bias, c, c_stride, rows, columns, depth, NULL};
    int64_t deep = blocks(depth, EDGE) * EDGE, slice_deep = least(deep, least(columns, WIDE) > 0 ? SLICE / (blocks(least(columns, WIDE), EDGE) * EDGE) / DEPTH * DEPTH : DEPTH);
    int64_t slice_wide = deep <= slice_deep ? SLICE / deep / EDGE * EDGE : WIDE;
    slice_wide = least(slice_wide, blocks(columns, EDGE) * EDGE);
    int64_t tall = TALL;
    while (tall > 64 && blocks(rows, tall) * blocks(slice_wide, WIDE) < 4 * threads) tall -= 32;
    int several = deep > slice_deep, summed = deep > DEPTH;
    int64_t wide = least(WIDE, slice_wide), block = (summed ? tall * wide : EDGE * EDGE);
    int64_t down = blocks(rows, tall), over = blocks(slice_wide, wide);
    p.packed = aligned_alloc(64, (size_t)(slice_deep * slice_wide) * sizeof(bf16));
    float *all = several ? aligned_alloc(64, (size_t)(down * over * block) * sizeof(float)) : NULL;
    int failed = !p.packed || (several && !all);
#pragma omp parallel num_threads(threads) if (!failed)
    if (!failed) {
        bf16 *left = aligned_alloc(64, (size_t)(tall * DEPTH) * sizeof(bf16) + (size_t)block * sizeof(float));
        float *own = (float *)(left + tall * DEPTH);
        if (!left) {
#pragma omp atomic write
            failed = 1;
        }
        tiles_begin();
        for (int64_t column = 0; column < columns; column += slice_wide)
            for (int64_t step = 0; step < depth; step += slice_deep) {
                int64_t deep_here = least(slice_deep, depth - step), wide_here = least(slice_wide, columns - column), steps = blocks(deep_here, EDGE), panels = blocks(wide_here, EDGE);
#pragma omp for schedule(static)
                for (int64_t i = 0; i < (b_across ? panels : steps); i++)
                    for (int64_t j = 0; j < (b_across ? steps : panels); j++) {
                        int64_t panel = b_across ? i : j, k = b_across ? j : i;
                        pack_right(&p.b, column + panel * EDGE, step + k * EDGE, (int)least(EDGE, wide_here - panel * EDGE), (int)least(EDGE, deep_here - k * EDGE),
                                   p.packed + (panel * steps + k) * PAIR);
                    }
#pragma omp for schedule(dynamic) collapse(2)
                for (int64_t i = 0; i < down; i++)
                    for (int64_t j = 0; j < blocks(wide_here, wide); j++)
                        if (left)
                            task(&p, i * tall, least(tall, rows - i * tall), column + j * wide, least(wide, wide_here - j * wide), step, deep_here, column,
                                 step > 0, step + deep_here == depth, left, several ? all + (i * over + j) * block : own);
            }
        tiles_end();
        free(left);
    }
    free(p.packed);
    free(all);
    return failed;
}

#endif
