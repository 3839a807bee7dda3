/* Products of quantized weights with rows of eight bits.
 *
 * Where numbers of eight bits multiply (AVX512-VNNI), four to a lane, a tile costs half of what it does in bfloat16 and needs not be
 * made that first. Rows are rounded as llama.cpp's are, in groups of 32 with a factor each. What rounding left of a group that reaches
 * much farther than others of its row is multiplied, too: one in thirty groups, which make a good part of the error (LLM.int8(), arXiv
 * 2208.07339, keeps outliers apart in half precision). A row's result does not depend on how many others there are. */
#include "linear.h"

#ifdef MATRIX_UNIT

enum { SMALL_BYTES = 80 /* of a group, as in packed.py */ };
enum { CHUNK = 64 /* rows whose sums are kept while a block of the weight passes by */, ONE_BLOCK_ROWS = 8 /* with more, two side by side */ };
#define OUTLYING 2.5f /* times the mean reach of its row's groups: from there on a group's rests count */
#define REST_LEVELS 254.0f /* in one level */

/* What a product of numbers lacks, for value * weight = factors * (number + middle) * (weight's number - zero): it is multiplied by
 * the zero and by the sum over the group of what the other side of the minus is. */
typedef struct {
    int16_t minus_sum, middle; /* of the row's numbers */
} Pair16;

/* Groups of 32 of all rows, depth x rows: value = factor * (number + middle + rest / REST_LEVELS), numbers and rests in -127 ... 127. */
typedef struct {
    int8_t *numbers, *rests;
    float *factors, *sums; /* sums are of the values without their rests; q4_1 multiplies its offsets by them */
    Pair16 *pairs, *rest_pairs;
    uint64_t *outlying; /* a bit for each row whose rests count: a thread's own, CHUNK rows of group after group */
} Small;

static Small small_in(uint8_t *room, int64_t groups) {
    return (Small){.numbers = (int8_t *)room, .rests = (int8_t *)(room + 32 * groups), .factors = (float *)(room + 64 * groups),
                   .sums = (float *)(room + 68 * groups), .pairs = (Pair16 *)(room + 72 * groups), .rest_pairs = (Pair16 *)(room + 76 * groups)};
}

enum { TOGETHER = 16 /* groups that are rounded side by side */ };

static inline void put_bytes(int8_t *at, __m512i first, __m512i second) {
    _mm_storeu_si128((__m128i *)at, _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128((__m128i *)(at + 16), _mm512_cvtepi32_epi8(second));
}

/* What 16 groups lack, of the sums of their numbers and of their middles. */
static inline __m512i pairs_of(__m512 sums, __m512 middles) {
    __m512i minus = _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_setzero_ps(), sums));
    return _mm512_mask_blend_epi16(0xaaaaaaaa, minus, _mm512_slli_epi32(_mm512_cvtps_epi32(middles), 16));
}

