/* What the tiles of a weight hold, and their values as bf16. A tile is 16 outputs x 32 inputs. Kinds:
 * bf16 as is (1,024 bytes): 16 lines of 32, an output each where AMX takes them, else two inputs of all outputs each;
 * (a factor is what others call a scale, a zero a zero point; a scale is that of a whole output here)
 * int8 with a half-precision factor for each group of 32 inputs of an output (544 bytes: numbers, which are 128 more than what they
 * stand for, and 16 factors);
 * q4_1 with a half-precision factor and offset for each group (320 bytes: 256 of nibbles, 16 factors, 16 offsets), as GGUF has it;
 * int4 with eight bits for each of them (288 bytes: 256 of nibbles, 16 roots, 16 zeros). A factor is the square of its root times
 * the scale of its output, so that a group far smaller than the largest of its output keeps its levels; a zero is where 0 lies, in
 * sixteenths of a level. Behind all tiles lie the scales, a float for each output;
 * int6 likewise (416 bytes: 256 of nibbles, 128 of the two bits above them, 16 roots, 16 zeros in quarters of a level);
 * in these four the outputs lie side by side: each 64 bytes hold four inputs of every output (of nibbles four more in the upper
 * halves, those 16 inputs on; of int6's upper bits two of each of 16 inputs), so that a vector product of a few tokens needs nothing
 * put in order, nor its sums added up;
 * compact, which is bf16 without loss (768 bytes). The weights of a block differ little in magnitude, so that the upper byte of
 * nearly all (sign and all but the last bit of the exponent) is one of 16: a nibble names it, the lower byte stays. For each pair
 * of bf16's lines 64 lower bytes, in quarters of 8 of the even line and 8 of the odd one; behind those of the tile 32 bytes of
 * nibbles a pair, first half low, second half high. All tiles are followed by an Upper for each block, and these by the weights
 * that have no nibble. DFloat11 (Zhang et al. 2025, arXiv:2504.11651) takes the same redundancy out with a Huffman code, in fewer
 * bits, but each must be read before the next is found. */
#pragma once
#include "steps.h"

#ifdef MATRIX_UNIT

enum { TILE = 512 };

/* Where two neighbouring inputs of an output lie in a tile of bf16. */
static inline int64_t pair_at(int64_t output, int64_t pair) { return MADE_OF_VECTORS ? 32 * pair + 2 * output : 32 * output + 2 * pair; }

/* Of the 16 groups of a tile: value = factor * (number - zero), in q4_1 factor * number + offset; number and zero as whole numbers, in
 * parts of a level where kinds have those. */
typedef struct {
    __m512 factors, offsets;
    __m512i zeros;
} Levels;

static inline __m512 halves_at(const uint8_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }
static inline __m512 bytes_at(const uint8_t *at) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at))); }

/* Factors without the scales of their outputs. */
static inline __m512 squares_of(const uint8_t *tile, int64_t kind) {
    __m512 roots = bytes_at(tile + factors_at(kind));
    return _mm512_mul_ps(roots, roots);
}

/* Into how many parts a level is divided to say where 0 lies. */
static inline float zero_parts(int64_t kind) { return kind == WEIGHT_INT4 ? 16.0f : kind == WEIGHT_INT6 ? 4.0f : 1.0f; }

static inline const float *scales_of(const uint8_t *tiles, int64_t kind, int64_t outputs, int64_t depth) {
    return (const float *)(tiles + (outputs + 15) / 16 * depth * tile_bytes(kind));
}

/* `scales` are those of int4 and int6. */
static inline __attribute__((always_inline)) Levels levels_of(const uint8_t *tile, int64_t kind, __m512 scales) {
    const uint8_t *at = tile + factors_at(kind);
    if (kind == WEIGHT_Q4_1) return (Levels){.factors = halves_at(at), .offsets = halves_at(at + 32)};
    if (kind == WEIGHT_INT8) return (Levels){.factors = halves_at(at), .zeros = _mm512_set1_epi32(128)};
    __m512 part = _mm512_mul_ps(scales, _mm512_set1_ps(1.0f / zero_parts(kind)));
    return (Levels){.factors = _mm512_mul_ps(squares_of(tile, kind), part), .zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(at + 16)))};
}

