/* Linear layers over packed weights, for inference: y = x W^T + b.
 *
 * A weight (outputs x inputs) lies as tiles of 16 outputs x 32 inputs, all tiles of 16 outputs (a block) side by side: one row
 * reads memory strictly forward, and a tile is just what an AMX register takes. The product is computed transposed (outputs down,
 * tokens across), so weights need no further packing and the few tokens of a decoding step are the narrow side. */
#include "linear.h"

#ifdef MATRIX_UNIT

/* x: rows x inputs, row-major -> B tiles [ceil(rows/16)][input tiles][16 pairs][16 rows][2]; absent rows and inputs are zero. */
void owngpt_step_pack_rows(const int64_t *slots, Worker *worker) {
    int me = worker->me, threads = worker->threads;
    const bf16 *x = POINTER(const bf16, 0);
    bf16 *tiles = POINTER(bf16, 1);
    int64_t rows = slots[2], inputs = slots[3], stride = slots[4], depth = (inputs + 31) / 32, groups = (rows + 15) / 16;
    int64_t first, last;
    row_share(groups * depth, me, threads, &first, &last);
    for (int64_t at = first; at < last; at++) {
        int64_t group = at / depth, k = at % depth * 32;
        int present = (int)(rows - group * 16 < 16 ? rows - group * 16 : 16);
        __mmask32 inside = inputs - k >= 32 ? 0xffffffffu : (1u << (inputs - k)) - 1;
        __m512i r[16];
        UNROLL
        for (int i = 0; i < 16; i++)
            r[i] = i < present ? _mm512_maskz_loadu_epi16(inside, x + (group * 16 + i) * stride + k) : _mm512_setzero_si512();
        transpose16(r);
        UNROLL
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(tiles + at * TILE + i * 32, r[i]);
    }
}

enum { FEW_ROWS = 12 /* FEW_PLAIN in packed.py */ };

/* Rows of x beside bfloat16 weights: whole groups of 32, `stride` values from row to row. */
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

/* `count` tiles' products with each row, added to 16 lanes an output: each weight is loaded once for all rows. Meanwhile memory is asked
 * for `lines` of what is `coming`, an output. */
static inline __attribute__((always_inline)) void add_products(const Whole *x, int64_t k, int64_t rows, const bf16 *tiles, const int count,
                                                               const uint8_t *coming, int lines, __m512 sums[][16]) {
    for (int i = 0; i < 16; i++) {
        for (int line = 0; line < lines; line++, coming += 64) _mm_prefetch((const char *)coming, _MM_HINT_T1);
        __m512bh w[4];
        UNROLL
        for (int j = 0; j < count; j++) w[j] = (__m512bh)_mm512_loadu_si512(tiles + TILE * j + 32 * i);
        for (int64_t m = 0; m < rows; m++) {
            __m512 sum = sums[m][i];
            UNROLL
            for (int j = 0; j < count; j++) sum = _mm512_dpbf16_ps(sum, w[j], (__m512bh)_mm512_loadu_si512(x->x + m * x->stride + 32 * (k + j)));
            sums[m][i] = sum;
        }
    }
}

static void few_products(const Linear *l, const Whole *x, Block *block, int64_t index) {
    __m512 sums[FEW_ROWS][16];
    int64_t bytes = tile_bytes(l->kind);
    int plain = l->kind == WEIGHT_BF16;
    memset(sums, 0, (size_t)l->rows * sizeof *sums);
    for (int64_t k = 0; k < l->depth; k += 4) {
        bf16 widened[4 * TILE] __attribute__((aligned(64)));
        int count = l->depth - k < 4 ? (int)(l->depth - k) : 4;
        const bf16 *tiles = plain ? (const bf16 *)block->tiles + k * TILE : widened;
        const uint8_t *coming = block->tiles + k * bytes + ASKED;
        if (!plain) unpack_tiles(block, k, k + count, widened);
        if (count == 4) add_products(x, k, l->rows, tiles, 4, coming, plain ? 4 : 3, sums);
        else
            for (int j = 0; j < count; j++) add_products(x, k + j, l->rows, tiles + TILE * j, 1, coming + j * bytes, 1, sums);
    }
    for (int64_t m = 0; m < l->rows; m++) put(l, m, 16 * index, sums16(sums[m]), outputs_here(l, 16 * index));
}