/* Up to 16 groups, from group `at` on. Where a value is infinite or not a number the factor is not one. */
static void put_groups(const Small *x, int64_t at, int64_t count, __m512 values[TOGETHER][2]) {
    const __m512 levels = _mm512_set1_ps(126.0f) /* on each side of the middle, and one for rounding */, none = _mm512_setzero_ps(), half = _mm512_set1_ps(0.5f);
    __m512 high[TOGETHER], low[TOGETHER];
    float inverses[TOGETHER] __attribute__((aligned(64))), middles[TOGETHER] __attribute__((aligned(64)));
    for (int m = 0; m < TOGETHER; m++) {
        high[m] = m < count ? _mm512_max_ps(values[m][0], values[m][1]) : none;
        low[m] = m < count ? _mm512_min_ps(values[m][0], values[m][1]) : none;
    }
    __m512 greatest = _mm512_max_ps(most16(high), none), least = _mm512_min_ps(least16(low), none);
    __m512 reach = _mm512_sub_ps(_mm512_mul_ps(greatest, half), _mm512_mul_ps(least, half)); /* twice as much might be infinite */
    __m512 inverse = _mm512_maskz_div_ps(_mm512_cmp_ps_mask(reach, _mm512_set1_ps(1e-30f), _CMP_GT_OQ), levels, reach);
    __m512 middle = rounded16(_mm512_mul_ps(_mm512_mul_ps(_mm512_add_ps(least, greatest), half), inverse));
    _mm512_store_ps(inverses, inverse);
    _mm512_store_ps(middles, middle);
    for (int m = 0; m < count; m++) {
        __m512 first = _mm512_fmsub_ps(values[m][0], _mm512_set1_ps(inverses[m]), _mm512_set1_ps(middles[m])), one = rounded16(first);
        __m512 second = _mm512_fmsub_ps(values[m][1], _mm512_set1_ps(inverses[m]), _mm512_set1_ps(middles[m])), other = rounded16(second);
        put_bytes(x->numbers + 32 * (at + m), _mm512_cvtps_epi32(one), _mm512_cvtps_epi32(other));
        high[m] = _mm512_add_ps(one, other);
        __m512i rest = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(first, one), _mm512_set1_ps(REST_LEVELS)));
        __m512i other_rest = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(second, other), _mm512_set1_ps(REST_LEVELS)));
        put_bytes(x->rests + 32 * (at + m), rest, other_rest);
        low[m] = _mm512_cvtepi32_ps(_mm512_add_epi32(rest, other_rest));
    }
    __m512 sum = sums16(high);
    __mmask16 here = (__mmask16)((1u << count) - 1), fine = _mm512_cmp_ps_mask(sum, sum, _CMP_ORD_Q);
    __m512 factors = _mm512_mask_mul_ps(_mm512_set1_ps(NAN), fine, reach, _mm512_set1_ps(1.0f / 126.0f));
    _mm512_mask_storeu_ps(x->factors + at, here, factors);
    _mm512_mask_storeu_ps(x->sums + at, here, _mm512_mul_ps(factors, _mm512_fmadd_ps(middle, _mm512_set1_ps(32.0f), sum)));
    _mm512_mask_storeu_epi32(x->pairs + at, here, pairs_of(sum, _mm512_maskz_mov_ps(fine, middle)));
    _mm512_mask_storeu_epi32(x->rest_pairs + at, here, pairs_of(sums16(low), none));
}

static inline int64_t chunks_of(int64_t rows) { return (rows + CHUNK - 1) / CHUNK; }
static inline int64_t parts_of(int64_t groups) { return (groups + TOGETHER - 1) / TOGETHER; }

/* Parts [first, last) of the groups, 16 each. */
static void make_small(const Linear *l, const Small *x, int64_t first, int64_t last) {
    for (int64_t at = first * TOGETHER; at < last * TOGETHER; at += TOGETHER) {
        __m512 values[TOGETHER][2];
        int64_t left = l->depth * l->rows - at, count = left < TOGETHER ? left : TOGETHER, k = at / l->rows, row = at % l->rows;
        for (int64_t m = 0; m < count; m++, row++) {
            if (row == l->rows) row = 0, k++;
            __m512i both = (__m512i)row_of(l, row, k);
            __m512i even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)), odd = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
            values[m][0] = _mm512_castsi512_ps(_mm512_slli_epi32(even, 16)), values[m][1] = _mm512_castsi512_ps(_mm512_slli_epi32(odd, 16));
        }
        put_groups(x, at, count, values);
    }
}

/* Which groups reach so far that their rests count. */
static void find_outlying(const Linear *l, const Small *x) {
    memset(x->outlying, 0, sizeof(uint64_t) * chunks_of(l->rows) * l->depth);
    for (int64_t row = 0; row < l->rows; row += 16) {
        __mmask16 here = l->rows - row >= 16 ? 0xffff : (__mmask16)((1u << (l->rows - row)) - 1);
        __m512 total = _mm512_setzero_ps(), share = _mm512_set1_ps((float)l->depth / OUTLYING);
        for (int64_t k = 0; k < l->depth; k++) total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(here, x->factors + k * l->rows + row));
        for (int64_t k = 0; k < l->depth; k++) {
            __m512 times = _mm512_mul_ps(_mm512_maskz_loadu_ps(here, x->factors + k * l->rows + row), share);
            x->outlying[row / CHUNK * l->depth + k] |= (uint64_t)_mm512_cmp_ps_mask(times, total, _CMP_GT_OQ) << row % CHUNK;
        }
    }
}

