/* Weights into the tiles of values.h, in fewer bits where asked. A tile is 16 outputs x 32 inputs: a group of each output. */
#include "values.h"
#include <stdatomic.h>

#ifdef MATRIX_UNIT

enum { CANDIDATES = 16, GROUP = 32 };

/* The tile's values, an input each, with the outputs in the lanes; what lies outside of the matrix is 0. */
static void read_columns(const void *weight, int wide, int64_t outputs, int64_t inputs, int64_t row, int64_t column, __m512 columns[GROUP]) {
    for (int half = 0; half < 2; half++) {
        int64_t at = column + 16 * half, left = inputs - at;
        __mmask16 inside = left >= 16 ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
        __m512i r[16];
        for (int i = 0; i < 16; i++) {
            __mmask16 here = row + i < outputs ? inside : 0;
            int64_t from = here ? (row + i) * inputs + at : 0;
            if (wide) r[i] = _mm512_castps_si512(_mm512_maskz_loadu_ps(here, (const float *)weight + from));
            else r[i] = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, (const bf16 *)weight + from)), 16);
        }
        transpose16(r);
        for (int i = 0; i < 16; i++) columns[16 * half + i] = _mm512_castsi512_ps(r[i]);
    }
}

/* The tile as bf16; what lies outside of the matrix is 0, and so are numbers that the products take for it. */
static void read_rows(const void *weight, int wide, int64_t outputs, int64_t inputs, int64_t row, int64_t column, bf16 *tile) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80), sign = _mm512_set1_epi16((short)0x8000);
    __mmask32 inside = inputs - column >= 32 ? 0xffffffffu : (1u << (inputs - column)) - 1;
    __m512i r[16];
    for (int i = 0; i < 16; i++) {
        __mmask32 here = row + i < outputs ? inside : 0;
        int64_t from = here ? (row + i) * inputs + column : 0;
        __m512i values;
        if (wide) {
            const float *at = (const float *)weight + from;
            values = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps((__mmask16)(here >> 16), at + 16), _mm512_maskz_loadu_ps((__mmask16)here, at));
        } else values = _mm512_maskz_loadu_epi16(here, (const bf16 *)weight + from);
        __mmask32 normal = _mm512_test_epi16_mask(values, exponent);
        r[i] = _mm512_mask_mov_epi16(_mm512_and_si512(values, sign), normal, values);
    }
    if (MADE_OF_VECTORS) transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(tile + 32 * i, r[i]);
}

static inline __m512 as_half(__m512 x) { return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
static inline void put_halves(uint8_t *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
/* Rounded, at least 0 and at most 255. */
static inline void put_bytes(uint8_t *to, __m512 x) { _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(_mm512_max_ps(x, _mm512_setzero_ps())))); }
static inline __m512 inverse_or_zero(__m512 x) {
    return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_OQ), _mm512_set1_ps(1.0f), x);
}

/* Numbers of eight bits, an input each with the outputs in the lanes, as numbers_of reads them. */
static void put_numbers(const __m512i inputs[GROUP], int64_t kind, uint8_t *tile) {
    __m512i numbers[8];
    for (int j = 0; j < 8; j++) {
        numbers[j] = inputs[4 * j];
        for (int i = 1; i < 4; i++) numbers[j] = _mm512_or_si512(numbers[j], _mm512_slli_epi32(inputs[4 * j + i], 8 * i));
    }
    if (kind == WEIGHT_INT8) {
        for (int j = 0; j < 8; j++) _mm512_storeu_si512(tile + 64 * j, numbers[j]);
        return;
    }
    const __m512i nibble = _mm512_set1_epi8(15), pair = _mm512_set1_epi8(3);
    for (int j = 0; j < 4; j++) {
        __m512i upper = _mm512_slli_epi16(_mm512_and_si512(numbers[j + 4], nibble), 4);
        _mm512_storeu_si512(tile + 64 * j, _mm512_or_si512(_mm512_and_si512(numbers[j], nibble), upper));
    }
    for (int half = 0; kind == WEIGHT_INT6 && half < 2; half++) {
        __m512i bits = _mm512_setzero_si512();
        for (int j = 0; j < 4; j++) bits = _mm512_or_si512(bits, _mm512_slli_epi16(_mm512_and_si512(_mm512_srli_epi16(numbers[4 * half + j], 4), pair), 2 * j));
        _mm512_storeu_si512(tile + 256 + 64 * half, bits);
    }
}