/* The same for one row, whose sums stay in registers. */
static inline __attribute__((always_inline)) void one_product_of(const Linear *l, const Whole *x, Block *block, int64_t index, const int64_t kind) {
    __m512 sums[16];
    UNROLL
    for (int i = 0; i < 16; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < l->depth; k++) {
        const uint8_t *tile = block->tiles + k * tile_bytes(kind);
        bf16 whole[TILE] __attribute__((aligned(64)));
        __m512bh values = (__m512bh)_mm512_loadu_si512(x->x + 32 * k);
        ask_ahead(tile, tile_bytes(kind));
        if (kind == WEIGHT_COMPACT && block->next != block->end && block->next->at < (k + 1) * TILE) {
            widen_compact(tile, block->table, whole);
            put_exceptions(block, k, k + 1, whole);
            UNROLL
            for (int i = 0; i < 16; i++) sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_load_si512(whole + 32 * i), values);
            continue;
        }
        UNROLL
        for (int pair = 0; pair < 8; pair++) {
            __m512i even, odd;
            if (kind == WEIGHT_COMPACT) compact_pair(tile, pair, block->table, &even, &odd);
            else even = _mm512_loadu_si512(tile + 128 * pair), odd = _mm512_loadu_si512(tile + 128 * pair + 64);
            sums[2 * pair] = _mm512_dpbf16_ps(sums[2 * pair], (__m512bh)even, values);
            sums[2 * pair + 1] = _mm512_dpbf16_ps(sums[2 * pair + 1], (__m512bh)odd, values);
        }
    }
    put(l, 0, 16 * index, sums16(sums), outputs_here(l, 16 * index));
}

/* Blocks [first, last) of a bfloat16 weight for up to FEW_ROWS rows. */
static void plain_products(const Linear *l, const Whole *x, int64_t first, int64_t last) {
    for (int64_t index = first; index < last; index++) {
        Block block = block_of(l->weight, l->kind, l->outputs, l->depth, index);
        if (l->rows > 1) few_products(l, x, &block, index);
        else if (l->kind == WEIGHT_BF16) one_product_of(l, x, &block, index, WEIGHT_BF16);
        else one_product_of(l, x, &block, index, WEIGHT_COMPACT);
    }
}

