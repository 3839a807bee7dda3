/* Linear layers whose weight is frozen and whose low-rank update is learned (LoRA): y = x W^T + b + s (x A^T) B^T, and backward
 * everything but the gradient of W.
 *
 * The weight is packed once, for the forward product and for that of the input's gradient. The update is part of the same sum: x A^T
 * is appended to x, and s B to W, as a few more steps. There may be several updates, each of its own span of outputs (query,
 * key and value in one matrix). A task is a block of rows whose size follows from their number alone, and sums over blocks are added
 * in order: results depend neither on the number of threads nor on which of them ran what. */
#include "frozen.h"
#include "gate.h"
#include "normed.h"

#ifdef MATRIX_UNIT

enum { SMALLEST_BLOCK = 128, MOST_BLOCKS = 16 };

int owngpt_pack_frozen(const bf16 *values, int64_t stride, int across, int64_t columns, int64_t depth, bf16 *to, int threads);

typedef struct {
    const bf16 *weight;  /* packed for this product */
    const bf16 *down;    /* (spans * rank) x inputs */
    const bf16 *up;      /* (rows of all spans) x rank */
    const int64_t *span; /* first and last + 1 output of each */
    int64_t spans, rank, inputs, outputs, rows;
    float scale;
} Layer;

/* A factor as bf16: what is stored in float is rounded into `room`. */
static const bf16 *rounded(const void *values, int is_float, int64_t count, bf16 *room) {
    if (!is_float) return values;
    for (int64_t i = 0; i < count; i++) room[i] = to_bf16(((const float *)values)[i]);
    return room;
}

/* Rows of B, of all spans. */
static int64_t heights_of(const int64_t *span, int64_t spans) {
    int64_t count = 0;
    for (int64_t p = 0; p < spans; p++) count += span[2 * p + 1] - span[2 * p];
    return count;
}

static int64_t block_of(int64_t rows) {
    int64_t tall = blocks(blocks(rows, MOST_BLOCKS), EDGE) * EDGE;
    return tall < SMALLEST_BLOCK ? SMALLEST_BLOCK : tall > LARGEST_BLOCK ? LARGEST_BLOCK : tall;
}

/* The same for a strip of which only 16 rows matter: the others' sums are left as they were. */
static inline void half_strip_times_panel(const bf16 *left, const bf16 *right, int64_t steps, float *sums) {
    Unit unit;
    pair_begin(&unit, sums, sums + 256, 64, 0);
    wide_multiply(&unit, (Rows){left, NULL, 64, PAIR}, (Columns){.first = right, .second = right + 512, .step = PAIR}, steps);
    pair_end(&unit, sums, sums + 256, 64);
}

static inline void few_rows_times_panel(const bf16 *left, const bf16 *right, int64_t steps, float *sums, int64_t rows) {
    if (rows <= 16) half_strip_times_panel(left, right, steps, sums);
    else strip_times_panel(left, right, steps, &NO_EXTRA, sums, 0, 2, NULL, 0);
}

/* The transposed of columns [from, from + count) of rows x ..., as strips over them that are summed over the rows. */
static inline void pack_turned(const bf16 *values, int64_t stride, int64_t count, int64_t rows, bf16 *to) {
    Factor a = {values, stride, 0};
    int64_t steps = blocks(rows, EDGE);
    for (int64_t s = 0; s < blocks(count, EDGE); s++)
        for (int64_t k = 0; k < steps; k++)
            pack_left(&a, s * EDGE, k * EDGE, (int)least(EDGE, count - s * EDGE), (int)least(EDGE, rows - k * EDGE), to + (s * steps + k) * PAIR);
}

/* Strips of SwiGLU's result: rows x (gate, up) of `width` values each. */
static void pack_gated_strips(const bf16 *gate_up, int64_t width, int64_t rows, bf16 *to) {
    int64_t steps = blocks(width, EDGE);
    for (int64_t i = 0; i < blocks(rows, EDGE) * EDGE; i++)
        for (int64_t k = 0; k < steps; k++) {
            const bf16 *gate = gate_up + i * 2 * width + k * EDGE;
            bf16 *row = to + (i / EDGE * steps + k) * PAIR + i % EDGE * EDGE;
            int64_t there = i < rows ? least(EDGE, width - k * EDGE) : 0;
            if (there == EDGE) swiglu_values(gate, gate + width, row, EDGE);
            else memset(row, 0, EDGE * sizeof(bf16)), swiglu_values(gate, gate + width, row, there);
        }
}