/* value = factor * (number - 128), the number in 1 ... 255; the 16 factors follow the 512 numbers. */
static void pack_int8(const __m512 columns[GROUP], uint8_t *tile) {
    __m512 most = _mm512_setzero_ps(), wrong = most;
    __m512i numbers[GROUP];
    for (int k = 0; k < GROUP; k++) {
        most = _mm512_max_ps(most, _mm512_abs_ps(columns[k]));
        wrong = _mm512_add_ps(wrong, _mm512_sub_ps(columns[k], columns[k])); /* damaged weights stay so */
    }
    __m512 factor = as_half(_mm512_fmadd_ps(most, _mm512_set1_ps(1.0f / 127.0f), wrong)), inverse = inverse_or_zero(factor);
    for (int k = 0; k < GROUP; k++) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(columns[k], inverse));
        q = _mm512_min_epi32(_mm512_max_epi32(q, _mm512_set1_epi32(-127)), _mm512_set1_epi32(127));
        numbers[k] = _mm512_add_epi32(q, _mm512_set1_epi32(128));
    }
    put_numbers(numbers, WEIGHT_INT8, tile);
    put_halves(tile + factors_at(WEIGHT_INT8), factor);
}

static inline __m512 level(__m512 x, __m512 low, __m512 inverse, float top) {
    __m512 q = rounded16(_mm512_mul_ps(_mm512_sub_ps(x, low), inverse));
    return _mm512_min_ps(_mm512_max_ps(q, _mm512_setzero_ps()), _mm512_set1_ps(top));
}

/* The highest number. */
static inline float top_of(int kind) { return kind == WEIGHT_INT6 ? 63.0f : 15.0f; }

/* In levels: the offset that the largest zero stands for. */
static inline float lowest_offset(int kind) { return -255.0f / zero_parts(kind); }

/* The factor and offset whose levels 0 ... top, which reach from 0 or below to 0 or above, are nearest to the values, in the sum of
 * squares: some spacings are tried, each refitted by least squares to the levels that it gives. */
static Levels fit_levels(const __m512 columns[GROUP], int kind) {
    const float top = top_of(kind);
    const __m512 none = _mm512_setzero_ps(), lowest = _mm512_set1_ps(lowest_offset(kind));
    __m512 low = none, high = none, sum = none, squares = none, best;
    for (int k = 0; k < GROUP; k++) {
        low = _mm512_min_ps(low, columns[k]);
        high = _mm512_max_ps(high, columns[k]);
        sum = _mm512_add_ps(sum, columns[k]);
        squares = _mm512_fmadd_ps(columns[k], columns[k], squares);
    }
    __m512 count = _mm512_set1_ps(GROUP), two = _mm512_set1_ps(2.0f), span = inverse_or_zero(_mm512_sub_ps(high, low));
    best = _mm512_set1_ps(INFINITY);
    Levels found = {.factors = none, .offsets = low};
    for (int candidate = 0; candidate < CANDIDATES; candidate++) {
        __m512 inverse = _mm512_mul_ps(span, _mm512_set1_ps(candidate ? top * (0.9f + (float)candidate / 60.0f) : top));
        __m512 q1 = none, q2 = none, qx = none;
        for (int k = 0; k < GROUP; k++) {
            __m512 q = level(columns[k], low, inverse, top);
            q1 = _mm512_add_ps(q1, q);
            q2 = _mm512_fmadd_ps(q, q, q2);
            qx = _mm512_fmadd_ps(q, columns[k], qx);
        }
        __m512 spread = _mm512_fmsub_ps(count, q2, _mm512_mul_ps(q1, q1));
        __m512 f = _mm512_mul_ps(_mm512_fmsub_ps(count, qx, _mm512_mul_ps(q1, sum)), inverse_or_zero(spread));
        __m512 o = _mm512_min_ps(_mm512_div_ps(_mm512_fnmadd_ps(f, q1, sum), count), none);
        if (!candidate) { /* the ends as they are: exact for values that were such levels before */
            f = _mm512_mul_ps(_mm512_sub_ps(high, low), _mm512_set1_ps(1.0f / top));
            o = low;
        }
        o = _mm512_max_ps(o, _mm512_mul_ps(f, lowest)); /* where even the highest level is below 0 */
        __m512 error = _mm512_fmadd_ps(_mm512_mul_ps(f, f), q2, squares); /* sum of (x - f q - o)^2, multiplied out */
        error = _mm512_fmadd_ps(_mm512_mul_ps(o, o), count, error);
        error = _mm512_fnmadd_ps(_mm512_mul_ps(two, f), qx, error);
        error = _mm512_fnmadd_ps(_mm512_mul_ps(two, o), sum, error);
        error = _mm512_fmadd_ps(_mm512_mul_ps(two, _mm512_mul_ps(f, o)), q1, error);
        __mmask16 better = _mm512_cmp_ps_mask(error, best, _CMP_LT_OQ);
        best = _mm512_mask_mov_ps(best, better, error);
        found.factors = _mm512_mask_mov_ps(found.factors, better, f);
        found.offsets = _mm512_mask_mov_ps(found.offsets, better, o);
    }
    found.factors = _mm512_add_ps(found.factors, _mm512_sub_ps(sum, sum)); /* damaged weights stay so */
    return found;
}

