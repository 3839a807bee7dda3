/* Weights into the tiles of packed.c, in fewer bits where asked. A tile is 16 outputs x 32 inputs: a group of each output. */
#include "steps.h"

#ifdef __AMX_BF16__

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

static inline __m512 as_half(__m512 x) { return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
static inline void put_halves(uint8_t *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
static inline __m512 inverse_or_zero(__m512 x) {
    return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_OQ), _mm512_set1_ps(1.0f), x);
}

static void pack_bf16(const __m512 columns[GROUP], uint8_t *tile) {
    for (int k = 0; k < GROUP; k++) {
        bf16 values[16];
        _mm256_storeu_si256((__m256i *)values, (__m256i)_mm512_cvtneps_pbh(columns[k]));
        for (int i = 0; i < 16; i++) ((bf16 *)tile)[32 * i + k] = values[i];
    }
}

/* value = factor * q, q in -127 ... 127; the 16 factors follow the 512 numbers. */
static void pack_int8(const __m512 columns[GROUP], uint8_t *tile) {
    __m512 most = _mm512_setzero_ps();
    for (int k = 0; k < GROUP; k++) most = _mm512_max_ps(most, _mm512_abs_ps(columns[k]));
    __m512 factor = as_half(_mm512_mul_ps(most, _mm512_set1_ps(1.0f / 127.0f))), inverse = inverse_or_zero(factor);
    for (int k = 0; k < GROUP; k++) {
        int8_t values[16];
        __m512i q = _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(columns[k], inverse)), _mm512_set1_epi32(-127));
        _mm_storeu_si128((__m128i *)values, _mm512_cvtsepi32_epi8(q));
        for (int i = 0; i < 16; i++) tile[32 * i + k] = (uint8_t)values[i];
    }
    put_halves(tile + factors_at(WEIGHT_INT8), factor);
}

static inline __m512 level(__m512 x, __m512 low, __m512 inverse, float top) {
    __m512 q = _mm512_roundscale_ps(_mm512_mul_ps(_mm512_sub_ps(x, low), inverse), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_min_ps(_mm512_max_ps(q, _mm512_setzero_ps()), _mm512_set1_ps(top));
}

/* The factor and offset (both representable in half precision) whose levels 0 ... top are nearest to the values, in the sum of
 * squares: some spacings are tried, each refitted by least squares to the levels that it gives. */
static void fit_levels(const __m512 columns[GROUP], float top, __m512 *factor, __m512 *offset) {
    __m512 low = columns[0], high = columns[0], sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps(), best;
    for (int k = 0; k < GROUP; k++) {
        low = _mm512_min_ps(low, columns[k]);
        high = _mm512_max_ps(high, columns[k]);
        sum = _mm512_add_ps(sum, columns[k]);
        squares = _mm512_fmadd_ps(columns[k], columns[k], squares);
    }
    __m512 count = _mm512_set1_ps(GROUP), two = _mm512_set1_ps(2.0f), span = inverse_or_zero(_mm512_sub_ps(high, low));
    best = _mm512_set1_ps(INFINITY);
    *factor = _mm512_setzero_ps();
    *offset = as_half(low);
    for (int candidate = 0; candidate < CANDIDATES; candidate++) {
        __m512 inverse = _mm512_mul_ps(span, _mm512_set1_ps(candidate ? top * (0.9f + (float)candidate / 60.0f) : top));
        __m512 q1 = _mm512_setzero_ps(), q2 = q1, qx = q1;
        for (int k = 0; k < GROUP; k++) {
            __m512 q = level(columns[k], low, inverse, top);
            q1 = _mm512_add_ps(q1, q);
            q2 = _mm512_fmadd_ps(q, q, q2);
            qx = _mm512_fmadd_ps(q, columns[k], qx);
        }
        __m512 spread = _mm512_fmsub_ps(count, q2, _mm512_mul_ps(q1, q1));
        __m512 f = as_half(_mm512_mul_ps(_mm512_fmsub_ps(count, qx, _mm512_mul_ps(q1, sum)), inverse_or_zero(spread)));
        __m512 o = as_half(_mm512_div_ps(_mm512_fnmadd_ps(f, q1, sum), count));
        if (!candidate) { /* the ends as they are: exact for values that were such levels before */
            f = as_half(_mm512_mul_ps(_mm512_sub_ps(high, low), _mm512_set1_ps(1.0f / top)));
            o = as_half(low);
        }
        __m512 error = _mm512_fmadd_ps(_mm512_mul_ps(f, f), q2, squares); /* sum of (x - f q - o)^2, multiplied out */
        error = _mm512_fmadd_ps(_mm512_mul_ps(o, o), count, error);
        error = _mm512_fnmadd_ps(_mm512_mul_ps(two, f), qx, error);
        error = _mm512_fnmadd_ps(_mm512_mul_ps(two, o), sum, error);
        error = _mm512_fmadd_ps(_mm512_mul_ps(two, _mm512_mul_ps(f, o)), q1, error);
        __mmask16 better = _mm512_cmp_ps_mask(error, best, _CMP_LT_OQ);
        best = _mm512_mask_mov_ps(best, better, error);
        *factor = _mm512_mask_mov_ps(*factor, better, f);
        *offset = _mm512_mask_mov_ps(*offset, better, o);
    }
}

/* value = factor * q + offset, q in 0 ... 15, in int6 0 ... 63. Two outputs share a byte with their lower four bits, and two masks with
 * those above; 16 factors and 16 offsets follow. */
static void pack_levels(const __m512 columns[GROUP], int kind, uint8_t *tile) {
    __m512 factor, offset;
    float top = kind == WEIGHT_INT6 ? 63.0f : 15.0f;
    uint64_t upper[16] = {0};
    fit_levels(columns, top, &factor, &offset);
    __m512 inverse = inverse_or_zero(factor);
    for (int k = 0; k < GROUP; k++) {
        uint8_t values[16];
        _mm_storeu_si128((__m128i *)values, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(level(columns[k], offset, inverse, top))));
        for (int i = 0; i < 8; i++) {
            uint64_t even = values[2 * i], odd = values[2 * i + 1];
            tile[32 * i + k] = (uint8_t)((even & 15) | odd << 4);
            for (int bit = 0; bit < 2; bit++) upper[2 * i + bit] |= (even >> (4 + bit) & 1) << k | (odd >> (4 + bit) & 1) << (32 + k);
        }
    }
    if (kind == WEIGHT_INT6) memcpy(tile + 256, upper, sizeof upper);
    put_halves(tile + factors_at(kind), factor);
    put_halves(tile + factors_at(kind) + 32, offset);
}

