/* Linear layers over bfloat16 weights where there is no AMX.
 *
 * A register holds 16 outputs side by side, two inputs of each (values.h), and meets the same two inputs of one row after another: their
 * sums stay in registers, nothing is put in order before or after, and weights are read from memory once, strictly forward. A row's sum is
 * of the same products in the same order whatever the number of rows, so that it is the same bits alone, in a batch and in a prompt. */
#include "linear.h"

#if defined(MATRIX_UNIT) && !defined(__AMX_BF16__)

enum { ROWS = 16 /* whose sums stay in registers */, PAIR_ROWS = 12 /* beside each of two blocks */ };

/* Rows of x: whole groups of 32, `stride` values from row to row. */
typedef struct {
    const bf16 *x;
    int64_t stride;
} Whole;

static Whole whole_rows(const Linear *l, bf16 *room) {
    if (l->inputs % 32 == 0) return (Whole){l->x, l->x_stride};
    for (int64_t m = 0; m < l->rows; m++)
        for (int64_t k = 0; k < l->depth; k++) _mm512_storeu_si512(room + 32 * (m * l->depth + k), (__m512i)row_of(l, m, k));
    return (Whole){room, 32 * l->depth};
}

/* Two inputs of a row, for all outputs. */
static inline __m512bh spread(const bf16 *x) {
    int32_t two;
    memcpy(&two, x, sizeof two);
    return (__m512bh)_mm512_set1_epi32(two);
}

/* A block times `count` rows from `row` on. */
static inline __attribute__((always_inline)) void plain_block(const Whole *x, int64_t row, const int count, Block *block, int64_t depth, const int64_t kind, __m512 *out) {
    __m512 sums[ROWS];
    UNROLL
    for (int m = 0; m < count; m++) sums[m] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++) {
        const uint8_t *tile = block->tiles + k * tile_bytes(kind);
        const bf16 *values = x->x + row * x->stride + 32 * k;
        bf16 whole[TILE] __attribute__((aligned(64)));
        int exceptional = kind == WEIGHT_COMPACT && block->next != block->end && block->next->at < (k + 1) * TILE;
        ask_ahead(tile, tile_bytes(kind));
        if (exceptional) {
            widen_compact(tile, block->table, whole);
            put_exceptions(block, k, k + 1, whole);
        }
        for (int two = 0; two < 8; two++, values += 4) {
            __m512i w[2];
            if (kind == WEIGHT_COMPACT && !exceptional) compact_pair(tile, two, block->table, &w[0], &w[1]);
            else {
                const bf16 *from = exceptional ? whole : (const bf16 *)tile;
                w[0] = _mm512_loadu_si512(from + 64 * two), w[1] = _mm512_loadu_si512(from + 64 * two + 32);
            }
            UNROLL
            for (int i = 0; i < 2; i++)
                UNROLL
                for (int m = 0; m < count; m++) sums[m] = _mm512_dpbf16_ps(sums[m], (__m512bh)w[i], spread(values + m * x->stride + 2 * i));
        }
    }
    UNROLL
    for (int m = 0; m < count; m++) out[m] = sums[m];
}

/* Two blocks as plain tiles, and what memory is asked for while their products are made: as many bytes a pair of inputs of each. */
typedef struct {
    const bf16 *first, *second;
    const char *coming, *others_coming;
    int64_t bytes;
} Tiles;

/* Two blocks times `count` rows: what is spread of a row meets both. */
static inline __attribute__((always_inline)) void plain_blocks(const Whole *x, int64_t row, const int count, Tiles w, int64_t depth, __m512 out[2][ROWS]) {
    __m512 sums[2][PAIR_ROWS];
    UNROLL
    for (int m = 0; m < count; m++) sums[0][m] = sums[1][m] = _mm512_setzero_ps();
    const bf16 *values = x->x + row * x->stride;
    for (int64_t pair = 0; pair < 16 * depth; pair++, values += 2, w.coming += w.bytes, w.others_coming += w.bytes) {
        __m512bh one = (__m512bh)_mm512_loadu_si512(w.first + 32 * pair), other = (__m512bh)_mm512_loadu_si512(w.second + 32 * pair);
        _mm_prefetch(w.coming, _MM_HINT_T1), _mm_prefetch(w.others_coming, _MM_HINT_T1);
        UNROLL
        for (int m = 0; m < count; m++) {
            __m512bh two = spread(values + m * x->stride);
            sums[0][m] = _mm512_dpbf16_ps(sums[0][m], one, two);
            sums[1][m] = _mm512_dpbf16_ps(sums[1][m], other, two);
        }
    }
    UNROLL
    for (int m = 0; m < count; m++) out[0][m] = sums[0][m], out[1][m] = sums[1][m];
}