/* value = factor * (number - zero), the number in 0 ... 15, in int6 0 ... 63; 16 roots and 16 zeros follow, to which the levels are rounded. */
static void pack_levels(const __m512 columns[GROUP], Levels levels, __m512 scales, int kind, uint8_t *tile) {
    __m512i numbers[GROUP];
    put_bytes(tile + factors_at(kind), _mm512_sqrt_ps(_mm512_mul_ps(levels.factors, inverse_or_zero(scales))));
    __m512 inverse = inverse_or_zero(_mm512_mul_ps(squares_of(tile, kind), scales));
    /* Where 0 lies does not change with the factor's rounding: all values of a group then have the same relative error. */
    __m512 zeros = _mm512_mul_ps(levels.offsets, inverse_or_zero(levels.factors));
    put_bytes(tile + factors_at(kind) + 16, _mm512_mul_ps(zeros, _mm512_set1_ps(-zero_parts(kind))));
    __m512 low = _mm512_mul_ps(bytes_at(tile + factors_at(kind) + 16), _mm512_set1_ps(-1.0f / zero_parts(kind)));
    for (int k = 0; k < GROUP; k++)
        numbers[k] = _mm512_cvtps_epi32(level(_mm512_mul_ps(columns[k], inverse), low, _mm512_set1_ps(1.0f), top_of(kind)));
    put_numbers(numbers, kind, tile);
}

/* A weight that is to be packed. form: 0 for outputs x inputs of bf16, 1 of float, 2 + a kind for tiles. */
typedef struct {
    const void *values;
    int form;
    int64_t outputs, inputs, depth;
} Source;

/* A tile's values as read_columns gives them, of a matrix or of q4_1 tiles. */
static void read_tile(const Source *source, int64_t block, int64_t k, __m512 columns[GROUP]) {
    if (source->form < 2) {
        read_columns(source->values, source->form, source->outputs, source->inputs, 16 * block, 32 * k, columns);
        return;
    }
    const uint8_t *tile = (const uint8_t *)source->values + (block * source->depth + k) * tile_bytes(WEIGHT_Q4_1);
    Levels levels = levels_of(tile, WEIGHT_Q4_1, _mm512_setzero_ps());
    __m512i numbers[8];
    numbers_of(tile, WEIGHT_Q4_1, numbers);
    for (int i = 0; i < GROUP; i++) {
        __m512i number = _mm512_and_si512(_mm512_srli_epi32(numbers[i / 4], 8 * (unsigned)(i % 4)), _mm512_set1_epi32(255));
        columns[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(number), levels.factors, levels.offsets);
    }
}

/* The levels of a tile's groups: those that they have already in q4_1, where int4 has them too. A factor may be negative there: the
 * levels are then the same from the other end. */
static Levels levels_for(const Source *source, int64_t block, int64_t k, int kind) {
    const __m512 none = _mm512_setzero_ps();
    Levels stored = {.factors = none, .offsets = none};
    __mmask16 fits = 0;
    if (source->form >= 2) {
        stored = levels_of((const uint8_t *)source->values + (block * source->depth + k) * tile_bytes(WEIGHT_Q4_1), WEIGHT_Q4_1, none);
        __mmask16 turned = _mm512_cmp_ps_mask(stored.factors, none, _CMP_LT_OQ);
        stored.offsets = _mm512_mask3_fmadd_ps(stored.factors, _mm512_set1_ps(15.0f), stored.offsets, turned);
        stored.factors = _mm512_abs_ps(stored.factors);
        __m512 lowest = _mm512_mul_ps(stored.factors, _mm512_set1_ps(lowest_offset(kind)));
        fits = _mm512_cmp_ps_mask(stored.offsets, none, _CMP_LE_OQ) & _mm512_cmp_ps_mask(stored.offsets, lowest, _CMP_GE_OQ);
    }
    if (fits == 0xffff) return stored;
    __m512 columns[GROUP];
    read_tile(source, block, k, columns);
    Levels fitted = fit_levels(columns, kind);
    return (Levels){.factors = _mm512_mask_mov_ps(fitted.factors, fits, stored.factors), .offsets = _mm512_mask_mov_ps(fitted.offsets, fits, stored.offsets)};
}

