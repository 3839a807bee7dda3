/* The matrix unit of AMX: 8 registers of 16 rows x 64 bytes (Intel SDM volume 1, chapter 18). Part of tiles.h. */
#pragma once
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

enum { MADE_OF_VECTORS = 0 };

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
static inline __attribute__((always_inline)) void square_begin(Unit *unit, float *const c[4], int64_t stride, int more) {
    (void)unit;
    BARRIER();
    if (more) {
        _tile_loadd(0, c[0], stride);
        _tile_loadd(1, c[1], stride);
        _tile_loadd(2, c[2], stride);
        _tile_loadd(3, c[3], stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}

/* What is asked for is spread among the products: its way from the second-level cache is what the tiles wait for. */
static inline __attribute__((always_inline)) void square_multiply(Unit *unit, Rows a, Columns b, int64_t steps, const Extra *extra) {
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
    for (int64_t i = 0; i < extra->steps; i++) {
        const bf16 *left = extra->left + extra->from[i] * 1024, *right = extra->right + i * 1024;
        _tile_loadd(4, left, 64);
        _tile_loadd(5, left + 512, 64);
        _tile_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, right + 512, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
}

static inline __attribute__((always_inline)) void square_end(Unit *unit, float *const c[4], int64_t stride) {
    (void)unit;
    _tile_stored(0, c[0], stride);
    _tile_stored(1, c[1], stride);
    _tile_stored(2, c[2], stride);
    _tile_stored(3, c[3], stride);
    BARRIER();
}