/* Two C tiles of 16 outputs x 16 tokens each (tokens `row` on) -> rows of the output, a whole cache line at a time where it is bf16. */
static void put_tiles(const Linear *l, const float *c, int64_t row, int64_t output) {
    __mmask16 low = outputs_here(l, output), high = outputs_here(l, output + 16);
    int64_t present = l->rows - row < 16 ? l->rows - row : 16;
    __m512i t[16], u[16];
    UNROLL
    for (int i = 0; i < 16; i++) t[i] = _mm512_loadu_si512(c + 16 * i), u[i] = _mm512_loadu_si512(c + 256 + 16 * i);
    transpose16(t);
    transpose16(u);
    UNROLL
    for (int i = 0; i < 16; i++) {
        if (i >= present) break;
        __m512 first = finish(l, output, _mm512_castsi512_ps(t[i]), low), second = finish(l, output + 16, _mm512_castsi512_ps(u[i]), high);
        int64_t at = (row + i) * l->out_stride + output;
        if (l->wide) {
            _mm512_mask_storeu_ps((float *)l->out + at, low, first);
            _mm512_mask_storeu_ps((float *)l->out + at + 16, high, second);
        } else
            _mm512_mask_storeu_epi16((bf16 *)l->out + at, (__mmask32)low | (__mmask32)high << 16, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
}

/* Ask for the lines that put_tiles will write: each is on another page, and waiting for them costs more than the product. */
static inline void ask_for_output(const Linear *l, int64_t row, int64_t output) {
    int64_t present = l->rows - row < 16 ? l->rows - row : 16;
    UNROLL
    for (int i = 0; i < 16; i++) {
        if (i >= present) break;
        const char *line = (const char *)l->out + ((row + i) * l->out_stride + output) * (l->wide ? 4 : 2);
        __builtin_prefetch(line, 1, 3);
        if (l->wide) __builtin_prefetch(line + 64, 1, 3);
    }
}

enum { STRIP = 12, STEP = MADE_OF_VECTORS ? 6 : 2, AHEAD = 2 };

/* Two blocks of a weight on their way through the matrix unit. */
typedef struct {
    Block blocks[2];
    int64_t ahead; /* bytes to the two that the next call reads, or 0 */
    bf16 *strips[2]; /* tiles as bf16 */
    float *sums; /* 512 for each 16 tokens */
    Unit unit;
} Pair;

/* A thread's own room: whole blocks as bf16 (a few rows use it, for a pair the strips are enough), then 512 sums for each 16 tokens. */
static Pair pair_of(const Linear *l, int64_t first, int64_t second, int64_t ahead, bf16 *room) {
    int64_t strip = l->depth < STRIP ? l->depth : STRIP;
    Pair pair = {.ahead = ahead, .strips = {room, room + strip * TILE}, .sums = (float *)(room + 2 * l->depth * TILE)};
    pair.blocks[0] = block_of(l->weight, l->kind, l->outputs, l->depth, first);
    pair.blocks[1] = block_of(l->weight, l->kind, l->outputs, l->depth, second);
    return pair;
}

static bf16 *own_room(const Linear *l, bf16 *all, int me) { return all + me * (2 * l->depth * TILE + (l->rows + 15) / 16 * 1024); }

/* `count` tiles of 16 outputs each and of 16 tokens, x, or 16 more, y. */
static inline void multiply(Unit *unit, const bf16 *x, const bf16 *y, const bf16 *w0, const bf16 *w1, int64_t count) {
    Rows rows = {w0, w1, 64, TILE};
    Columns columns = {x, y, TILE, x + AHEAD * TILE, 16, 1};
    if (!y) {
        pair_multiply(unit, rows, columns, count);
        return;
    }
    Columns others = {.coming = y + AHEAD * TILE, .lines = 16, .near = 1};
    for (int64_t k = 0; k < count; k++) ask_for(&others, k);
    square_multiply(unit, rows, columns, count, &NO_EXTRA);
}

/* The same for the first tokens (16, or 32 where y is one), with the tiles [from, to) made bf16 a few at a time: the matrix unit
 * multiplies some while the vector unit makes the next, and memory brings what will be needed then. */
static inline __attribute__((always_inline)) void unpack_and_multiply(const bf16 *x, const bf16 *y, Pair *pair, int64_t from, int64_t to) {
    int64_t bytes = tile_bytes(pair->blocks[0].kind);
    int plain = pair->blocks[0].kind == WEIGHT_BF16;
    for (int64_t k = from; k < to; k += STEP) {
        int64_t end = k + STEP < to ? k + STEP : to;
        const bf16 *w[2];
        UNROLL
        for (int i = 0; i < 2; i++) {
            const char *coming = (const char *)pair->blocks[i].tiles + pair->ahead;
            for (int64_t at = k * bytes; pair->ahead && at < end * bytes; at += 64) _mm_prefetch(coming + at, _MM_HINT_T1);
            w[i] = plain ? (const bf16 *)pair->blocks[i].tiles + k * TILE : pair->strips[i] + (k - from) * TILE;
            if (!plain) unpack_tiles(&pair->blocks[i], k, end, pair->strips[i] + (k - from) * TILE);
        }
        BARRIER();
        multiply(&pair->unit, x + k * TILE, y ? y + k * TILE : NULL, w[0], w[1], end - k);
        BARRIER();
    }
    if (plain) UNROLL for (int i = 0; i < 2; i++) pair->strips[i] = (bf16 *)pair->blocks[i].tiles + from * TILE;
}

/* Tiles [from, to) of a pair with the 16 tokens of group g. Strips of the weights stay in the first-level cache while all tokens pass
 * by; the sums of the only ones stay in the tile registers. */
static inline void multiply_strip(const Linear *l, Pair *pair, int64_t from, int64_t to, int64_t g, int64_t groups) {
    const bf16 *x = l->tiles + g * l->depth * TILE;
    float *c = pair->sums + 512 * g;
    if (!from || groups > 1) pair_begin(&pair->unit, c, c + 256, 64, from > 0);
    if (!g) unpack_and_multiply(x, NULL, pair, from, to);
    else multiply(&pair->unit, x + from * TILE, NULL, pair->strips[0], pair->strips[1], to - from);
    if (groups > 1 || to == l->depth) pair_end(&pair->unit, c, c + 256, 64);
}

/* The same with the tokens of two groups. */
static inline void multiply_square(const Linear *l, Pair *pair, int64_t from, int64_t to, int64_t g) {
    const bf16 *x = l->tiles + g * l->depth * TILE, *y = x + l->depth * TILE;
    float *const c = pair->sums + 512 * g, *const squares[4] = {c, c + 512, c + 256, c + 768};
    square_begin(&pair->unit, squares, 64, from > 0);
    if (!g) unpack_and_multiply(x, y, pair, from, to);
    else multiply(&pair->unit, x + from * TILE, y + from * TILE, pair->strips[0], pair->strips[1], to - from);
    square_end(&pair->unit, squares, 64);
}

/* 17 to 32 tokens: the sums of both groups stay in the tile registers. */
static void multiply_both(const Linear *l, Pair *pair) {
    float *const c = pair->sums, *const squares[4] = {c, c + 512, c + 256, c + 768};
    square_begin(&pair->unit, squares, 64, 0);
    for (int64_t from = 0; from < l->depth; from += STEP)
        unpack_and_multiply(l->tiles, l->tiles + l->depth * TILE, pair, from, from + STEP < l->depth ? from + STEP : l->depth);
    square_end(&pair->unit, squares, 64);
}

/* C tiles of gate and up, 16 outputs from `output` on x 16 tokens -> half of a packed tile of what comes next: pairs of outputs
 * are what it wants side by side, so nothing is transposed and nothing leaves in strides. */
static void put_gated(const Linear *l, const float *c, int64_t output, int tanh_form, bf16 *tile) {
    int64_t width = l->outputs / 2;
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        __m512 values[2];
        UNROLL
        for (int side = 0; side < 2; side++) {
            int64_t at = output + i + side;
            __m512 gate = _mm512_loadu_ps(c + 16 * (i + side)), up = _mm512_loadu_ps(c + 256 + 16 * (i + side));
            if (l->bias) {
                gate = _mm512_add_ps(gate, _mm512_set1_ps(l->bias[at]));
                up = _mm512_add_ps(up, _mm512_set1_ps(l->bias[width + at]));
            }
            values[side] = _mm512_mul_ps(activated(gate, tanh_form), up);
        }
        _mm512_storeu_si512(tile + 16 * (output % 32) + 16 * i, pair_up(values[0], values[1]));
    }
}

/* Where the sums of a pair go: rows of the output, or (16 outputs each of gate and of up) half a packed tile of what comes next. */
typedef struct {
    int64_t output; /* the first */
    bf16 *packed; /* of the first 16 tokens, or NULL for rows */
    int tanh_form;
} Sink;

static inline void put_sums(const Linear *l, const float *c, int64_t g, Sink sink) {
    if (sink.packed) put_gated(l, c, sink.output, sink.tanh_form, sink.packed + g * (l->outputs / 64) * TILE);
    else put_tiles(l, c, g * 16, sink.output);
}

/* A pair's outputs for every token. */
static void many_rows(const Linear *l, Pair *pair, Sink sink) {
    int64_t groups = (l->rows + 15) / 16, strip = groups > 1 ? STRIP : STEP;
    if (groups == 2) {
        multiply_both(l, pair);
        for (int64_t g = 0; g < 2; g++) put_sums(l, pair->sums + 512 * g, g, sink);
        return;
    }
    for (int64_t from = 0; from < l->depth; from += strip) {
        int64_t to = from + strip < l->depth ? from + strip : l->depth;
        for (int64_t g = 0, end; g < groups; g = end) {
            end = MADE_OF_VECTORS && g + 1 < groups ? g + 2 : g + 1;
            for (int64_t at = g; at < end && to == l->depth && !sink.packed; at++) ask_for_output(l, at * 16, sink.output);
            if (end == g + 2) multiply_square(l, pair, from, to, g);
            else multiply_strip(l, pair, from, to, g, groups);
            for (int64_t at = g; at < end && to == l->depth; at++) put_sums(l, pair->sums + 512 * at, at, sink);
        }
    }
}

/* slots: weight, kind, outputs, inputs, bias, x, its stride, packed x (NULL: vector products, of bfloat16 and for a few rows), rows,
 * out, out's stride, wide, scratch: for each thread what pair_of says. */
void owngpt_step_linear(const int64_t *slots, Worker *worker) {
    Linear l = {.weight = POINTER(const uint8_t, 0), .bias = POINTER(const float, 4), .kind = slots[1], .outputs = slots[2], .inputs = slots[3],
                .rows = slots[8], .depth = (slots[3] + 31) / 32, .out_stride = slots[10], .x_stride = slots[6], .x = POINTER(const bf16, 5),
                .tiles = POINTER(const bf16, 7), .out = POINTER(void, 9), .wide = (int)slots[11]};
    int64_t blocks = (l.outputs + 15) / 16, first, last;
    if (!l.tiles) {
        Whole x = whole_rows(&l, POINTER(bf16, 12) + worker->me * 2 * l.depth * TILE);
        while (next_share(worker, blocks, &first, &last)) plain_products(&l, &x, first, last);
        return;
    }
    bf16 *room = own_room(&l, POINTER(bf16, 12), worker->me);
    while (next_share(worker, (blocks + 1) / 2, &first, &last))
        for (int64_t at = first; at < last; at++) {
            int64_t ahead = at + 1 < last ? 2 * l.depth * tile_bytes(l.kind) : 0, second = 2 * at + 1 < blocks ? 2 * at + 1 : 2 * at;
            Pair pair = pair_of(&l, 2 * at, second, ahead, room);
            many_rows(&l, &pair, (Sink){.output = 32 * at});
        }
}

/* A gated layer's first half: gate and up products and the activation, straight into the packed input of the second half.
 * slots: weight (gate's outputs, then up's; as many, a multiple of 32), kind, outputs, inputs, bias, packed x, rows,
 * packed out, whether GELU instead of SiLU, scratch as in linear. */
void owngpt_step_gated_linear(const int64_t *slots, Worker *worker) {
    Linear l = {.weight = POINTER(const uint8_t, 0), .bias = POINTER(const float, 4), .kind = slots[1], .outputs = slots[2],
                .inputs = slots[3], .rows = slots[6], .depth = (slots[3] + 31) / 32, .tiles = POINTER(const bf16, 5)};
    bf16 *out = POINTER(bf16, 7);
    int64_t half = l.outputs / 32, first, last;
    bf16 *room = own_room(&l, POINTER(bf16, 9), worker->me);
    while (next_share(worker, half / 2, &first, &last))
        for (int64_t block = 2 * first; block < 2 * last; block++) {
            Pair pair = pair_of(&l, block, half + block, block + 1 < 2 * last ? l.depth * tile_bytes(l.kind) : 0, room);
            many_rows(&l, &pair, (Sink){16 * block, out + block / 2 * TILE, (int)slots[8]});
        }
}

/* The values of one output. */
static void read_output(const uint8_t *tiles, int64_t kind, int64_t outputs, int64_t depth, int64_t output, bf16 *values) {
    Block block = block_of(tiles, kind, outputs, depth, output / 16);
    bf16 tile[TILE] __attribute__((aligned(64)));
    for (int64_t k = 0; k < depth; k++) {
        unpack_tiles(&block, k, k + 1, tile);
        memcpy(values + 32 * k, tile + output % 16 * 32, 32 * sizeof(bf16));
    }
}

/* Rows of a packed weight: slots weight, kind, outputs, inputs, ids, rows, out (bf16), factor, whether ids have 32 bits, scratch of
 * a row a thread. */
void owngpt_step_embed(const int64_t *slots, Worker *worker) {
    int64_t inputs = slots[3], depth = (inputs + 31) / 32, first, last;
    bf16 *out = POINTER(bf16, 6), *values = POINTER(bf16, 9) + worker->me * 32 * depth;
    float scale = NUMBER(7);
    row_share(slots[5], worker->me, worker->threads, &first, &last);
    for (int64_t row = first; row < last; row++) {
        int64_t id = slots[8] ? POINTER(const int32_t, 4)[row] : POINTER(const int64_t, 4)[row];
        read_output(POINTER(const uint8_t, 0), slots[1], slots[2], depth, id, values);
        if (scale == 1.0f) memcpy(out + row * inputs, values, sizeof(bf16) * (size_t)inputs);
        else
            for (int64_t i = 0; i < inputs; i++) out[row * inputs + i] = to_bf16(to_float(values[i]) * scale);
    }
}

/* A quantized weight as bf16 tiles. */
int owngpt_widen(const uint8_t *tiles, int kind, int64_t outputs, int64_t inputs, bf16 *out, int threads) {
    int64_t depth = (inputs + 31) / 32, blocks = (outputs + 15) / 16;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t at = 0; at < blocks; at++) {
        Block block = block_of(tiles, kind, outputs, depth, at);
        unpack_tiles(&block, 0, depth, out + at * depth * TILE);
    }
    return 0;
}
#endif