/* 16 outputs in int4 or int6; `fitted` has room for the levels of each tile. */
static void pack_block(const Source *source, int64_t block, int kind, uint8_t *tiles, Levels *fitted) {
    __m512 columns[GROUP], most = _mm512_setzero_ps(), wrong = most;
    for (int64_t k = 0; k < source->depth; k++) {
        fitted[k] = levels_for(source, block, k, kind);
        most = _mm512_max_ps(most, fitted[k].factors);
        wrong = _mm512_add_ps(wrong, _mm512_sub_ps(fitted[k].factors, fitted[k].factors)); /* stays 0 unless one is no number */
    }
    __m512 scales = _mm512_fmadd_ps(most, _mm512_set1_ps(1.0f / (255 * 255)), wrong);
    _mm512_storeu_ps((float *)scales_of(tiles, kind, source->outputs, source->depth) + 16 * block, scales);
    for (int64_t k = 0; k < source->depth; k++) {
        read_tile(source, block, k, columns);
        pack_levels(columns, fitted[k], scales, kind, tiles + (block * source->depth + k) * tile_bytes(kind));
    }
}

/* A weight as tiles of a kind, see values.h. form: as in Source; tiles are those of q4_1, and become int4. */
int owngpt_pack(const void *weight, int form, int64_t outputs, int64_t inputs, int kind, uint8_t *tiles, int threads) {
    Source source = {weight, form, outputs, inputs, (inputs + 31) / 32};
    int64_t depth = source.depth, bytes = tile_bytes(kind), blocks_ = (outputs + 15) / 16;
    atomic_int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        int fits = kind == WEIGHT_INT4 || kind == WEIGHT_INT6;
        Levels *fitted = fits ? aligned_alloc(64, (size_t)depth * sizeof(Levels)) : NULL;
        if (fits && !fitted) atomic_store(&failed, 1);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks_; block++) {
            if (fits && fitted) pack_block(&source, block, kind, tiles, fitted);
            if (fits) continue;
            for (int64_t k = 0; k < depth; k++) {
                __m512 columns[GROUP];
                uint8_t *tile = tiles + (block * depth + k) * bytes;
                if (kind == WEIGHT_BF16) {
                    read_rows(weight, form, outputs, inputs, 16 * block, 32 * k, (bf16 *)tile);
                    continue;
                }
                read_columns(weight, form, outputs, inputs, 16 * block, 32 * k, columns);
                pack_int8(columns, tile);
            }
        }
        free(fitted);
    }
    return failed;
}

enum { RARE = 1024 }; /* one weight in so many may lie outside of the first choice of upper bytes without a second look */

static inline __m512i upper_bytes(const bf16 *weights) {
    return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(weights), 8), _mm512_set1_epi16(0x7f));
}

/* Weights of a block whose upper bytes, without their signs, are not among the eight from `base` on, or among the last seven and 0. */
static void count_outside(const bf16 *block, int64_t count, int base, int64_t *eight, int64_t *seven) {
    __m512i first = _mm512_set1_epi16((short)base), last = _mm512_set1_epi16((short)(base + 7));
    *eight = *seven = 0;
    for (int64_t i = 0; i < count; i += 32) {
        __m512i upper = upper_bytes(block + i);
        __mmask32 above = _mm512_cmpgt_epi16_mask(upper, last);
        *eight += __builtin_popcount(_mm512_cmplt_epi16_mask(upper, first) | above);
        *seven += __builtin_popcount((_mm512_cmple_epi16_mask(upper, first) & _mm512_test_epi16_mask(upper, upper)) | above);
    }
}