static inline __attribute__((always_inline)) void any_block(const Whole *x, int64_t row, const int count, Block block, int64_t depth, __m512 *out) {
    if (block.kind == WEIGHT_BF16) plain_block(x, row, count, &block, depth, WEIGHT_BF16, out);
    else plain_block(x, row, count, &block, depth, WEIGHT_COMPACT, out);
}

/* A block times up to ROWS rows, in pieces of few sizes. */
static void few_rows(const Whole *x, int64_t rows, Block block, int64_t depth, __m512 *out) {
    for (int64_t row = 0, count; row < rows; row += count) {
        int64_t left = rows - row;
        if (left >= 16) count = 16, any_block(x, row, 16, block, depth, out + row);
        else if (left >= 12) count = 12, any_block(x, row, 12, block, depth, out + row);
        else if (left >= 8) count = 8, any_block(x, row, 8, block, depth, out + row);
        else if (left >= 4) count = 4, any_block(x, row, 4, block, depth, out + row);
        else if (left == 3) count = 3, any_block(x, row, 3, block, depth, out + row);
        else if (left == 2) count = 2, any_block(x, row, 2, block, depth, out + row);
        else count = 1, any_block(x, row, 1, block, depth, out + row);
    }
}

/* Two blocks times the next rows from `row` on; returns how many. */
static int64_t next_rows(const Whole *x, int64_t row, int64_t left, Tiles w, int64_t depth, __m512 out[2][ROWS]) {
    if (left >= PAIR_ROWS) return plain_blocks(x, row, PAIR_ROWS, w, depth, out), PAIR_ROWS;
    if (left >= 8) return plain_blocks(x, row, 8, w, depth, out), 8;
    if (left >= 4) return plain_blocks(x, row, 4, w, depth, out), 4;
    if (left >= 2) return plain_blocks(x, row, 2, w, depth, out), 2;
    return plain_blocks(x, row, 1, w, depth, out), 1;
}

/* Where the sums of two blocks go: to the outputs of both, or, where they are a gate and what passes it, as 16 values to rows of `gated`. */
typedef struct {
    int64_t first, second, step; /* blocks; the second may be none, -1; how many the next two are further on */
    bf16 *gated;
    int tanh_form;
} Sink;

static inline void put_row(const Linear *l, const Sink *sink, int64_t row, __m512 first, __m512 second) {
    if (sink->gated) {
        __m512 gate = finish(l, 16 * sink->first, first, 0xffff), up = finish(l, 16 * sink->second, second, 0xffff);
        __m512 value = _mm512_mul_ps(activated(gate, sink->tanh_form), up);
        _mm256_storeu_si256((__m256i *)(sink->gated + row * (l->outputs / 2) + 16 * sink->first), (__m256i)_mm512_cvtneps_pbh(value));
        return;
    }
    put(l, row, 16 * sink->first, first, outputs_here(l, 16 * sink->first));
    if (sink->second >= 0) put(l, row, 16 * sink->second, second, outputs_here(l, 16 * sink->second));
}

/* Tiles of a block as they are in bfloat16, or made so in `room`. */
static const bf16 *plain_tiles(Block *block, int64_t depth, bf16 *room) {
    if (block->kind == WEIGHT_BF16) return (const bf16 *)block->tiles;
    unpack_tiles(block, 0, depth, room);
    return room;
}