/* slots: x, small rows (SMALL_BYTES a row and group), rows, inputs, x's stride. */
void owngpt_step_small_rows(const int64_t *slots, Worker *worker) {
    Linear l = {.inputs = slots[3], .rows = slots[2], .depth = (slots[3] + 31) / 32, .x_stride = slots[4], .x = POINTER(const bf16, 0)};
    int64_t first, last;
    Small x = small_in(POINTER(uint8_t, 1), l.depth * l.rows);
    row_share(parts_of(l.depth * l.rows), worker->me, worker->threads, &first, &last);
    make_small(&l, &x, first, last);
}

/* A quantized tile as it multiplies small rows. */
typedef struct {
    __m512i numbers[8], pairs; /* zero, and the sum of (number - zero): the other side of Pair16 */
    __m512 factors, offsets; /* offsets in q4_1, which has no zeros */
} Tile;

static inline __attribute__((always_inline)) Tile tile_at(const uint8_t *at, const int64_t kind, __m512 scales) {
    Levels levels = levels_of(at, kind, scales);
    Tile tile = {.factors = levels.factors, .offsets = levels.offsets};
    __m512i sums = _mm512_setzero_si512(), zeros = kind == WEIGHT_Q4_1 ? sums : levels.zeros;
    numbers_of(at, kind, tile.numbers);
    UNROLL
    for (int j = 0; j < 8; j++) sums = _mm512_dpbusd_epi32(sums, tile.numbers[j], _mm512_set1_epi8(1));
    sums = _mm512_sub_epi32(sums, _mm512_slli_epi32(zeros, 5));
    tile.pairs = _mm512_or_si512(zeros, _mm512_slli_epi32(sums, 16));
    return tile;
}

/* A tile times `count` rows from group `at` on: the sums are of whole numbers until the factors come in. Each waits for its last
 * product, so that several rows are worked on side by side. */
static inline __attribute__((always_inline)) void add_tile(const Small *x, int64_t at, const int count, const Tile *tile, const int64_t kind, __m512 *sums) {
    const int32_t *fours = (const int32_t *)(x->numbers + 32 * at), *pairs = (const int32_t *)(x->pairs + at);
    __m512i whole[4];
    UNROLL
    for (int m = 0; m < count; m++) whole[m] = _mm512_madd_epi16(tile->pairs, _mm512_set1_epi32(pairs[m]));
    UNROLL
    for (int j = 0; j < 8; j++)
        UNROLL
        for (int m = 0; m < count; m++) whole[m] = _mm512_dpbusd_epi32(whole[m], tile->numbers[j], _mm512_set1_epi32(fours[8 * m + j]));
    UNROLL
    for (int m = 0; m < count; m++) {
        sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[m]), _mm512_mul_ps(tile->factors, _mm512_set1_ps(x->factors[at + m])), sums[m]);
        if (kind == WEIGHT_Q4_1) sums[m] = _mm512_fmadd_ps(tile->offsets, _mm512_set1_ps(x->sums[at + m]), sums[m]);
    }
}

/* A tile times the rests of one group. */
static inline __attribute__((always_inline)) void add_rest(const Small *x, int64_t at, const Tile *tile, const int64_t kind, __m512 *sum) {
    const int32_t *fours = (const int32_t *)(x->rests + 32 * at), *pairs = (const int32_t *)(x->rest_pairs + at);
    const float factor = x->factors[at] * (1.0f / REST_LEVELS);
    __m512i whole = _mm512_madd_epi16(tile->pairs, _mm512_set1_epi32(*pairs));
    UNROLL
    for (int j = 0; j < 8; j++) whole = _mm512_dpbusd_epi32(whole, tile->numbers[j], _mm512_set1_epi32(fours[j]));
    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_mul_ps(tile->factors, _mm512_set1_ps(factor)), *sum);
    if (kind == WEIGHT_Q4_1) *sum = _mm512_fnmadd_ps(tile->offsets, _mm512_set1_ps(factor * (float)x->rest_pairs[at].minus_sum), *sum);
}

