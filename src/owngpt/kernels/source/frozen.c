/* Linear layers whose weight is frozen: it is packed once, for the forward product and for that of the input's gradient. */
#include "frozen.h"

#ifdef MATRIX_UNIT


/* columns x depth of a factor, in panels of 32 columns with all their steps. Returns 0. */
int owngpt_pack_frozen(const bf16 *values, int64_t stride, int across, int64_t columns, int64_t depth, bf16 *to, int threads) {
    Factor b = {values, stride, across};
    int64_t steps = blocks(depth, EDGE);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < blocks(columns, EDGE); panel++)
        for (int64_t k = 0; k < steps; k++)
            pack_right(&b, panel * EDGE, k * EDGE, (int)least(EDGE, columns - panel * EDGE), (int)least(EDGE, depth - k * EDGE), to + (panel * steps + k) * PAIR);
    return 0;
}

/* 32 rows x 32 columns of a weight in int8, of which rows x columns exist: factor (half precision, one for 32 columns of a row) * number. */
static inline void int8_block(const int8_t *numbers, const uint16_t *factors, int64_t stride, int64_t factor_stride, int rows, int columns, bf16 *to) {
    __mmask32 there = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
    for (int i = 0; i < 32; i++) {
        __m256i bytes = i < rows ? _mm256_maskz_loadu_epi8(there, numbers + i * stride) : _mm256_setzero_si256();
        __m512 factor = _mm512_set1_ps(i < rows ? _cvtsh_ss(factors[i * factor_stride]) : 0.0f);
        __m512 low = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes))), factor);
        __m512 high = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1))), factor);
        _mm512_storeu_si512(to + i * EDGE, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

/* The same from a weight (outputs x inputs) in int8: panels of outputs where `across`, else of inputs. Returns 0. */
int owngpt_pack_frozen_int8(const int8_t *numbers, const uint16_t *factors, int64_t outputs, int64_t inputs, int across, bf16 *to, int threads) {
    int64_t down = blocks(outputs, EDGE), over = blocks(inputs, EDGE);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < (across ? down : over); panel++)
        for (int64_t k = 0; k < (across ? over : down); k++) {
            int64_t row = (across ? panel : k) * EDGE, column = (across ? k : panel) * EDGE;
            bf16 block[EDGE * EDGE] __attribute__((aligned(64)));
            Factor b = {block, EDGE, across};
            int8_block(numbers + row * inputs + column, factors + row * over + column / EDGE, inputs, over, (int)least(EDGE, outputs - row), (int)least(EDGE, inputs - column), block);
            pack_right(&b, 0, 0, EDGE, EDGE, to + (panel * (across ? over : down) + k) * PAIR);
        }
    return 0;
}

/* Without an update: values (rows x depth) times packed panels, plus bias (a column each, or NULL), to rows x columns. A task is a slice of the
 * columns, so that a large weight is read once by all threads together; each packs its rows again, so there are few where rows are long.
 * Returns 0, or 1 without memory. */
int owngpt_frozen_product(const bf16 *values, const bf16 *weight, const float *bias, bf16 *out, int64_t rows, int64_t columns, int64_t depth, int threads) {
    if (!rows) return 0;
    int64_t tall = least(whole_edges(rows), LARGEST_BLOCK), down = blocks(rows, tall), panels = blocks(columns, EDGE), steps = blocks(depth, EDGE);
    int64_t slices = least(panels, blocks(depth > columns ? threads : 2 * threads, down));
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        size_t left_size = (size_t)(tall * chunk_of(depth, 0) * EDGE);
        bf16 *left = aligned_alloc(64, left_size * sizeof(bf16) + sums_of(tall / EDGE, (blocks(panels, slices)) * EDGE, depth, 0) * sizeof(float));
        if (!left) {
#pragma omp atomic write
            failed = 1;
        }
        tiles_begin();
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < down * slices; task++) {
            if (!left) continue;
            int64_t row = task / slices * tall, first = panels * (task % slices) / slices, last = panels * (task % slices + 1) / slices;
            Block block = {values + row * depth, depth, left, least(tall, rows - row), depth, weight + first * steps * PAIR, least(columns, last * EDGE) - first * EDGE,
                           NULL, 0, 0, 0, NULL, NULL, NULL, bias ? bias + first * EDGE : NULL, out + row * columns + first * EDGE, columns};
            whole_block(&block, (float *)(left + left_size));
        }
        tiles_end();
        free(left);
    }
    return failed;
}

#endif