/* Where to begin so that eight upper bytes in a row, or the last seven of them and 0, are those of most weights of a block. */
static int most_frequent(const bf16 *block, int64_t count) {
    int64_t of[128] = {0}, best = -1;
    int base = 0;
    for (int64_t i = 0; i < count; i++) of[block[i] >> 8 & 0x7f]++;
    for (int first = 0; first <= 120; first++) {
        int64_t sum = of[first] > of[0] ? of[first] : of[0];
        for (int i = 1; i < 8; i++) sum += of[first + i];
        if (sum > best) best = sum, base = first;
    }
    return base;
}

/* The eight upper bytes, without their signs, that have nibbles in a block: eight in a row, or 0 and seven in a row, whatever leaves
 * fewer weights without. They end with the greatest, unless that is an outlier. */
static void choose_upper(const bf16 *block, int64_t count, uint8_t bytes[8]) {
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += 32) most = _mm512_max_epu16(most, upper_bytes(block + i));
    int top = _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(most, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32(most, 16)));
    int base = top > 7 ? top - 7 : 0;
    int64_t eight, seven;
    count_outside(block, count, base, &eight, &seven);
    if ((eight < seven ? eight : seven) > count / RARE) {
        base = most_frequent(block, count);
        count_outside(block, count, base, &eight, &seven);
    }
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(base + i);
    if (seven < eight) bytes[0] = 0;
}

/* A line of 32 weights: nibbles and lower bytes, a word each, and which of the weights have no nibble. */
static __mmask32 split_row(__m512i weights, const uint8_t bytes[8], __m512i *nibbles, __m512i *lower) {
    int base = bytes[1] - 1, least = bytes[0] == base ? 0 : 1;
    __m512i upper = _mm512_and_si512(_mm512_srli_epi16(weights, 8), _mm512_set1_epi16(0x7f)), index = _mm512_sub_epi16(upper, _mm512_set1_epi16((short)base));
    __mmask32 zeros = bytes[0] ? 0 : _mm512_testn_epi16_mask(upper, upper);
    __mmask32 without = (_mm512_cmplt_epi16_mask(index, _mm512_set1_epi16((short)least)) & ~zeros) | _mm512_cmpgt_epi16_mask(index, _mm512_set1_epi16(7));
    __m512i sign = _mm512_and_si512(_mm512_srli_epi16(weights, 12), _mm512_set1_epi16(8));
    *nibbles = _mm512_maskz_mov_epi16(~without, _mm512_or_si512(_mm512_maskz_mov_epi16(~zeros, index), sign));
    *lower = _mm512_maskz_mov_epi16(~without, _mm512_and_si512(weights, _mm512_set1_epi16(0xff)));
    return without;
}

/* 16 outputs x 32 inputs of bf16 as a compact tile; exceptions[i] are those of line i. */
static void pack_compact_tile(const bf16 *values, const uint8_t bytes[8], uint8_t *tile, __mmask32 exceptions[16]) {
    for (int pair = 0; pair < 8; pair++) {
        __m512i nibbles[2], lower[2];
        for (int side = 0; side < 2; side++)
            exceptions[2 * pair + side] = split_row(_mm512_loadu_si512(values + 64 * pair + 32 * side), bytes, &nibbles[side], &lower[side]);
        __m512i joined = _mm512_packus_epi16(nibbles[0], nibbles[1]);
        __m256i low = _mm512_castsi512_si256(joined), high = _mm512_extracti64x4_epi64(joined, 1);
        _mm512_storeu_si512(tile + 64 * pair, _mm512_packus_epi16(lower[0], lower[1]));
        _mm256_storeu_si256((__m256i *)(tile + 512 + 32 * pair), _mm256_or_si256(low, _mm256_slli_epi16(high, 4)));
    }
}

/* Which values of line i of a tile lie in the matrix, of which so many outputs and inputs are here. */
static inline __mmask32 in_matrix(int i, int64_t outputs, int64_t inputs) {
    if (!MADE_OF_VECTORS) return i >= outputs ? 0 : inputs >= 32 ? 0xffffffffu : (1u << inputs) - 1;
    __mmask32 here = outputs >= 16 ? 0xffffffffu : (1u << 2 * outputs) - 1;
    return 2 * i + 1 < inputs ? here : 2 * i < inputs ? here & 0x55555555u : 0;
}