/* The numbers of a quantized tile, from 0 on and in parts of a level: four inputs of every output in each. */
static inline __attribute__((always_inline)) void numbers_of(const uint8_t *tile, int64_t kind, __m512i numbers[8]) {
    const int shift = kind == WEIGHT_INT4 ? 4 : kind == WEIGHT_INT6 ? 2 : 0; /* times so many parts */
    const __m512i nibble = _mm512_set1_epi8((char)(15 << shift)), pair = _mm512_set1_epi8((char)192);
    UNROLL
    for (int j = 0; j < 4; j++) {
        numbers[j] = _mm512_loadu_si512(tile + 64 * j);
        if (kind == WEIGHT_INT8) numbers[j + 4] = _mm512_loadu_si512(tile + 64 * (j + 4));
        else {
            numbers[j + 4] = _mm512_and_si512(shift == 4 ? numbers[j] : _mm512_srli_epi16(numbers[j], 4 - shift), nibble);
            numbers[j] = _mm512_and_si512(shift ? _mm512_slli_epi16(numbers[j], shift) : numbers[j], nibble);
        }
    }
    if (kind != WEIGHT_INT6) return;
    UNROLL
    for (int half = 0; half < 2; half++) {
        __m512i bits = _mm512_loadu_si512(tile + 256 + 64 * half);
        numbers[4 * half] = _mm512_or_si512(numbers[4 * half], _mm512_and_si512(_mm512_slli_epi16(bits, 6), pair));
        numbers[4 * half + 1] = _mm512_or_si512(numbers[4 * half + 1], _mm512_and_si512(_mm512_slli_epi16(bits, 4), pair));
        numbers[4 * half + 2] = _mm512_or_si512(numbers[4 * half + 2], _mm512_and_si512(_mm512_slli_epi16(bits, 2), pair));
        numbers[4 * half + 3] = _mm512_or_si512(numbers[4 * half + 3], _mm512_and_si512(bits, pair));
    }
}

