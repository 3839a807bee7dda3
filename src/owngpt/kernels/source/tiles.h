/* AMX tiles: 8 registers of 16 rows x 64 bytes. A dot-product step multiplies A (16 rows x 32 bf16) by B (16 row pairs x 16
 * columns x 2 bf16, consecutive k interleaved) into C (16 x 16 float). Intel SDM volume 1, chapter 18. */
#pragma once
#include "common.h"

#ifdef __AVX512BW__
#include <immintrin.h>

/* Registers cannot be indexed: loops over arrays of them are written out even where the compiler saves effort. */
#define UNROLL _Pragma("GCC unroll 16")

/* Transpose 16 x 16 words of 32 bits in registers. */
static inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    UNROLL
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#endif

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

static inline void tiles_begin(void) { _tile_loadconfig(&TILE_SHAPES); }
static inline void tiles_end(void) { _tile_release(); }

/* The 2 x 2 register blocking: C tiles 0-3, A tiles 4-5, B tiles 6-7. Strides in bytes. */
/* The compiler does not see that a tile load reads memory: the barriers keep plain stores before, and plain loads after. */
#define BARRIER() __asm__ volatile("" ::: "memory")
#define TILES_ZERO()                                                                                                          \
    do {                                                                                                                      \
        BARRIER();                                                                                                            \
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);                                                           \
    } while (0)
#define TILES_STEP(a0, a1, a_stride, b0, b1, b_stride)                                                                        \
    do {                                                                                                                      \
        _tile_loadd(6, (b0), (b_stride));                                                                                     \
        _tile_loadd(4, (a0), (a_stride));                                                                                     \
        _tile_dpbf16ps(0, 4, 6);                                                                                              \
        _tile_loadd(7, (b1), (b_stride));                                                                                     \
        _tile_dpbf16ps(1, 4, 7);                                                                                              \
        _tile_loadd(5, (a1), (a_stride));                                                                                     \
        _tile_dpbf16ps(2, 5, 6);                                                                                              \
        _tile_dpbf16ps(3, 5, 7);                                                                                              \
    } while (0)
#define TILES_LOAD(c00, c01, c10, c11, stride)                                                                                \
    do {                                                                                                                      \
        BARRIER();                                                                                                            \
        _tile_loadd(0, (c00), (stride)); _tile_loadd(1, (c01), (stride));                                                     \
        _tile_loadd(2, (c10), (stride)); _tile_loadd(3, (c11), (stride));                                                     \
    } while (0)
#define TILES_STORE(c00, c01, c10, c11, stride)                                                                               \
    do {                                                                                                                      \
        _tile_stored(0, (c00), (stride)); _tile_stored(1, (c01), (stride));                                                   \
        _tile_stored(2, (c10), (stride)); _tile_stored(3, (c11), (stride));                                                   \
        BARRIER();                                                                                                            \
    } while (0)

/* A narrower blocking of 2 x 1 that uses four registers: C tiles 0-1, an A tile in 2, the B tile in 3. Where another program runs
 * on the core's other thread, the pool that registers are renamed from is small: all eight in use then halve the speed, four do not. */
#define TILES_PAIR_ZERO()                                                                                                     \
    do {                                                                                                                      \
        BARRIER();                                                                                                            \
        _tile_zero(0); _tile_zero(1);                                                                                         \
    } while (0)
#define TILES_PAIR_LOAD(c0, c1, stride)                                                                                       \
    do {                                                                                                                      \
        BARRIER();                                                                                                            \
        _tile_loadd(0, (c0), (stride)); _tile_loadd(1, (c1), (stride));                                                       \
    } while (0)
#define TILES_PAIR_STEP(a0, a1, a_stride, b)                                                                                  \
    do {                                                                                                                      \
        _tile_loadd(3, (b), 64);                                                                                              \
        _tile_loadd(2, (a0), (a_stride));                                                                                     \
        _tile_dpbf16ps(0, 2, 3);                                                                                              \
        _tile_loadd(2, (a1), (a_stride));                                                                                     \
        _tile_dpbf16ps(1, 2, 3);                                                                                              \
    } while (0)
#define TILES_PAIR_STORE(c0, c1, stride)                                                                                      \
    do {                                                                                                                      \
        _tile_stored(0, (c0), (stride)); _tile_stored(1, (c1), (stride));                                                     \
        BARRIER();                                                                                                            \
    } while (0)

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

/* Two vectors of 16 floats as 16 pairs of bf16: the first in the low halves. */
static inline __m512i pair_up(__m512 low, __m512 high) {
    __m512i l = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
    __m512i h = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
    return _mm512_or_si512(l, _mm512_slli_epi32(h, 16));
}

/* 2^x of 16 floats: the range-reduced degree-5 polynomial is far below bf16's rounding. */
static inline __m512 exp2_16(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.3398874e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6184373e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5503324e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022648e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314720e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}
#endif