/* A block of a weight times rows [from, from + count). */
static inline __attribute__((always_inline)) void block_times(const Linear *l, const Small *x, int64_t index, int64_t from, int64_t count, const int64_t kind, __m512 *sums) {
    Block block = block_of(l->weight, kind, l->outputs, l->depth, index);
    const int64_t bytes = tile_bytes(kind);
    const uint64_t *outlying = x->outlying + from / CHUNK * l->depth;
    for (int64_t m = 0; m < count; m++) sums[m] = _mm512_setzero_ps();
    for (int64_t k = 0; k < l->depth; k++) {
        int64_t at = k * l->rows + from, m = 0;
        if (!from) ask_ahead(block.tiles + k * bytes, bytes);
        Tile tile = tile_at(block.tiles + k * bytes, kind, block.scales);
        for (; m + 4 <= count; m += 4) add_tile(x, at + m, 4, &tile, kind, sums + m);
        if (count & 2) add_tile(x, at + m, 2, &tile, kind, sums + m);
        if (count & 1) add_tile(x, at + count - 1, 1, &tile, kind, sums + count - 1);
        for (uint64_t rows = outlying[k]; rows; rows &= rows - 1) {
            int64_t row = count == 1 ? 0 : __builtin_ctzll(rows);
            add_rest(x, at + row, &tile, kind, sums + row);
        }
    }
}

static inline __attribute__((always_inline)) void block_of_kind(const Linear *l, const Small *x, int64_t index, int64_t from, int64_t count, const int64_t kind, __m512 *sums) {
    if (count == 1) block_times(l, x, index, from, 1, kind, sums); /* whose sum stays in a register */
    else block_times(l, x, index, from, count, kind, sums);
}

static void multiply_block(const Linear *l, const Small *x, int64_t index, int64_t from, int64_t count, __m512 *sums) {
    switch (l->kind) {
        case WEIGHT_INT8: block_of_kind(l, x, index, from, count, WEIGHT_INT8, sums); break;
        case WEIGHT_INT6: block_of_kind(l, x, index, from, count, WEIGHT_INT6, sums); break;
        case WEIGHT_Q4_1: block_of_kind(l, x, index, from, count, WEIGHT_Q4_1, sums); break;
        default: block_of_kind(l, x, index, from, count, WEIGHT_INT4, sums);
    }
}

/* One block's outputs, or two blocks' (which are a whole cache line of bf16) where there are enough rows. */
static void put_blocks(const Linear *l, const Small *x, int64_t first, int64_t last) {
    __m512 sums[2][CHUNK];
    for (int64_t from = 0; from < l->rows; from += CHUNK) {
        int64_t count = l->rows - from < CHUNK ? l->rows - from : CHUNK;
        for (int64_t index = first; index < last; index++) multiply_block(l, x, index, from, count, sums[index - first]);
        for (int64_t m = 0; m < count; m++)
            for (int64_t index = first; index < last; index++) put(l, from + m, 16 * index, sums[index - first][m], outputs_here(l, 16 * index));
    }
}

/* Bytes of a thread's own room. */
static inline int64_t room_bytes(const Linear *l, const uint8_t *made) {
    return l->depth * (chunks_of(l->rows) * (int64_t)sizeof(uint64_t) + (made ? 0 : l->rows * SMALL_BYTES));
}

