/* Linear layers over packed weights with AMX: y = x W^T + b. Without it: plain.c and small.c.
 *
 * A weight (outputs x inputs) lies as tiles of 16 outputs x 32 inputs, all tiles of 16 outputs (a block) side by side: one row
 * reads memory strictly forward, and a tile is just what an AMX register takes. The product is computed transposed (outputs down,
 * tokens across), so weights need no further packing and the few tokens of a decoding step are the narrow side. */
#include "linear.h"

#if defined(MATRIX_UNIT) && defined(__AMX_BF16__)

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

enum { STRIP = 12, STEP = 2, AHEAD = 2 };

/* Two blocks of a weight on their way through the matrix unit. */
typedef struct {
    Block blocks[2];
    int64_t ahead; /* bytes to the two that the next call reads, or 0 */
    bf16 *strips[2]; /* tiles as bf16 */
    float *sums; /* 512 for each 16 tokens */
    Unit unit;
} Pair;

/* A thread's own room: strips of two blocks as bf16, with room for whole ones, then 512 sums for each 16 tokens. */
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
        for (int64_t g = 0; g < groups; g++) {
            if (to == l->depth && !sink.packed) ask_for_output(l, g * 16, sink.output);
            multiply_strip(l, pair, from, to, g, groups);
            if (to == l->depth) put_sums(l, pair->sums + 512 * g, g, sink);
        }
    }
}

/* slots: weight, kind, outputs, inputs, bias, x, its stride, packed x, rows, out, out's stride, wide, scratch: for each thread what
 * pair_of says. */
void owngpt_step_linear(const int64_t *slots, Worker *worker) {
    Linear l = {.weight = POINTER(const uint8_t, 0), .bias = POINTER(const float, 4), .kind = slots[1], .outputs = slots[2], .inputs = slots[3],
                .rows = slots[8], .depth = (slots[3] + 31) / 32, .out_stride = slots[10],
                .tiles = POINTER(const bf16, 7), .out = POINTER(void, 9), .wide = (int)slots[11]};
    int64_t blocks = (l.outputs + 15) / 16, first, last;
    bf16 *room = own_room(&l, POINTER(bf16, 12), worker->me);
    while (next_share(worker, (blocks + 1) / 2, &first, &last))
        for (int64_t at = first; at < last; at++) {
            int64_t ahead = at + 1 < last ? 2 * l.depth * tile_bytes(l.kind) : 0, second = 2 * at + 1 < blocks ? 2 * at + 1 : 2 * at;
            Pair pair = pair_of(&l, 2 * at, second, ahead, room);
            many_rows(&l, &pair, (Sink){.output = 32 * at});
        }
}

/* A gated layer's first half: gate and up products and the activation, straight into the packed input of the second half.
 * slots: weight (gate's outputs, then up's; as many, a multiple of 32), kind, outputs, inputs, bias, x, its stride, packed x, rows,
 * packed out, whether GELU instead of SiLU, scratch as in linear. */
void owngpt_step_gated_linear(const int64_t *slots, Worker *worker) {
    Linear l = {.weight = POINTER(const uint8_t, 0), .bias = POINTER(const float, 4), .kind = slots[1], .outputs = slots[2],
                .inputs = slots[3], .rows = slots[8], .depth = (slots[3] + 31) / 32, .tiles = POINTER(const bf16, 7)};
    bf16 *out = POINTER(bf16, 9);
    int64_t half = l.outputs / 32, first, last;
    bf16 *room = own_room(&l, POINTER(bf16, 11), worker->me);
    while (next_share(worker, half / 2, &first, &last))
        for (int64_t block = 2 * first; block < 2 * last; block++) {
            Pair pair = pair_of(&l, block, half + block, block + 1 < 2 * last ? l.depth * tile_bytes(l.kind) : 0, room);
            many_rows(&l, &pair, (Sink){16 * block, out + block / 2 * TILE, (int)slots[10]});
        }
}
#endif
