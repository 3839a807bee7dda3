/* Muon's polynomial iteration on many matrices: one thread a matrix, so that it stays in that core's second-level cache and nobody
 * waits. Matrices lie as 32 x 32 blocks, each row-major: what a product reads as its left factor. X X^T and its polynomial are
 * symmetric, only blocks on and below the diagonal are computed. */
#include "packing.h"

#ifdef MATRIX_UNIT

/* to = factor * sums + other_factor * other + diagonal * I (other: a block, or NULL) */
static void finish(const float *sums, float factor, const bf16 *other, float other_factor, float diagonal, bf16 *to) {
    for (int i = 0; i < EDGE; i++) {
        float row[EDGE];
        for (int j = 0; j < EDGE; j++) row[j] = factor * sums[i / 16 * 512 + j / 16 * 256 + i % 16 * 16 + j % 16];
        if (other)
            for (int j = 0; j < EDGE; j++) row[j] += other_factor * to_float(other[i * EDGE + j]);
        row[i] += diagonal;
        for (int j = 0; j < EDGE; j++) to[i * EDGE + j] = to_bf16(row[j]);
    }
}

static void transpose_block(const bf16 *from, bf16 *to) {
    Factor f = {from, EDGE, 0};
    pack_left(&f, 0, 0, EDGE, EDGE, to);
}

/* Blocks of a matrix of `steps` x `panels` blocks (or of its transpose) as a packed right factor. */
static void pack_blocks(const bf16 *blocks, int64_t steps, int64_t panels, int transposed, bf16 *packed) {
    for (int64_t n = 0; n < panels; n++)
        for (int64_t k = 0; k < steps; k++) {
            Factor f = {blocks + (transposed ? n * steps + k : k * panels + n) * PAIR, EDGE, transposed};
            pack_right(&f, 0, 0, EDGE, EDGE, packed + (n * steps + k) * PAIR);
        }
}

/* Symmetric side x side blocks: to = factor * (left times packed) + other_factor * other + diagonal * I. */
static void symmetric_product(const bf16 *left, const bf16 *packed, int64_t side, int64_t steps, float factor, const bf16 *other, float other_factor,
                              float diagonal, float *sums, bf16 *to) {
    for (int64_t s = 0; s < side; s++)
        for (int64_t n = 0; n <= s; n++) {
            multiply(left + s * steps * PAIR, packed + n * steps * PAIR, steps, sums, 0);
            bf16 *block = to + (s * side + n) * PAIR;
            finish(sums, factor, other ? other + (s * side + n) * PAIR : NULL, other_factor, n == s ? diagonal : 0.0f, block);
            if (n < s) transpose_block(block, to + (n * side + s) * PAIR);
        }
}

static void scale_blocks(bf16 *values, int64_t count, float factor) {
    for (int64_t i = 0; i < count; i++) values[i] = to_bf16(factor * to_float(values[i]));
}

/* 1 / (1.02 Frobenius norm + 1e-6): below one, with room for rounding. */
static float inverse_norm(const bf16 *values, int64_t count) {
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; i++) total += to_float(values[i]) * to_float(values[i]);
    return 1.0f / (1.02f * sqrtf(total) + 1e-6f);
}

/* The shorter side is `side` blocks, the longer `length`. Workspace: 2 side*length + 2 side*side blocks. */
static void orthogonalise(const bf16 *source, bf16 *target, int64_t rows, int64_t columns, const float *coefficients, int steps, bf16 *space) {
    int tall = rows > columns;
    int64_t shorter = tall ? columns : rows, longer = tall ? rows : columns, side = blocks(shorter, EDGE), length = blocks(longer, EDGE);
    bf16 *x = space, *packed = x + side * length * PAIR, *gram = packed + side * length * PAIR, *factor = gram + side * side * PAIR;
    float sums[PAIR] __attribute__((aligned(64)));
    Factor f = {source, columns, !tall};
    for (int64_t s = 0; s < side; s++)
        for (int64_t i = 0; i < length; i++)
            pack_left(&f, s * EDGE, i * EDGE, (int)least(EDGE, shorter - s * EDGE), (int)least(EDGE, longer - i * EDGE), x + (s * length + i) * PAIR);
    scale_blocks(x, side * length * PAIR, inverse_norm(x, side * length * PAIR));
    for (int step = 0; step < steps; step++) {
        const float *c = coefficients + 3 * step;
        pack_blocks(x, length, side, 1, packed);
        symmetric_product(x, packed, side, length, 1.0f, NULL, 0.0f, 0.0f, sums, gram);
        pack_blocks(gram, side, side, 0, packed);
        symmetric_product(gram, packed, side, side, c[2], gram, c[1], c[0], sums, factor);
        pack_blocks(x, side, length, 0, packed);
        for (int64_t s = 0; s < side; s++)
            for (int64_t n = 0; n < length; n++) {
                multiply(factor + s * side * PAIR, packed + n * side * PAIR, side, sums, 0);
                finish(sums, 1.0f, NULL, 0.0f, 0.0f, x + (s * length + n) * PAIR);
            }
    }
    bf16 turned[PAIR] __attribute__((aligned(64)));
    for (int64_t s = 0; s < side; s++)
        for (int64_t i = 0; i < length; i++) {
            int64_t row = (tall ? i : s) * EDGE, column = (tall ? s : i) * EDGE;
            const bf16 *block = x + (s * length + i) * PAIR;
            if (tall) {
                transpose_block(block, turned);
                block = turned;
            }
            for (int64_t r = 0; r < least(EDGE, rows - row); r++)
                memcpy(target + (row + r) * columns + column, block + r * EDGE, sizeof(bf16) * (size_t)least(EDGE, columns - column));
        }
}

/* count matrices of rows x columns; `steps` triples of coefficients. Returns 0, or 1 without memory. */
int owngpt_orthogonalise(const bf16 *matrices, bf16 *out, int64_t count, int64_t rows, int64_t columns, const float *coefficients, int steps, int threads) {
    int failed = 0;
    int64_t down = blocks(rows, EDGE), over = blocks(columns, EDGE), side = least(down, over);
#pragma omp parallel num_threads(threads)
    {
        bf16 *space = aligned_alloc(64, (size_t)(2 * (down * over + side * side) * PAIR) * sizeof(bf16));
        if (!space) {
#pragma omp atomic write
            failed = 1;
        }
        tiles_begin();
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++)
            if (space) orthogonalise(matrices + i * rows * columns, out + i * rows * columns, rows, columns, coefficients, steps, space);
        tiles_end();
        free(space);
    }
    return failed;
}

#endif
