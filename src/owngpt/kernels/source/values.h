/* What the tiles of a weight hold, and their values as bf16. A tile is 16 outputs x 32 inputs. Kinds:
 * bf16 as is (1,024 bytes);
 * int8 with a half-precision factor for each group of 32 inputs of an output (544 bytes: 512 numbers, 16 factors);
 * q4_1 with a half-precision factor and offset for each group (320 bytes: 256 of nibbles, 16 factors, 16 offsets), as GGUF has it;
 * int4 with eight bits for each of them (288 bytes: 256 of nibbles, 16 roots, 16 zeros). A factor is the square of its root times
 * the scale of its output, so that a group far smaller than the largest of its output keeps its levels; an offset is -factor *
 * zero / 16, which a zero that is a whole level would make coarser. Behind all tiles lie the scales, a float for each output;
 * int6 likewise (416 bytes: 256 of nibbles, two masks of 64 bits for each pair of outputs, which are its numbers' upper bits, 16
 * roots, 16 zeros, of a quarter of a level);
 * compact, which is bf16 without loss (768 bytes). The weights of a block differ little in magnitude, so that the upper byte of
 * nearly all (sign and all but the last bit of the exponent) is one of 16: a nibble names it, the lower byte stays. For each pair
 * of outputs 64 lower bytes, in quarters of 8 of the even output and 8 of the odd one; behind those of the tile 32 bytes of
 * nibbles a pair, first half low, second half high. All tiles are followed by an Upper for each block, and these by the weights
 * that have no nibble. DFloat11 (Zhang et al. 2025, arXiv:2504.11651) takes the same redundancy out with a Huffman code, in fewer
 * bits, but each must be read before the next is found. */
#pragma once
#include "steps.h"

#ifdef __AMX_BF16__

enum { TILE = 512 };

/* Of the 16 groups of a tile: value = factor * number + offset, or factor * (number - zero), which is exactly 0 at its zero. */
typedef struct {
    __m512 factors, offsets, zeros;
} Levels;

static inline __m512 halves_at(const uint8_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }
static inline __m512 bytes_at(const uint8_t *at) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at))); }

/* Factors without the scales of their outputs. */
static inline __m512 squares_of(const uint8_t *tile, int64_t kind) {
    __m512 roots = bytes_at(tile + factors_at(kind));
    return _mm512_mul_ps(roots, roots);
}
static inline __m512 zeros_of(const uint8_t *tile, int64_t kind) {
    return _mm512_mul_ps(bytes_at(tile + factors_at(kind) + 16), _mm512_set1_ps(kind == WEIGHT_INT4 ? 1.0f / 16 : 1.0f / 4));
}

static inline const float *scales_of(const uint8_t *tiles, int64_t kind, int64_t outputs, int64_t depth) {
    return (const float *)(tiles + (outputs + 15) / 16 * depth * tile_bytes(kind));
}

/* `scales` are those of int4 and int6. */
static inline Levels levels_of(const uint8_t *tile, int64_t kind, __m512 scales) {
    const uint8_t *factors = tile + factors_at(kind);
    Levels levels = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    if (kind == WEIGHT_INT8 || kind == WEIGHT_Q4_1) levels.factors = halves_at(factors);
    if (kind == WEIGHT_Q4_1) levels.offsets = halves_at(factors + 32);
    if (kind == WEIGHT_INT4 || kind == WEIGHT_INT6) {
        levels.factors = _mm512_mul_ps(squares_of(tile, kind), scales);
        levels.zeros = zeros_of(tile, kind);
    }
    return levels;
}

static inline __m512 of_row(__m512 values, int row) { return _mm512_permutexvar_ps(_mm512_set1_epi32(row), values); }

/* What numbers of one row stand for. */
static inline __m512 stand_for(__m512 numbers, Levels levels, int64_t kind, int row) {
    __m512 factor = of_row(levels.factors, row);
    if (kind == WEIGHT_INT8) return _mm512_mul_ps(numbers, factor);
    if (kind == WEIGHT_Q4_1) return _mm512_fmadd_ps(numbers, factor, of_row(levels.offsets, row));
    return _mm512_mul_ps(_mm512_sub_ps(numbers, of_row(levels.zeros, row)), factor);
}

/* The table of one group: what each nibble stands for, 16 entries twice over. */
static inline __m512i nibble_table(Levels levels, int64_t kind, int row) {
    const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 values = stand_for(steps, levels, kind, row);
    return (__m512i)_mm512_cvtne2ps_pbh(values, values);
}

/* Rows 2i and 2i+1 of a tile of nibbles as bf16: byte k holds input k of the even row low, of the odd row high. The table's two
 * copies make the fifth bit of an index, which belongs to the neighbour, not matter. */
