/* The matrix unit. It multiplies a tile A (16 rows x 32 bf16) by a tile B (16 pairs of steps x 16 columns x 2 bf16, so that two
 * consecutive steps lie side by side) and adds the product to a tile C (16 x 16 float).
 *
 * Where the processor has AMX the unit is that: 8 registers of 16 rows x 64 bytes (Intel SDM volume 1, chapter 18), C in registers
 * from begin to end. Elsewhere it is made of vectors: each value of A meets a row of B, 16 sums stay in registers for as many steps
 * as one call is given, and C lies in memory between calls. So whoever has several steps to do gives them in one call, and whoever
 * begins leaves that memory alone until the end. */
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

static inline __attribute__((always_inline)) void ask_for(const Columns *b, int64_t step) {
    const char *at = (const char *)b->coming + step * b->lines * 64;
    if (b->near)
        UNROLL
        for (int line = 0; line < b->lines; line++) _mm_prefetch(at + 64 * line, _MM_HINT_T0);
    else
        for (int line = 0; line < b->lines; line++) _mm_prefetch(at + 64 * line, _MM_HINT_T1);
}

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

#define TILE_PERMISSION 0x1023 /* arch_prctl ARCH_REQ_XCOMP_PERM */
#define TILE_DATA 18

static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
} __attribute__((packed)) TILE_SHAPES = {
    .palette = 1,
    .column_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

/* A thread begins before its first product and ends after its last one. */
static inline void tiles_begin(void) { _tile_loadconfig(&TILE_SHAPES); }
static inline void tiles_end(void) { _tile_release(); }

typedef struct {
} Unit;

enum { SQUARES_ARE_FASTER = 0 /* than two pairs, even if other programs run */ };

/* A pair: two tiles of A, one of B. It uses four registers: C tiles 0-1, an A tile in 2, the B tile in 3. Where another program runs
 * on the core's other thread, the pool that registers are renamed from is small: all eight in use then halve the speed, four do not. */
static inline __attribute__((always_inline)) void pair_begin(Unit *unit, float *c0, float *c1, int64_t stride, int more) {
    (void)unit;
    BARRIER();
    if (more) {
        _tile_loadd(0, c0, stride);
        _tile_loadd(1, c1, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
}

static inline __attribute__((always_inline)) void pair_multiply(Unit *unit, Rows a, Columns b, int64_t steps) {
    (void)unit;
    for (int64_t i = 0; i < steps; i++) {
        ask_for(&b, i);
        _tile_loadd(3, b.first + i * b.step, 64);
        _tile_loadd(2, a.first + i * a.step, a.stride);
        _tile_dpbf16ps(0, 2, 3);
        _tile_loadd(2, a.second + i * a.step, a.stride);
        _tile_dpbf16ps(1, 2, 3);
    }
}

/* One tile of A, two of B: the sums are those of both columns. */
static inline __attribute__((always_inline)) void wide_multiply(Unit *unit, Rows a, Columns b, int64_t steps) {
    (void)unit;
    for (int64_t i = 0; i < steps; i++) {
        _tile_loadd(2, a.first + i * a.step, a.stride);
        _tile_loadd(3, b.first + i * b.step, 64);
        _tile_dpbf16ps(0, 2, 3);
        _tile_loadd(3, b.second + i * b.step, 64);
        _tile_dpbf16ps(1, 2, 3);
    }
}

static inline __attribute__((always_inline)) void pair_end(Unit *unit, float *c0, float *c1, int64_t stride) {
    (void)unit;
    _tile_stored(0, c0, stride);
    _tile_stored(1, c1, stride);
    BARRIER();
}

/* A square: two tiles of A, two of B. C tiles 0-3 (row by row), A tiles 4-5, B tiles 6-7. */
static inline __attribute__((always_inline)) void square_begin(Unit *unit, float *const c[4], int more) {
    (void)unit;
    BARRIER();
    if (more) {
        _tile_loadd(0, c[0], 64);
        _tile_loadd(1, c[1], 64);
        _tile_loadd(2, c[2], 64);
        _tile_loadd(3, c[3], 64);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}

/* What is asked for is spread among the products: its way from the second-level cache is what the tiles wait for. */
static inline __attribute__((always_inline)) void square_multiply(Unit *unit, Rows a, Columns b, int64_t steps) {
    (void)unit;
    Columns quarter = b;
    quarter.lines = b.lines / 4;
    for (int64_t i = 0; i < steps; i++) {
        _tile_loadd(4, a.first + i * a.step, a.stride);
        _tile_loadd(5, a.second + i * a.step, a.stride);
        _tile_loadd(6, b.first + i * b.step, 64);
        ask_for(&quarter, 4 * i);
        _tile_dpbf16ps(0, 4, 6);
        ask_for(&quarter, 4 * i + 1);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b.second + i * b.step, 64);
        ask_for(&quarter, 4 * i + 2);
        _tile_dpbf16ps(1, 4, 7);
        ask_for(&quarter, 4 * i + 3);
        _tile_dpbf16ps(3, 5, 7);
    }
}

static inline __attribute__((always_inline)) void square_end(Unit *unit, float *const c[4]) {
    (void)unit;
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    _tile_stored(2, c[2], 64);
    _tile_stored(3, c[3], 64);
    BARRIER();
}

#else

static inline void tiles_begin(void) {}
static inline void tiles_end(void) {}

typedef struct {
    float *c[4];
    int64_t stride; /* bytes */
} Unit;

enum { NEAR_STEPS = 6 /* whose tiles stay in the first-level cache */, SQUARES_ARE_FASTER = 1 };

/* One tile of A by one of B, added to C. */
static inline __attribute__((always_inline)) void tile_multiply(float *c, int64_t stride, const bf16 *a, const Rows *rows, const bf16 *b, const Columns *columns, int64_t first, int64_t last) {
    __m512 sums[16];
    UNROLL
    for (int i = 0; i < 16; i++) sums[i] = _mm512_loadu_ps((const float *)((const char *)c + i * stride));
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

static inline void tile_zero(float *c, int64_t stride) {
    for (int i = 0; i < 16; i++) _mm512_storeu_ps((float *)((char *)c + i * stride), _mm512_setzero_ps());
}

static inline Columns asking_nothing(Columns b) {
    b.lines = 0;
    return b;
}

static inline __attribute__((always_inline)) void pair_begin(Unit *unit, float *c0, float *c1, int64_t stride, int more) {
    *unit = (Unit){{c0, c1}, stride};
    if (more) return;
    tile_zero(c0, stride);
    tile_zero(c1, stride);
}

static inline __attribute__((always_inline)) void pair_multiply(Unit *unit, Rows a, Columns b, int64_t steps) {
    Columns silent = asking_nothing(b);
    for (int64_t first = 0; first < steps; first += NEAR_STEPS) {
        int64_t last = first + NEAR_STEPS < steps ? first + NEAR_STEPS : steps;
        tile_multiply(unit->c[0], unit->stride, a.first, &a, b.first, &b, first, last);
        tile_multiply(unit->c[1], unit->stride, a.second, &a, b.first, &silent, first, last);
    }
}

static inline __attribute__((always_inline)) void wide_multiply(Unit *unit, Rows a, Columns b, int64_t steps) {
    tile_multiply(unit->c[0], unit->stride, a.first, &a, b.first, &b, 0, steps);
    tile_multiply(unit->c[1], unit->stride, a.first, &a, b.second, &b, 0, steps);
}

static inline void pair_end(Unit *unit, float *c0, float *c1, int64_t stride) { (void)unit, (void)c0, (void)c1, (void)stride; }

static inline void square_begin(Unit *unit, float *const c[4], int more) {
    *unit = (Unit){{c[0], c[1], c[2], c[3]}, 64};
    for (int i = 0; i < 4 && !more; i++) tile_zero(c[i], 64);
}

/* Eight rows of A by two tiles of B, added to C: each value of A serves twice. */
static inline __attribute__((always_inline)) void half_multiply(float *c0, float *c1, const bf16 *a, const Rows *rows, const Columns *b, int64_t first, int64_t last, int asking) {
    __m512 sums[16];
    UNROLL
    for (int i = 0; i < 8; i++) sums[i] = _mm512_loadu_ps(c0 + 16 * i), sums[i + 8] = _mm512_loadu_ps(c1 + 16 * i);
    for (int64_t k = first; k < last; k++) {
        const char *row = (const char *)(a + k * rows->step);
        const bf16 *left = b->first + k * b->step, *right = b->second + k * b->step;
        if (asking) ask_for(b, k);
        for (int pair = 0; pair < 16; pair++, row += 4) {
            __m512bh one = (__m512bh)_mm512_loadu_si512(left + 32 * pair), other = (__m512bh)_mm512_loadu_si512(right + 32 * pair);
            UNROLL
            for (int i = 0; i < 8; i++) {
                int32_t value;
                memcpy(&value, row + i * rows->stride, sizeof value);
                __m512bh two = (__m512bh)_mm512_set1_epi32(value);
                sums[i] = _mm512_dpbf16_ps(sums[i], two, one);
                sums[i + 8] = _mm512_dpbf16_ps(sums[i + 8], two, other);
            }
        }
    }
    UNROLL
    for (int i = 0; i < 8; i++) _mm512_storeu_ps(c0 + 16 * i, sums[i]), _mm512_storeu_ps(c1 + 16 * i, sums[i + 8]);
}

static inline __attribute__((always_inline)) void square_multiply(Unit *unit, Rows a, Columns b, int64_t steps) {
    for (int64_t first = 0; first < steps; first += NEAR_STEPS) {
        int64_t last = first + NEAR_STEPS < steps ? first + NEAR_STEPS : steps;
        for (int half = 0; half < 4; half++) {
            const bf16 *rows = (const bf16 *)((const char *)(half < 2 ? a.first : a.second) + half % 2 * 8 * a.stride);
            int at = half / 2 * 2, from = half % 2 * 128;
            half_multiply(unit->c[at] + from, unit->c[at + 1] + from, rows, &a, &b, first, last, half == 0);
        }
    }
}

static inline void square_end(Unit *unit, float *const c[4]) { (void)unit, (void)c; }
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
