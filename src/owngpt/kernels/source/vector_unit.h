/* The matrix unit made of vectors: each value of A meets a row of B, and 16 sums stay in registers for as many steps as one call is
 * given. Part of tiles.h. */
#pragma once

static inline void tiles_begin(void) {}
static inline void tiles_end(void) {}

typedef struct {
    float *c[4];
    int64_t stride; /* bytes */
    int fresh; /* what lies there is not yet to be added to */
} Unit;

enum { NEAR_STEPS = 6 /* whose tiles stay in the first-level cache */, MADE_OF_VECTORS = 1 };

/* One tile of A by one of B, added to C unless that is fresh. */
static inline __attribute__((always_inline)) void tile_multiply(float *c, int64_t stride, int fresh, const bf16 *a, const Rows *rows, const bf16 *b, const Columns *columns, int64_t first, int64_t last) {
    __m512 sums[16];
    UNROLL
    for (int i = 0; i < 16; i++) sums[i] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps((const float *)((const char *)c + i * stride));
    for (int64_t k = first; k < last; k++) {
        const char *row = (const char *)(a + k * rows->step);
        const bf16 *right = b + k * columns->step;
        ask_for(columns, k);
        for (int pair = 0; pair < 16; pair++, row += 4) {
            __m512i two = _mm512_loadu_si512(right + 32 * pair);
            UNROLL
            for (int i = 0; i < 16; i++) {
                int32_t value;
                memcpy(&value, row + i * rows->stride, sizeof value);
                sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_set1_epi32(value), (__m512bh)two);
            }
        }
    }
    UNROLL
    for (int i = 0; i < 16; i++) _mm512_storeu_ps((float *)((char *)c + i * stride), sums[i]);
}

static inline Columns asking_nothing(Columns b) {
    b.lines = 0;
    return b;
}

static inline __attribute__((always_inline)) void pair_begin(Unit *unit, float *c0, float *c1, int64_t stride, int more) {
    *unit = (Unit){{c0, c1}, stride, !more};
}

static inline __attribute__((always_inline)) void pair_multiply(Unit *unit, Rows a, Columns b, int64_t steps) {
    Columns silent = asking_nothing(b);
    for (int64_t first = 0; first < steps; first += NEAR_STEPS) {
        int64_t last = first + NEAR_STEPS < steps ? first + NEAR_STEPS : steps;
        tile_multiply(unit->c[0], unit->stride, unit->fresh, a.first, &a, b.first, &b, first, last);
        tile_multiply(unit->c[1], unit->stride, unit->fresh, a.second, &a, b.first, &silent, first, last);
        unit->fresh = 0;
    }
}

static inline __attribute__((always_inline)) void wide_multiply(Unit *unit, Rows a, Columns b, int64_t steps) {
    tile_multiply(unit->c[0], unit->stride, unit->fresh, a.first, &a, b.first, &b, 0, steps);
    tile_multiply(unit->c[1], unit->stride, unit->fresh, a.first, &a, b.second, &b, 0, steps);
    unit->fresh = 0;
}

static inline void pair_end(Unit *unit, float *c0, float *c1, int64_t stride) { (void)unit, (void)c0, (void)c1, (void)stride; }

static inline void square_begin(Unit *unit, float *const c[4], int64_t stride, int more) {
    *unit = (Unit){{c[0], c[1], c[2], c[3]}, stride, !more};
}

/* A pair of steps: eight rows of A by two tiles of B, each value of A for both. */
static inline __attribute__((always_inline)) void eight_by_two(__m512 sums[16], const char *row, int64_t stride, const bf16 *left, const bf16 *right) {
    __m512bh one = (__m512bh)_mm512_loadu_si512(left), other = (__m512bh)_mm512_loadu_si512(right);
    UNROLL
    for (int i = 0; i < 8; i++) {
        int32_t value;
        memcpy(&value, row + i * stride, sizeof value);
        __m512bh two = (__m512bh)_mm512_set1_epi32(value);
        sums[i] = _mm512_dpbf16_ps(sums[i], two, one);
        sums[i + 8] = _mm512_dpbf16_ps(sums[i + 8], two, other);
    }
}

/* Eight rows of A by two tiles of B, added to C unless that is fresh; the eight are so many values below the first one of `extra`. */
static inline __attribute__((always_inline)) void half_multiply(float *c0, float *c1, int64_t stride, int fresh, const bf16 *a, const Rows *rows, const Columns *b, int64_t first, int64_t last, int asking, const Extra *extra, int64_t below) {
    __m512 sums[16];
    UNROLL
    for (int i = 0; i < 8; i++) {
        sums[i] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(c0 + i * stride);
        sums[i + 8] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(c1 + i * stride);
    }
    for (int64_t k = first; k < last; k++) {
        const char *row = (const char *)(a + k * rows->step);
        const bf16 *left = b->first + k * b->step, *right = b->second + k * b->step;
        if (asking) ask_for(b, k);
        for (int pair = 0; pair < 16; pair++) eight_by_two(sums, row + 4 * pair, rows->stride, left + 32 * pair, right + 32 * pair);
    }
    for (int64_t k = 0; k < extra->steps; k++) {
        const char *row = (const char *)(extra->left + extra->from[k] * 1024 + below);
        const bf16 *right = extra->right + k * 1024;
        for (int pair = 0; pair < pairs_that_matter(extra, k); pair++) eight_by_two(sums, row + 4 * pair, 64, right + 32 * pair, right + 512 + 32 * pair);
    }
    UNROLL
    for (int i = 0; i < 8; i++) _mm512_storeu_ps(c0 + i * stride, sums[i]), _mm512_storeu_ps(c1 + i * stride, sums[i + 8]);
}

static inline __attribute__((always_inline)) void square_multiply(Unit *unit, Rows a, Columns b, int64_t steps, const Extra *extra) {
    for (int64_t first = 0; first < steps; first += NEAR_STEPS) {
        int64_t last = first + NEAR_STEPS < steps ? first + NEAR_STEPS : steps;
        for (int half = 0; half < 4; half++) {
            const bf16 *rows = (const bf16 *)((const char *)(half < 2 ? a.first : a.second) + half % 2 * 8 * a.stride);
            int64_t stride = unit->stride / (int64_t)sizeof(float), from = half % 2 * 8 * stride;
            int at = half / 2 * 2;
            half_multiply(unit->c[at] + from, unit->c[at + 1] + from, stride, unit->fresh, rows, &a, &b, first, last, half == 0, last == steps ? extra : &NO_EXTRA, half * 256);
        }
        unit->fresh = 0;
    }
}

static inline void square_end(Unit *unit, float *const c[4], int64_t stride) { (void)unit, (void)c, (void)stride; }