/* weight: outputs x inputs, float where wide, else bf16; kind and tiles as in packed.c. */
int owngpt_pack(const void *weight, int wide, int64_t outputs, int64_t inputs, int kind, uint8_t *tiles, int threads) {
    int64_t depth = (inputs + 31) / 32, bytes = tile_bytes(kind), blocks_ = (outputs + 15) / 16;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks_; block++)
        for (int64_t k = 0; k < depth; k++) {
            __m512 columns[GROUP];
            uint8_t *tile = tiles + (block * depth + k) * bytes;
            read_columns(weight, wide, outputs, inputs, 16 * block, 32 * k, columns);
            if (kind == WEIGHT_BF16) pack_bf16(columns, tile);
            else if (kind == WEIGHT_INT8) pack_int8(columns, tile);
            else pack_levels(columns, kind, tile);
        }
    return 0;
}

/* The bytes of one output's group into its tile: of int8 as they are, of int4 beside those of its neighbour. */
static inline void join_row(const uint8_t *quants, int few_bits, int i, uint8_t *tile) {
    __m256i q = _mm256_loadu_si256((const __m256i *)quants);
    if (!few_bits) _mm256_storeu_si256((__m256i *)(tile + 32 * i), q);
    else if (i % 2 == 0) _mm256_storeu_si256((__m256i *)(tile + 16 * i), q);
    else {
        __m256i *pair = (__m256i *)(tile + 16 * (i - 1));
        _mm256_storeu_si256(pair, _mm256_or_si256(_mm256_loadu_si256(pair), _mm256_slli_epi16(q, 4)));
    }
}

/* A weight that is stored in groups already: quants (outputs x inputs bytes, int4 where there are offsets and then at most 15, else
 * int8), factors and offsets (outputs x inputs / 32 in half precision) into tiles, unchanged. Outputs that fill up the last are 0. */
int owngpt_join_groups(const uint8_t *quants, const uint16_t *factors, const uint16_t *offsets, int64_t outputs, int64_t inputs, uint8_t *tiles, int threads) {
    int64_t depth = inputs / 32, few = offsets != NULL, bytes = tile_bytes(few ? WEIGHT_INT4 : WEIGHT_INT8), numbers = few ? 256 : 512;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < (outputs + 15) / 16; block++)
        for (int64_t k = 0; k < depth; k++) {
            uint8_t *tile = tiles + (block * depth + k) * bytes;
            uint16_t *ends = (uint16_t *)(tile + numbers);
            memset(tile, 0, (size_t)bytes);
            for (int i = 0; i < 16 && 16 * block + i < outputs; i++) {
                int64_t group = (16 * block + i) * depth + k;
                join_row(quants + 32 * group, (int)few, i, tile);
                ends[i] = factors[group];
                if (few) ends[16 + i] = offsets[group];
            }
        }
    return 0;
}
#endif