/* Forward */

typedef struct {
    bf16 *down, *up; /* x A^T: panels over inputs; s B: a step for each panel and span that meet */
    int64_t *first, *from;
} Packed;

/* Which steps of x A^T each panel of outputs needs, and s B for them. Returns their number; with `to` NULL only counts. */
static int64_t pack_up(const Layer *l, int64_t *first, int64_t *from, bf16 *to) {
    int64_t count = 0, wide = blocks(l->rank, EDGE);
    for (int64_t panel = 0; panel < blocks(l->outputs, EDGE); panel++) {
        int64_t row = 0;
        if (first) first[panel] = count;
        for (int64_t p = 0; p < l->spans; row += l->span[2 * p + 1] - l->span[2 * p], p++) {
            int64_t begin = l->span[2 * p] > panel * EDGE ? l->span[2 * p] : panel * EDGE, end = least(l->span[2 * p + 1], (panel + 1) * EDGE);
            if (begin >= end) continue;
            for (int64_t k = 0; k < wide; k++, count++) {
                if (!to) continue;
                bf16 scaled[EDGE * EDGE] __attribute__((aligned(64))) = {0};
                for (int64_t o = begin; o < end; o++)
                    for (int64_t j = k * EDGE; j < least(l->rank, (k + 1) * EDGE); j++)
                        scaled[(o - panel * EDGE) * EDGE + j - k * EDGE] = l->up[(row + o - l->span[2 * p]) * l->rank + j];
                Factor b = {scaled, EDGE, 1};
                pack_right(&b, 0, 0, EDGE, EDGE, to + count * PAIR);
                from[count] = p * wide + k;
            }
        }
    }
    if (first) first[blocks(l->outputs, EDGE)] = count;
    return count;
}

/* x A^T of a block: rows x (spans * rank) into `hidden`, and its strips, each span filled up to whole steps. */
static void hidden_block(const Layer *l, const bf16 *left, int64_t steps, int64_t rows, const bf16 *down, bf16 *hidden, bf16 *strips) {
    int64_t width = l->spans * l->rank, wide = blocks(l->rank, EDGE);
    float sums[PAIR] __attribute__((aligned(64)));
    for (int64_t s = 0; s < blocks(rows, EDGE); s++) {
        int here = (int)least(EDGE, rows - s * EDGE);
        bf16 *to = hidden + s * EDGE * width;
        for (int64_t n = 0; n < blocks(width, EDGE); n++) {
            strip_times_panel(left + s * steps * PAIR, down + n * steps * PAIR, steps, &NO_EXTRA, sums, 0, width - n * EDGE <= 16 ? 1 : 2, NULL, 0);
            put_block(sums, NULL, l->scale, to + n * EDGE, width, here, (int)least(EDGE, width - n * EDGE));
        }
        Factor a = {to, width, 1};
        for (int64_t p = 0; p < l->spans; p++)
            for (int64_t k = 0; k < wide; k++)
                pack_left(&a, 0, p * l->rank + k * EDGE, here, (int)least(EDGE, l->rank - k * EDGE), strips + ((s * l->spans + p) * wide + k) * PAIR);
    }
}

/* x: rows x inputs, or where it is `gated` rows x (2 * inputs) that SwiGLU makes it of; weight: panels of outputs; bias: outputs float32 or
 * NULL; down, up: bf16, or float32 where `are_float`; y: rows x outputs; hidden: rows x (spans * rank), s x A^T.
 * Returns 0, or 1 without memory. */
