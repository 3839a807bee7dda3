/* What the matrix products share: factors repacked into whole tiles, and 32 x 32 results of two strips of them. */
#pragma once
#include "tiles.h"

#ifdef MATRIX_UNIT

enum { EDGE = 32, PAIR = 1024 /* values of two tiles, or of a 32 x 32 block */ };

typedef struct {
    const bf16 *values;
    int64_t stride;
    int across; /* the sum's index runs along rows (neighbouring values), else down columns */
} Factor;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Where pairs of neighbours come from in two rows of 32 values: columns 0-15, or 16-31 where `side` is 1. */
static inline __m512i pairs_of(int side) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return _mm512_add_epi16(first, _mm512_set1_epi16((short)(16 * side)));
}

/* Two rows of 32 values -> pairs of neighbours: columns 0-15 and 16-31. */
static inline void interleave(__m512i even, __m512i odd, __m512i *low, __m512i *high) {
    *low = _mm512_permutex2var_epi16(even, pairs_of(0), odd);
    *high = _mm512_permutex2var_epi16(even, pairs_of(1), odd);
}

/* 32 rows x 32 values of which rows x columns exist -> the two registers of each row pair. */
static inline void read_pairs(const bf16 *from, int64_t stride, int rows, int columns, __m512i low[16], __m512i high[16]) {
    __mmask32 there = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
    for (int i = 0; i < 16; i++) {
        __m512i even = 2 * i < rows ? _mm512_maskz_loadu_epi16(there, from + 2 * i * stride) : _mm512_setzero_si512();
        __m512i odd = 2 * i + 1 < rows ? _mm512_maskz_loadu_epi16(there, from + (2 * i + 1) * stride) : _mm512_setzero_si512();
        interleave(even, odd, low + i, high + i);
    }
}

static inline void write_tiles(const __m512i low[16], const __m512i high[16], bf16 *to) {
    for (int i = 0; i < 16; i++) {
        _mm512_store_si512(to + i * 32, low[i]);
        _mm512_store_si512(to + 512 + i * 32, high[i]);
    }
}

/* 32 rows of the result x 32 steps of the sum, or 32 columns of it, as two tiles. */
static inline void pack_left(const Factor *a, int64_t row, int64_t step, int rows, int steps, bf16 *to) {
    __m512i low[16], high[16];
    if (a->across) {
        const bf16 *from = a->values + row * a->stride + step;
        __mmask32 there = steps >= 32 ? 0xffffffffu : (1u << steps) - 1;
        for (int i = 0; i < 32; i++)
            _mm512_store_si512(to + i * 32, i < rows ? _mm512_maskz_loadu_epi16(there, from + i * a->stride) : _mm512_setzero_si512());
        return;
    }
    read_pairs(a->values + step * a->stride + row, a->stride, steps, rows, low, high);
    transpose16(low);
    transpose16(high);
    write_tiles(low, high, to);
}

static inline void pack_right(const Factor *b, int64_t column, int64_t step, int columns, int steps, bf16 *to) {
    __m512i low[16], high[16];
    if (!b->across) {
        read_pairs(b->values + step * b->stride + column, b->stride, steps, columns, low, high);
    } else {
        const bf16 *from = b->values + column * b->stride + step;
        __mmask32 there = steps >= 32 ? 0xffffffffu : (1u << steps) - 1;
        for (int i = 0; i < 16; i++) {
            low[i] = i < columns ? _mm512_maskz_loadu_epi16(there, from + i * b->stride) : _mm512_setzero_si512();
            high[i] = i + 16 < columns ? _mm512_maskz_loadu_epi16(there, from + (i + 16) * b->stride) : _mm512_setzero_si512();
        }
        transpose16(low);
        transpose16(high);
    }
    write_tiles(low, high, to);
}

enum { AHEAD = 4 /* steps that B is asked for before it is needed */ };

/* 32 x 32 sums over `steps` pairs of tiles, from what lies in `sums` (four tiles) where `more`. */
static inline void multiply(const bf16 *left, const bf16 *right, int64_t steps, float *sums, int more) {
    Unit unit;
    float *c[4] = {sums, sums + 256, sums + 512, sums + 768};
    square_begin(&unit, c, 64, more);
    square_multiply(&unit, (Rows){left, left + 512, 64, PAIR}, (Columns){right, right + 512, PAIR, right + AHEAD * PAIR, 32, 1}, steps, &NO_EXTRA);
    square_end(&unit, c, 64);
}

#endif