static inline void nibble_rows(const uint8_t *tile, int64_t kind, int pair, Levels levels, __m512i *even, __m512i *odd) {
    __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(tile + 32 * pair)));
    *even = _mm512_permutexvar_epi16(bytes, nibble_table(levels, kind, 2 * pair));
    *odd = _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), nibble_table(levels, kind, 2 * pair + 1));
}

/* 32 numbers of eight bits with a sign as what they stand for. */
static inline __m512i values_of(__m256i numbers, Levels levels, int64_t kind, int row) {
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(numbers)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(numbers, 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(stand_for(high, levels, kind, row), stand_for(low, levels, kind, row));
}

/* The values of a row of an int8 tile. */
static inline __m512i int8_row(const uint8_t *tile, int row, Levels levels) {
    return values_of(_mm256_loadu_si256((const __m256i *)(tile + 32 * row)), levels, WEIGHT_INT8, row);
}

/* The masks of a pair of outputs in an int6 tile: bit 4 of their 64 numbers, bit 5. */
static inline const uint64_t *upper_bits(const uint8_t *tile, int pair) { return (const uint64_t *)(tile + 256) + 2 * pair; }

/* The values of a row of an int6 tile. */
static inline __m512i int6_row(const uint8_t *tile, int row, Levels levels) {
    const uint64_t *upper = upper_bits(tile, row / 2);
    int odd = row % 2;
    __m256i numbers = _mm256_loadu_si256((const __m256i *)(tile + 32 * (row / 2)));
    numbers = _mm256_and_si256(_mm256_srlv_epi32(numbers, _mm256_set1_epi32(4 * odd)), _mm256_set1_epi8(15));
    numbers = _mm256_mask_add_epi8(numbers, (__mmask32)(upper[0] >> 32 * odd), numbers, _mm256_set1_epi8(16));
    numbers = _mm256_mask_add_epi8(numbers, (__mmask32)(upper[1] >> 32 * odd), numbers, _mm256_set1_epi8(32));
    return values_of(numbers, levels, WEIGHT_INT6, row);
}

/* Of a block of compact tiles. */
typedef struct {
    uint8_t bytes[8]; /* that the lower three bits of a nibble stand for; the fourth is the sign */
    uint32_t first, count; /* of its exceptions */
} Upper;

/* A weight without a nibble, in the order of `at`. Its tile has bytes[0] over a 0 in its place. */
typedef struct {
    uint32_t at; /* in the block: tile * 512 + output * 32 + input */
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

/* Rows 2 * pair and 2 * pair + 1 of a compact tile. */
static inline void compact_rows(const uint8_t *tile, int pair, __m512i table, __m512i *even, __m512i *odd) {
    const __m512i shift = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    __m512i nibbles = _mm512_srlv_epi64(_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(tile + 512 + 32 * pair))), shift);
    __m512i lower = _mm512_loadu_si512(tile + 64 * pair), upper = _mm512_permutexvar_epi8(nibbles, table);
    *even = _mm512_unpacklo_epi8(lower, upper);
    *odd = _mm512_unpackhi_epi8(lower, upper);
}

/* Two rows of a tile of any kind; `table` is of compact ones, `levels` of quantized ones. */
static inline __attribute__((always_inline)) void tile_rows(const uint8_t *tile, int64_t kind, int pair, __m512i table, Levels levels, __m512i *even, __m512i *odd) {
    if (kind == WEIGHT_BF16) *even = _mm512_loadu_si512(tile + 128 * pair), *odd = _mm512_loadu_si512(tile + 128 * pair + 64);
    else if (kind == WEIGHT_INT8) *even = int8_row(tile, 2 * pair, levels), *odd = int8_row(tile, 2 * pair + 1, levels);
    else if (kind == WEIGHT_INT6) *even = int6_row(tile, 2 * pair, levels), *odd = int6_row(tile, 2 * pair + 1, levels);
    else if (kind == WEIGHT_COMPACT) compact_rows(tile, pair, table, even, odd);
    else nibble_rows(tile, kind, pair, levels, even, odd);
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
static inline __attribute__((always_inline)) void unpack_tiles_of(const Block *block, const int64_t kind, int64_t from, int64_t to, bf16 *out) {
    const uint8_t *tile = block->tiles + from * tile_bytes(kind);
    for (int64_t k = from; k < to; k++, tile += tile_bytes(kind), out += TILE) {
        Levels levels = levels_of(tile, kind, block->scales);
        UNROLL
        for (int pair = 0; pair < 8; pair++) {
            __m512i even, odd;
            tile_rows(tile, kind, pair, block->table, levels, &even, &odd);
            _mm512_storeu_si512(out + 64 * pair, even);
            _mm512_storeu_si512(out + 64 * pair + 32, odd);
        }
    }
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
    for (; block->next != block->end && block->next->at < to * TILE; block->next++) out[block->next->at - from * TILE] = block->next->value;
}

#endif