int owngpt_low_rank(const bf16 *x, int gated, const bf16 *weight, const float *bias, const void *down, const void *up, int are_float, const int64_t *span, int64_t spans, int64_t rank,
                    float scale, bf16 *hidden, bf16 *y, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    Layer l = {weight, NULL, NULL, span, spans, rank, inputs, outputs, rows, scale};
    int64_t steps = blocks(inputs, EDGE), width = spans * rank, tall = block_of(rows), strips = tall / EDGE, panels = blocks(outputs, EDGE), heights = heights_of(span, spans);
    int64_t count = pack_up(&l, NULL, NULL, NULL), extra = spans * blocks(rank, EDGE);
    Packed packed = {0};
    packed.down = aligned_alloc(64, (size_t)(whole_edges(width) * steps * EDGE + count * PAIR + PAIR + whole_edges(width * inputs + heights * rank)) * sizeof(bf16));
    packed.first = malloc((size_t)(panels + 1 + count) * sizeof(int64_t));
    int failed = !packed.down || !packed.first;
    if (!failed) {
        packed.up = packed.down + whole_edges(width) * steps * EDGE;
        packed.from = packed.first + panels + 1;
        bf16 *room = packed.up + (count + 1) * PAIR;
        l.up = rounded(up, are_float, heights * rank, room);
        l.down = rounded(down, are_float, width * inputs, room + heights * rank);
        owngpt_pack_frozen(l.down, inputs, 1, width, inputs, packed.down, 1);
        pack_up(&l, packed.first, packed.from, packed.up);
    }
#pragma omp parallel num_threads(threads) if (!failed)
    if (!failed) {
        size_t left_size = (size_t)(tall * steps * EDGE), extra_size = (size_t)(strips * extra * PAIR);
        bf16 *left = aligned_alloc(64, (left_size + extra_size) * sizeof(bf16) + sums_of(strips, outputs, inputs, 1) * sizeof(float));
        if (!left) {
#pragma omp atomic write
            failed = 1;
        }
        tiles_begin();
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < rows; row += tall) {
            if (!left) continue;
            int64_t here = least(tall, rows - row);
            bf16 *strip = left + left_size;
            float *all = (float *)(strip + extra_size);
            Block block = {NULL, 0, left, here, inputs, weight, outputs, strip, extra, blocks(rank, EDGE), rank, packed.up, packed.first, packed.from, bias, y + row * outputs, outputs};
            if (gated) pack_gated_strips(x + row * 2 * inputs, inputs, here, left);
            else pack_strips(x + row * inputs, inputs, here, inputs, left);
            hidden_block(&l, left, steps, here, packed.down, hidden + row * width, strip);
            whole_block(&block, all);
        }
        tiles_end();
        free(left);
    }
    free(packed.down);
    free(packed.first);
    return failed;
}

/* Backward */

typedef struct {
    Layer layer;
    const bf16 *d_y, *x, *hidden;
    const bf16 *up, *down; /* packed: B, a span's steps over outputs after another's; A as steps of the input's gradient */
    int64_t *first, *from; /* a panel's first step of A, and which of the left factor each of them meets */
    float *parts;          /* of each block: the gradient of A (width x inputs), then that of B turned (rank x rows of all spans) */
    int64_t width, heights, part;
} Backward;

static int64_t first_step(const Layer *l, int64_t p) { return l->span[2 * p] / EDGE; }
static int64_t steps_of(const Layer *l, int64_t p) { return blocks(l->span[2 * p + 1], EDGE) - first_step(l, p); }

/* B as the right factor of dY B: per span and 32 ranks all steps over outputs. Returns the number of steps; with `to` NULL only counts. */
static int64_t pack_up_over_outputs(const Layer *l, bf16 *to) {
    int64_t count = 0, row = 0;
    for (int64_t p = 0; p < l->spans; row += l->span[2 * p + 1] - l->span[2 * p], p++)
        for (int64_t j = 0; j < l->rank; j += EDGE)
            for (int64_t k = 0; k < steps_of(l, p); k++, count++) {
                if (!to) continue;
                bf16 part[EDGE * EDGE] __attribute__((aligned(64))) = {0};
                int64_t from = (first_step(l, p) + k) * EDGE;
                for (int64_t o = from; o < from + EDGE; o++)
                    if (o >= l->span[2 * p] && o < l->span[2 * p + 1])
                        memcpy(part + (o - from) * EDGE, l->up + (row + o - l->span[2 * p]) * l->rank + j, (size_t)least(EDGE, l->rank - j) * sizeof(bf16));
                Factor b = {part, EDGE, 0};
                pack_right(&b, 0, 0, EDGE, EDGE, to + count * PAIR);
            }
    return count;
}