/* Small rows as they were made before, or made here, by each thread for itself, where there are so few that waiting would take longer. */
static Small rows_of(const Linear *l, uint8_t *made, uint8_t *rooms, const Worker *worker) {
    int64_t groups = l->depth * l->rows;
    uint8_t *room = rooms + worker->me * room_bytes(l, made);
    Small x = small_in(made ? made : room + chunks_of(l->rows) * l->depth * sizeof(uint64_t), groups);
    x.outlying = (uint64_t *)room;
    if (!made) make_small(l, &x, 0, parts_of(groups));
    find_outlying(l, &x);
    return x;
}

/* slots: weight, kind, outputs, inputs, bias, x, its stride, small rows or NULL, rows, out, out's stride, wide, scratch of room_bytes
 * for each thread. */
void owngpt_step_small_linear(const int64_t *slots, Worker *worker) {
    Linear l = {.weight = POINTER(const uint8_t, 0), .bias = POINTER(const float, 4), .kind = slots[1], .outputs = slots[2], .inputs = slots[3],
                .rows = slots[8], .depth = (slots[3] + 31) / 32, .out_stride = slots[10], .x_stride = slots[6], .x = POINTER(const bf16, 5),
                .out = POINTER(void, 9), .wide = (int)slots[11]};
    Small x = rows_of(&l, POINTER(uint8_t, 7), POINTER(uint8_t, 12), worker);
    int64_t blocks = (l.outputs + 15) / 16, together = l.rows > ONE_BLOCK_ROWS ? 2 : 1, first, last;
    while (next_share(worker, (blocks + together - 1) / together, &first, &last))
        for (int64_t at = first * together; at < last * together && at < blocks; at += together)
            put_blocks(&l, &x, at, at + together < blocks ? at + together : blocks);
}

/* 32 values of the gated layer's inside for all rows: a group of what its second half takes. */
static void put_gated_group(const Linear *l, const Small *x, int64_t group, int tanh_form, const Small *out) {
    __m512 sums[4][CHUNK];
    int64_t width = l->outputs / 2, first[4] = {2 * group, 2 * group + 1, width / 16 + 2 * group, width / 16 + 2 * group + 1};
    for (int64_t from = 0; from < l->rows; from += CHUNK) {
        int64_t count = l->rows - from < CHUNK ? l->rows - from : CHUNK;
        for (int part = 0; part < 4; part++) multiply_block(l, x, first[part], from, count, sums[part]);
        for (int64_t at = 0; at < count; at += TOGETHER) {
            __m512 values[TOGETHER][2];
            int64_t rows = count - at < TOGETHER ? count - at : TOGETHER;
            for (int part = 0; part < 2; part++)
                for (int64_t m = 0; m < rows; m++) {
                    __m512 gate = finish(l, 16 * first[part], sums[part][at + m], 0xffff), up = finish(l, 16 * first[part + 2], sums[part + 2][at + m], 0xffff);
                    values[m][part] = _mm512_mul_ps(activated(gate, tanh_form), up);
                }
            put_groups(out, group * l->rows + from + at, rows, values);
        }
    }
}

/* A gated layer's first half: gate and up products and the activation, straight into the small rows of the second half.
 * slots: weight (gate's outputs, then up's; as many, a multiple of 32), kind, outputs, inputs, bias, x, its stride, small rows or NULL,
 * rows, small rows of what comes out, whether GELU instead of SiLU, scratch as in small_linear. */
void owngpt_step_small_gated(const int64_t *slots, Worker *worker) {
    Linear l = {.weight = POINTER(const uint8_t, 0), .bias = POINTER(const float, 4), .kind = slots[1], .outputs = slots[2], .inputs = slots[3],
                .rows = slots[8], .depth = (slots[3] + 31) / 32, .x_stride = slots[6], .x = POINTER(const bf16, 5)};
    Small x = rows_of(&l, POINTER(uint8_t, 7), POINTER(uint8_t, 11), worker), out = small_in(POINTER(uint8_t, 9), l.outputs / 64 * l.rows);
    int64_t first, last;
    while (next_share(worker, l.outputs / 64, &first, &last))
        for (int64_t group = first; group < last; group++) put_gated_group(&l, &x, group, (int)slots[10], &out);
}
#endif