#ifndef __AMX_BF16__
/* A quantized tile as bf16. */
static inline __attribute__((always_inline)) void widen_tile(const uint8_t *tile, int64_t kind, __m512 scales, bf16 *out) {
    const __m512i byte = _mm512_set1_epi32(255);
    __m512i numbers[8];
    Levels levels = levels_of(tile, kind, scales);
    __m512 offsets = kind == WEIGHT_Q4_1 ? levels.offsets : _mm512_fnmadd_ps(levels.factors, _mm512_cvtepi32_ps(levels.zeros), _mm512_setzero_ps());
    numbers_of(tile, kind, numbers);
    UNROLL
    for (int pair = 0; pair < 16; pair++) {
        __m512i both = pair % 2 ? _mm512_srli_epi32(numbers[pair / 2], 16) : numbers[pair / 2];
        __m512 low = _mm512_cvtepi32_ps(_mm512_and_si512(both, byte)), high = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(both, 8), byte));
        _mm512_storeu_si512(out + 32 * pair, pair_up(_mm512_fmadd_ps(low, levels.factors, offsets), _mm512_fmadd_ps(high, levels.factors, offsets)));
    }
}
#else
/* 4 x 4 times 4 bytes: the first input's register has then all 16 bytes of outputs 0, 4, 8 and 12, the second's of 1, 5, 9 and 13. */
static inline void turn_four(__m512i r[4]) {
    __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpacklo_epi32(r[2], r[3]);
    __m512i c = _mm512_unpackhi_epi32(r[0], r[1]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    r[0] = _mm512_unpacklo_epi64(a, b), r[1] = _mm512_unpackhi_epi64(a, b);
    r[2] = _mm512_unpacklo_epi64(c, d), r[3] = _mm512_unpackhi_epi64(c, d);
}

/* A quantized tile as bf16. */
static inline __attribute__((always_inline)) void widen_tile(const uint8_t *tile, int64_t kind, __m512 scales, bf16 *out) {
    __m512i numbers[8];
    uint8_t turned[512] __attribute__((aligned(64)));
    float factors[16] __attribute__((aligned(64))), offsets[16] __attribute__((aligned(64))); /* spreading a number from memory costs no shuffle ... */
    Levels levels = levels_of(tile, kind, scales);
    _mm512_store_ps(factors, levels.factors);
    _mm512_store_ps(offsets, kind == WEIGHT_Q4_1 ? levels.offsets : _mm512_fnmadd_ps(levels.factors, _mm512_cvtepi32_ps(levels.zeros), _mm512_setzero_ps()));
    BARRIER(); /* ... which the compiler would prefer */
    numbers_of(tile, kind, numbers);
    turn_four(numbers);
    turn_four(numbers + 4);
    UNROLL
    for (int i = 0; i < 8; i++) _mm512_store_si512(turned + 64 * i, numbers[i]);
    UNROLL
    for (int row = 0; row < 16; row++) {
        const uint8_t *first = turned + 64 * (row % 4) + 16 * (row / 4);
        __m512 factor = _mm512_set1_ps(factors[row]), offset = _mm512_set1_ps(offsets[row]);
        __m512 low = _mm512_fmadd_ps(bytes_at(first), factor, offset), high = _mm512_fmadd_ps(bytes_at(first + 256), factor, offset);
        _mm512_storeu_si512(out + 32 * row, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

#endif

/* Of a block of compact tiles. */
typedef struct {
    uint8_t bytes[8]; /* that the lower three bits of a nibble stand for; the fourth is the sign */
    uint32_t first, count; /* of its exceptions */
} Upper;

/* A weight without a nibble, in the order of `at`. Its tile has bytes[0] over a 0 in its place. */
typedef struct {
    uint32_t at; /* in the block: tile * 512 + line * 32 + place */
    bf16 value, unused;
} Exception;

static inline const Upper *uppers_of(const uint8_t *tiles, int64_t outputs, int64_t depth) {
    return (const Upper *)(tiles + (outputs + 15) / 16 * depth * tile_bytes(WEIGHT_COMPACT));
}

static inline const Exception *exceptions_of(const uint8_t *tiles, int64_t outputs, int64_t depth) {
    return (const Exception *)(uppers_of(tiles, outputs, depth) + (outputs + 15) / 16);
}

/* The upper byte of each nibble, four times over: the bits above an index, which belong to a neighbour, do not matter. */
static inline __m512i upper_table(const Upper *upper) {
    const __m512i signs = _mm512_setr_epi64(0, (int64_t)0x8080808080808080, 0, (int64_t)0x8080808080808080, 0, (int64_t)0x8080808080808080, 0, (int64_t)0x8080808080808080);
    int64_t bytes;
    memcpy(&bytes, upper->bytes, 8);
    return _mm512_or_si512(_mm512_set1_epi64(bytes), signs);
}

/* Two lines of a compact tile as bf16. */
static inline __attribute__((always_inline)) void compact_pair(const uint8_t *tile, int pair, __m512i table, __m512i *even, __m512i *odd) {
    const __m512i shift = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    __m512i nibbles = _mm512_srlv_epi64(_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(tile + 512 + 32 * pair))), shift);
    __m512i lower = _mm512_loadu_si512(tile + 64 * pair), upper = one_of_sixteen(nibbles, table);
    *even = _mm512_unpacklo_epi8(lower, upper);
    *odd = _mm512_unpackhi_epi8(lower, upper);
}

/* A compact tile as bf16. */
static inline void widen_compact(const uint8_t *tile, __m512i table, bf16 *out) {
    UNROLL
    for (int pair = 0; pair < 8; pair++) {
        __m512i even, odd;
        compact_pair(tile, pair, table, &even, &odd);
        _mm512_storeu_si512(out + 64 * pair, even);
        _mm512_storeu_si512(out + 64 * pair + 32, odd);
    }
}

/* A block of a weight that is read from its first tile to its last. */
typedef struct {
    const uint8_t *tiles;
    int64_t kind;
    __m512 scales; /* of int4 and int6 */
    __m512i table; /* of compact tiles, as what follows */
    const Exception *next, *end;
} Block;

static inline Block block_of(const uint8_t *tiles, int64_t kind, int64_t outputs, int64_t depth, int64_t index) {
    Block block = {.tiles = tiles + index * depth * tile_bytes(kind), .kind = kind, .scales = _mm512_setzero_ps(), .table = _mm512_setzero_si512()};
    if (kind == WEIGHT_INT4 || kind == WEIGHT_INT6) block.scales = _mm512_loadu_ps(scales_of(tiles, kind, outputs, depth) + 16 * index);
    if (kind != WEIGHT_COMPACT) return block;
    const Upper *upper = uppers_of(tiles, outputs, depth) + index;
    block.table = upper_table(upper);
    block.next = exceptions_of(tiles, outputs, depth) + upper->first;
    block.end = block.next + upper->count;
    return block;
}

/* `kind` is a constant where this is inlined. */
static inline __attribute__((always_inline)) void unpack_tile(const Block *block, const int64_t kind, const uint8_t *tile, bf16 *out) {
    if (kind == WEIGHT_BF16) memcpy(out, tile, TILE * sizeof(bf16));
    else if (kind == WEIGHT_COMPACT) widen_compact(tile, block->table, out);
    else widen_tile(tile, kind, block->scales, out);
}

static inline __attribute__((always_inline)) void unpack_tiles_of(const Block *block, const int64_t kind, int64_t from, int64_t to, bf16 *out) {
    for (int64_t k = from; k < to; k++, out += TILE) unpack_tile(block, kind, block->tiles + k * tile_bytes(kind), out);
}

/* The weights without a nibble of tiles [from, to); those before them have been read. */
static inline void put_exceptions(Block *block, int64_t from, int64_t to, bf16 *out) {
    for (; block->next != block->end && block->next->at < to * TILE; block->next++) out[block->next->at - from * TILE] = block->next->value;
}

/* Tiles [from, to) as bf16; those before them have been read. */
static void unpack_tiles(Block *block, int64_t from, int64_t to, bf16 *out) {
    switch (block->kind) {
        case WEIGHT_BF16: unpack_tiles_of(block, WEIGHT_BF16, from, to, out); break;
        case WEIGHT_INT8: unpack_tiles_of(block, WEIGHT_INT8, from, to, out); break;
        case WEIGHT_INT6: unpack_tiles_of(block, WEIGHT_INT6, from, to, out); break;
        case WEIGHT_INT4: unpack_tiles_of(block, WEIGHT_INT4, from, to, out); break;
        case WEIGHT_Q4_1: unpack_tiles_of(block, WEIGHT_Q4_1, from, to, out); break;
        default: unpack_tiles_of(block, WEIGHT_COMPACT, from, to, out);
    }
    put_exceptions(block, from, to, out);
}

#endif