/* s dY B of a block: rows x width. */
static void hidden_gradient(const Backward *w, const bf16 *left, int64_t rows, bf16 *to) {
    const Layer *l = &w->layer;
    int64_t steps = blocks(l->outputs, EDGE);
    float sums[PAIR] __attribute__((aligned(64)));
    for (int64_t s = 0; s < blocks(rows, EDGE); s++) {
        const bf16 *right = w->up;
        for (int64_t p = 0; p < l->spans; p++)
            for (int64_t j = 0; j < l->rank; j += EDGE, right += steps_of(l, p) * PAIR) {
                strip_times_panel(left + (s * steps + first_step(l, p)) * PAIR, right, steps_of(l, p), &NO_EXTRA, sums, 0, l->rank - j <= 16 ? 1 : 2, NULL, 0);
                put_block(sums, NULL, l->scale, to + s * EDGE * w->width + p * l->rank + j, w->width, (int)least(EDGE, rows - s * EDGE), (int)least(EDGE, l->rank - j));
            }
    }
}

/* A block as right factor that is summed over its rows: panels of 32 columns. */
static void pack_over_rows(const bf16 *values, int64_t stride, int64_t rows, int64_t columns, bf16 *to) {
    Factor b = {values, stride, 0};
    int64_t steps = blocks(rows, EDGE);
    for (int64_t k = 0; k < steps; k++)
        for (int64_t n = 0; n < blocks(columns, EDGE); n++)
            pack_right(&b, n * EDGE, k * EDGE, (int)least(EDGE, columns - n * EDGE), (int)least(EDGE, rows - k * EDGE), to + (n * steps + k) * PAIR);
}

/* Columns [from, end) of 32 x 32 sums. */
static inline void put_floats(const float *sums, float *to, int64_t stride, int rows, int from, int end) {
    uint32_t until = end >= 32 ? 0xffffffffu : (1u << end) - 1, there = until & ~((1u << from) - 1);
    for (int i = 0; i < rows; i++) {
        const float *row = sums + (i / 16) * 512 + (i % 16) * 16;
        _mm512_mask_storeu_ps(to + i * stride, (__mmask16)there, _mm512_load_ps(row));
        _mm512_mask_storeu_ps(to + i * stride + 16, (__mmask16)(there >> 16), _mm512_load_ps(row + 256));
    }
}

/* Up to 32 rows that pack_turned gave times 32 columns of strips, which are paired as they are read: on tiles they would have to be packed
 * once more, for a product of 16 rows. `apart`: values from one strip to the next. */
static void turned_times_strips(const bf16 *turned, int64_t rows, const bf16 *strips, int64_t apart, int64_t steps, float *sums) {
    for (int64_t quarter = 0; quarter < (rows <= 16 ? 2 : 4); quarter++) { /* 16 rows x 16 columns */
        const __m512i pairs = pairs_of((int)(quarter % 2));
        const bf16 *left = turned + quarter / 2 * 512;
        __m512 c[16];
        UNROLL
        for (int i = 0; i < 16; i++) c[i] = _mm512_setzero_ps();
        for (int64_t k = 0; k < steps; k++)
            for (int64_t pair = 0; pair < 16; pair++) {
                const bf16 *two = strips + k * apart + pair * 64;
                __m512bh right = (__m512bh)_mm512_permutex2var_epi16(_mm512_load_si512(two), pairs, _mm512_load_si512(two + 32));
                const bf16 *values = left + k * PAIR + 2 * pair;
                UNROLL
                for (int i = 0; i < 16; i++) {
                    int32_t value;
                    memcpy(&value, values + 32 * i, sizeof value);
                    c[i] = _mm512_dpbf16_ps(c[i], (__m512bh)_mm512_set1_epi32(value), right);
                }
            }
        UNROLL
        for (int i = 0; i < 16; i++) _mm512_store_ps(sums + 256 * quarter + 16 * i, c[i]);
    }
}

/* The gradient of A from a block: (s dY B)^T x, width x inputs. */
static void down_gradient(const Backward *w, const bf16 *d_hidden, const bf16 *x, int64_t rows, bf16 *small, bf16 *right, float *to) {
    int64_t steps = blocks(rows, EDGE), inputs = w->layer.inputs;
    float sums[PAIR] __attribute__((aligned(64)));
    pack_turned(d_hidden, w->width, w->width, rows, small);
    if (MADE_OF_VECTORS) pack_strips(x, inputs, rows, inputs, right);
    else pack_over_rows(x, inputs, rows, inputs, right);
    for (int64_t n = 0; n < blocks(inputs, EDGE); n++)
        for (int64_t s = 0; s < blocks(w->width, EDGE); s++) {
            const bf16 *turned = small + s * steps * PAIR;
            if (MADE_OF_VECTORS) turned_times_strips(turned, w->width - s * EDGE, right + n * PAIR, blocks(inputs, EDGE) * PAIR, steps, sums);
            else few_rows_times_panel(turned, right + n * steps * PAIR, steps, sums, w->width - s * EDGE);
            put_floats(sums, to + s * EDGE * inputs + n * EDGE, inputs, (int)least(EDGE, w->width - s * EDGE), 0, (int)least(EDGE, inputs - n * EDGE));
        }
}