/* A block of bf16 tiles as compact ones, present outputs x inputs of it in the matrix. `found` has room for all. */
static int64_t pack_compact_block(const bf16 *values, int64_t present, int64_t inputs, const uint8_t bytes[8], uint8_t *tiles, Exception *found) {
    int64_t count = 0;
    for (int64_t k = 0; k < (inputs + 31) / 32; k++) {
        __mmask32 masks[16];
        pack_compact_tile(values + k * TILE, bytes, tiles + k * tile_bytes(WEIGHT_COMPACT), masks);
        for (int i = 0; i < 16; i++)
            for (__mmask32 left = masks[i] & in_matrix(i, present, inputs - 32 * k); left; left &= left - 1) {
                uint32_t at = (uint32_t)(k * TILE + 32 * i + __builtin_ctz(left));
                found[count++] = (Exception){.at = at, .value = values[at]};
            }
    }
    return count;
}

/* A weight as compact tiles. form: 0 for outputs x inputs of bf16, 1 of float, 2 + a kind for tiles. `room`: exceptions that fit behind
 * tiles and Uppers; `needed`: how many there are. With more than fit the tiles are of no use. */
int owngpt_pack_compact(const void *weight, int form, int64_t outputs, int64_t inputs, uint8_t *tiles, int64_t room, int64_t *needed, int threads) {
    int64_t depth = (inputs + 31) / 32, blocks_ = (outputs + 15) / 16;
    Upper *uppers = (Upper *)uppers_of(tiles, outputs, depth);
    Exception *exceptions = (Exception *)exceptions_of(tiles, outputs, depth);
    atomic_llong taken = 0;
    atomic_int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        bf16 *values = aligned_alloc(64, (size_t)(depth * TILE) * sizeof(bf16));
        Exception *found = malloc((size_t)(depth * TILE) * sizeof(Exception));
        if (!values || !found) atomic_store(&failed, 1);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks_; block++) {
            if (!values || !found) continue;
            if (form >= 2) {
                Block packed = block_of(weight, form - 2, outputs, depth, block);
                unpack_tiles(&packed, 0, depth, values);
            } else
                for (int64_t k = 0; k < depth; k++) read_rows(weight, form, outputs, inputs, 16 * block, 32 * k, values + k * TILE);
            choose_upper(values, depth * TILE, uppers[block].bytes);
            int64_t count = pack_compact_block(values, outputs - 16 * block, inputs, uppers[block].bytes, tiles + block * depth * tile_bytes(WEIGHT_COMPACT), found);
            int64_t first = atomic_fetch_add(&taken, count);
            uppers[block].first = (uint32_t)first, uppers[block].count = (uint32_t)count;
            if (first + count <= room) memcpy(exceptions + first, found, (size_t)count * sizeof(Exception));
        }
        free(values);
        free(found);
    }
    *needed = taken;
    return failed;
}

/* A tile's numbers from quants (outputs x inputs bytes), `bias` more than they are; those of absent outputs are `bias`. */
static void join_tile(const uint8_t *quants, int present, int64_t inputs, int8_t bias, int64_t kind, uint8_t *tile) {
    __m512i numbers[GROUP];
    for (int k = 0; k < GROUP; k++) {
        int32_t column[16];
        for (int i = 0; i < 16; i++) column[i] = (uint8_t)((i < present ? quants[i * inputs + k] : 0) + bias);
        numbers[k] = _mm512_loadu_si512(column);
    }
    put_numbers(numbers, kind, tile);
}

/* A weight that is stored in groups already: quants (outputs x inputs bytes, q4_1 where there are offsets and then at most 15, else
 * int8), factors and offsets (outputs x inputs / 32 in half precision) into tiles, unchanged. Outputs that fill up the last are 0. */
int owngpt_join_groups(const uint8_t *quants, const uint16_t *factors, const uint16_t *offsets, int64_t outputs, int64_t inputs, uint8_t *tiles, int threads) {
    int64_t depth = inputs / 32, kind = offsets ? WEIGHT_Q4_1 : WEIGHT_INT8;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < (outputs + 15) / 16; block++)
        for (int64_t k = 0; k < depth; k++) {
            uint8_t *tile = tiles + (block * depth + k) * tile_bytes(kind);
            int present = (int)(outputs - 16 * block < 16 ? outputs - 16 * block : 16);
            uint16_t ends[32] = {0};
            for (int i = 0; i < present; i++) {
                int64_t group = (16 * block + i) * depth + k;
                ends[i] = factors[group];
                if (offsets) ends[16 + i] = offsets[group];
            }
            join_tile(quants + 16 * block * inputs + 32 * k, present, inputs, offsets ? 0 : (int8_t)128, kind, tile);
            memcpy(tile + factors_at(kind), ends, offsets ? 64 : 32);
        }
    return 0;
}
#endif