/* Two blocks times all rows. */
static void blocks_of(const Linear *l, const Whole *x, const Sink *sink, bf16 *room) {
    __m512 sums[2][ROWS] = {0};
    Block first = block_of(l->weight, l->kind, l->outputs, l->depth, sink->first), second = first;
    if (sink->second >= 0) second = block_of(l->weight, l->kind, l->outputs, l->depth, sink->second);
    if (l->rows <= ROWS) {
        few_rows(x, l->rows, first, l->depth, sums[0]);
        if (sink->second >= 0) few_rows(x, l->rows, second, l->depth, sums[1]);
        for (int64_t m = 0; m < l->rows; m++) put_row(l, sink, m, sums[0][m], sums[1][m]);
        return;
    }
    int64_t bytes = tile_bytes(l->kind), ahead = sink->step * l->depth * bytes;
    Tiles w = {.coming = (const char *)first.tiles + ahead, .others_coming = (const char *)second.tiles + ahead, .bytes = bytes / 16};
    w.first = plain_tiles(&first, l->depth, room), w.second = plain_tiles(&second, l->depth, room + l->depth * TILE);
    for (int64_t row = 0, count; row < l->rows; row += count, w.bytes = 0) {
        count = next_rows(x, row, l->rows - row, w, l->depth, sums);
        for (int64_t m = 0; m < count; m++) put_row(l, sink, row + m, sums[0][m], sums[1][m]);
    }
}

/* A thread's own room: two blocks as bfloat16, and rows of x filled up to whole groups. */
static bf16 *own_room(const Linear *l, bf16 *all, int me) {
    return all + me * (2 * l->depth * TILE + (l->inputs % 32 ? l->rows * l->depth * 32 : 0));
}

/* slots: weight, kind, outputs, inputs, bias, x, its stride, NULL, rows, out, out's stride, wide, scratch: own_room for each thread. */
void owngpt_step_linear(const int64_t *slots, Worker *worker) {
    Linear l = {.weight = POINTER(const uint8_t, 0), .bias = POINTER(const float, 4), .kind = slots[1], .outputs = slots[2], .inputs = slots[3],
                .rows = slots[8], .depth = (slots[3] + 31) / 32, .out_stride = slots[10], .x_stride = slots[6], .x = POINTER(const bf16, 5),
                .out = POINTER(void, 9), .wide = (int)slots[11]};
    int64_t blocks = (l.outputs + 15) / 16, first, last;
    bf16 *room = own_room(&l, POINTER(bf16, 12), worker->me);
    Whole x = whole_rows(&l, room + 2 * l.depth * TILE);
    while (next_share(worker, (blocks + 1) / 2, &first, &last))
        for (int64_t at = first; at < last; at++) {
            Sink sink = {.first = 2 * at, .second = 2 * at + 1 < blocks ? 2 * at + 1 : -1, .step = 2};
            blocks_of(&l, &x, &sink, room);
        }
}

/* A gated layer's first half: gate and up products and the activation.
 * slots: weight (gate's outputs, then up's; as many, a multiple of 32), kind, outputs, inputs, bias, x, its stride, NULL, rows, out (rows of
 * half the outputs), whether GELU instead of SiLU, scratch as in linear. */
void owngpt_step_gated_linear(const int64_t *slots, Worker *worker) {
    Linear l = {.weight = POINTER(const uint8_t, 0), .bias = POINTER(const float, 4), .kind = slots[1], .outputs = slots[2], .inputs = slots[3],
                .rows = slots[8], .depth = (slots[3] + 31) / 32, .x_stride = slots[6], .x = POINTER(const bf16, 5)};
    int64_t half = l.outputs / 32, first, last;
    bf16 *room = own_room(&l, POINTER(bf16, 11), worker->me);
    Whole x = whole_rows(&l, room + 2 * l.depth * TILE);
    while (next_share(worker, half, &first, &last))
        for (int64_t at = first; at < last; at++) {
            Sink sink = {at, half + at, 1, POINTER(bf16, 9), (int)slots[10]};
            blocks_of(&l, &x, &sink, room);
        }
}
#endif