/* The gradient of B from a block, turned: (s x A^T)^T dY of each span, rank x its rows. dY lies in strips in `d_y`, whose place is used. */
static void up_gradient(const Backward *w, int64_t row, int64_t rows, bf16 *small, bf16 *d_y, float *to) {
    const Layer *l = &w->layer;
    int64_t steps = blocks(rows, EDGE), done = 0;
    float sums[PAIR] __attribute__((aligned(64)));
    if (!MADE_OF_VECTORS) pack_over_rows(w->d_y + row * l->outputs, l->outputs, rows, l->outputs, d_y);
    for (int64_t p = 0; p < l->spans; done += l->span[2 * p + 1] - l->span[2 * p], p++) {
        pack_turned(w->hidden + row * w->width + p * l->rank, w->width, l->rank, rows, small);
        for (int64_t n = first_step(l, p); n < first_step(l, p) + steps_of(l, p); n++)
            for (int64_t s = 0; s < blocks(l->rank, EDGE); s++) {
                int64_t from = l->span[2 * p] > n * EDGE ? l->span[2 * p] - n * EDGE : 0, end = least(EDGE, l->span[2 * p + 1] - n * EDGE);
                const bf16 *turned = small + s * steps * PAIR;
                if (MADE_OF_VECTORS) turned_times_strips(turned, l->rank - s * EDGE, d_y + n * PAIR, blocks(l->outputs, EDGE) * PAIR, steps, sums);
                else few_rows_times_panel(turned, d_y + n * steps * PAIR, steps, sums, l->rank - s * EDGE);
                put_floats(sums, to + s * EDGE * w->heights + done + n * EDGE - l->span[2 * p], w->heights, (int)least(EDGE, l->rank - s * EDGE), (int)from, (int)end);
            }
    }
}

/* Sums over blocks, in their order, of 16 neighbours. */
static inline __m512 sum_of_parts(const float *from, int64_t part, int64_t count, __mmask16 there) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t b = 0; b < count; b++, from += part) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(there, from));
    return sum;
}

/* The gate's gradient from that of its result, whose place then takes the result itself. d_gate_up may be NULL. */
static void through_gate(const bf16 *gate_up, int64_t rows, int64_t width, bf16 *d_x, bf16 *d_gate_up) {
    for (int64_t i = 0; i < rows; i++, gate_up += 2 * width, d_x += width) {
        if (d_gate_up) swiglu_gradient(d_x, gate_up, gate_up + width, d_gate_up + i * 2 * width, d_gate_up + (i * 2 + 1) * width, d_x, width);
        else swiglu_values(gate_up, gate_up + width, d_x, width);
    }
}

static inline __mmask16 first_of(int64_t left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

static void add_parts(const Backward *w, int64_t count, float *d_down, float *d_up) {
    const Layer *l = &w->layer;
    int64_t flat = w->width * l->inputs;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < flat; i += 16)
        _mm512_mask_storeu_ps(d_down + i, first_of(flat - i), sum_of_parts(w->parts + i, w->part, count, first_of(flat - i)));
#pragma omp for schedule(static)
    for (int64_t o = 0; o < w->heights; o += 16)
        for (int64_t j = 0; j < l->rank; j += 16) { /* B lies turned in the parts */
            const float *from = w->parts + flat + j * w->heights + o;
            __m512i rows[16];
            for (int64_t i = 0; i < 16; i++)
                rows[i] = j + i < l->rank ? _mm512_castps_si512(sum_of_parts(from + i * w->heights, w->part, count, first_of(w->heights - o))) : _mm512_setzero_si512();
            transpose16(rows);
            for (int64_t i = 0; i < 16 && o + i < w->heights; i++) _mm512_mask_storeu_ps(d_up + (o + i) * l->rank + j, first_of(l->rank - j), _mm512_castsi512_ps(rows[i]));
        }
}

/* d_y: rows x outputs; x, down, up: as forward, but where a norm made x (`norm`: its weight, `rstd`: 1 / the rows' deviations) what it was
 * made of; hidden: what the forward pass left; weight: panels of inputs. d_x: as large as the x of the forward pass, or NULL;
 * d_down: (spans * rank) x inputs and d_up: (rows of all spans) x rank, float32. Returns 0, or 1 without memory. */
int owngpt_low_rank_backward(const bf16 *d_y, const bf16 *x, int gated, const float *norm, const float *rstd, const bf16 *hidden, const bf16 *weight, const void *down, const void *up, int are_float, const int64_t *span, int64_t spans,
                             int64_t rank, float scale, bf16 *d_x, float *d_down, float *d_up, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    Backward w = {{weight, NULL, NULL, span, spans, rank, inputs, outputs, rows, scale}, d_y, x, hidden, NULL, NULL, NULL, NULL, NULL, spans * rank, heights_of(span, spans), 0};
    int64_t tall = block_of(rows), strips = tall / EDGE, count = blocks(rows, tall), extra = blocks(w.width, EDGE);
    w.part = w.width * inputs + rank * w.heights;
    int64_t ups = pack_up_over_outputs(&w.layer, NULL) * PAIR, downs = blocks(inputs, EDGE) * extra * PAIR;
    bf16 *packed = aligned_alloc(64, (size_t)(ups + downs + PAIR + whole_edges(w.part)) * sizeof(bf16));
    w.parts = malloc((size_t)(count * w.part + 1) * sizeof(float));
    int64_t panels = blocks(inputs, EDGE);
    w.first = malloc((size_t)(panels + 1 + panels * extra) * sizeof(int64_t));
    int failed = !packed || !w.parts || !w.first;
    if (!failed) {
        w.from = w.first + panels + 1;
        for (int64_t n = 0; n <= panels; n++) w.first[n] = n * extra;
        for (int64_t i = 0; i < panels * extra; i++) w.from[i] = i % extra;
        w.up = packed, w.down = packed + ups;
        bf16 *room = packed + ups + downs + PAIR;
        w.layer.up = rounded(up, are_float, rank * w.heights, room);
        pack_up_over_outputs(&w.layer, packed);
        owngpt_pack_frozen(rounded(down, are_float, w.width * inputs, room + rank * w.heights), inputs, 0, inputs, w.width, packed + ups, 1);
    }
#pragma omp parallel num_threads(threads) if (!failed)
    if (!failed) {
        size_t left_size = (size_t)(tall * whole_edges(inputs > outputs ? inputs : outputs)), small_size = (size_t)(strips * (extra + blocks(rank, EDGE) + 1) * PAIR);
        size_t own_size = gated || norm ? (size_t)(tall * whole_edges(inputs)) : 0;
        bf16 *left = aligned_alloc(64, (left_size + 2 * small_size + own_size) * sizeof(bf16) + sums_of(strips, inputs, outputs, 1) * sizeof(float));
        if (!left) {
#pragma omp atomic write
            failed = 1;
        }
        tiles_begin();
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < count; b++) {
            if (!left) continue;
            int64_t row = b * tall, here = least(tall, rows - row);
            bf16 *small = left + left_size, *d_hidden = small + small_size, *own = d_hidden + small_size;
            pack_strips(d_y + row * outputs, outputs, here, outputs, left);
            hidden_gradient(&w, left, here, d_hidden);
            if (d_x) {
                pack_strips(d_hidden, w.width, here, w.width, small);
                Block block = {NULL, 0, left, here, outputs, weight, inputs, small, extra, extra, w.width, w.down, w.first, w.from, NULL, gated ? own : d_x + row * inputs, inputs};
                whole_block(&block, (float *)(own + own_size));
            }
            float *part = w.parts + b * w.part;
            up_gradient(&w, row, here, small, left, part + w.width * inputs);
            if (gated) through_gate(x + row * 2 * inputs, here, inputs, own, d_x ? d_x + row * 2 * inputs : NULL);
            for (int64_t i = 0; norm && i < here; i++) normed_row(x + (row + i) * inputs, rstd[row + i], norm, own + i * inputs, inputs);
            down_gradient(&w, d_hidden, own_size ? own : x + row * inputs, here, small, left, part);
        }
        if (!failed) add_parts(&w, count, d_down, d_up);
        tiles_end();
        free(left);
    }
    free(packed);
    free(w.first);
    free(w.parts);
    return failed;
}

#endif
