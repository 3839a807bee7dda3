/* Causal attention, forward and backward (FlashAttention's recomputation, arXiv 2205.14135), on matrix tiles (tiles.h).
 *
 * Everything is computed transposed, keys down and queries across: then a query is a vector lane, a row's maximum and sum need no
 * horizontal steps, and the probabilities come out in just the layout in which the next product reads them.
 * One task is one (sequence, key-value head); visible keys of query i are start[i] <= j <= i, which says document masks and
 * sliding windows alike. */
#include "tiles.h"

#ifdef MATRIX_UNIT

enum { BLOCK = 32, PANEL = 64, FEW_TASKS = 6, LARGEST_SUMS = 8 << 20 /* floats */ };
#define LOG2E 1.44269504f

typedef struct {
    int batch, time, heads, groups, size, window;
    float scale;
    int64_t query_stride, key_stride, value_stride, out_stride; /* elements between tokens */
    const int32_t *starts;                                      /* batch x time, or NULL */
} Shape;

/* Between rows that run over time. Not a power of two: tile rows 1,024 tokens apart would all fall into one cache set. */
static inline int64_t apart(int64_t length) { return length + 32; }

static inline int64_t padded(int time) { return ((int64_t)time + PANEL - 1) / PANEL * PANEL; }

/* First visible key of each of the 32 queries of a block; lanes past the end see nothing. Returns the smallest. */
static int first_visible(const Shape *s, int sequence, int block, int32_t first[BLOCK]) {
    int lowest = block;
    for (int lane = 0; lane < BLOCK; lane++) {
        int i = block + lane, start = 0;
        if (i >= s->time) { first[lane] = INT32_MAX; continue; }
        if (s->starts) start = s->starts[(int64_t)sequence * s->time + i];
        if (s->window && i - s->window + 1 > start) start = i - s->window + 1;
        first[lane] = start;
        if (start < lowest) lowest = start;
    }
    return lowest;
}

static inline int highest(const int32_t first[BLOCK]) {
    int top = 0;
    for (int lane = 0; lane < BLOCK; lane++) top = first[lane] > top ? first[lane] : top;
    return top;
}

static void copy_rows(const bf16 *source, int64_t stride, int time, int size, bf16 *copy) {
    for (int t = 0; t < time; t++) memcpy(copy + (int64_t)t * size, source + t * stride, sizeof(bf16) * (size_t)size);
    memset(copy + (int64_t)time * size, 0, sizeof(bf16) * (size_t)(padded(time) - time) * (size_t)size);
}

/* rows x size -> size x padded rows */
static void copy_transposed(const bf16 *rows, int64_t length, int size, bf16 *out, int64_t stride) {
    for (int64_t t = 0; t < length; t += 32)
        for (int d = 0; d < size; d += 32)
            for (int half = 0; half < 32; half += 16) {
                __m512i r[16]; /* 16 pairs of tokens, each 16 columns: words are (token 2i, token 2i+1) after interleaving */
                for (int pair = 0; pair < 16; pair++) {
                    const bf16 *p = rows + (t + 2 * pair) * size + d + half;
                    __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
                    __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + size)));
                    r[pair] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
                }
                transpose16(r);
                for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + (int64_t)(d + half + i) * stride + t, r[i]);
            }
}

/* The queries (or output gradients) of one block as B tiles over their columns: [size/32][2] tiles. */
static void pack_block(const bf16 *source, int64_t stride, int present, int size, bf16 *tiles) {
    for (int k = 0; k < size / 32; k++)
        for (int side = 0; side < 2; side++) {
            int here = present - 16 * side;
            pack_rows_as_columns(source + 16 * side * stride + 32 * k, stride, here < 0 ? 0 : here, tiles + (2 * k + side) * 512);
        }
}

/* 32 x 32 sums over `steps`, at c or added to what is there: rows of A at a_stride, the two B tiles side by side; from step to step both move on. */
static inline void tile_products(const bf16 *a, int64_t a_stride, int64_t a_step, const bf16 *b, int64_t b_step, int steps, float *c, int64_t c_stride, int more) {
    if (MADE_OF_VECTORS) { /* each value of A is spread over a register once for both tiles of B */
        Unit unit;
        float *const squares[4] = {c, c + 16, c + 16 * c_stride, c + 16 * c_stride + 16};
        square_begin(&unit, squares, c_stride * 4, more);
        square_multiply(&unit, (Rows){a, a + 16 * a_stride, a_stride * 2, a_step}, (Columns){.first = b, .second = b + 512, .step = b_step}, steps, &NO_EXTRA);
        square_end(&unit, squares, c_stride * 4);
        return;
    }
    for (int side = 0; side < 2; side++, b += 512, c += 16) {
        Unit unit;
        pair_begin(&unit, c, c + 16 * c_stride, c_stride * 4, more);
        pair_multiply(&unit, (Rows){a, a + 16 * a_stride, a_stride * 2, a_step}, (Columns){.first = b, .step = b_step}, steps);
        pair_end(&unit, c, c + 16 * c_stride, c_stride * 4);
    }
}

/* out[32 keys][32 queries] = keys (32 x size, row-major) times packed queries */
static inline void block_product(const bf16 *keys, int size, const bf16 *packed, float *out) {
    tile_products(keys, size, 32, packed, 1024, size / 32, out, BLOCK, 0);
}

/* [size][32] floats, times factor per lane -> rows of bf16 */
static void store_transposed(const float *columns, int64_t stride, const float factor[BLOCK], int present, int size, bf16 *out, int64_t out_stride) {
    for (int side = 0; side < 2; side++) {
        __m512 f = _mm512_loadu_ps(factor + 16 * side);
        for (int d = 0; d < size; d += 16) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) r[i] = _mm512_castps_si512(_mm512_mul_ps(f, _mm512_loadu_ps(columns + (d + i) * stride + 16 * side)));
            transpose16(r);
            for (int i = 0; i < 16 && 16 * side + i < present; i++)
                _mm256_storeu_si256((__m256i *)(out + (16 * side + i) * out_stride + d), (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(r[i])));
        }
    }
}

/* Softmax down the columns of scores[j][32] for keys [low, high); probabilities as B tiles over keys; returns sums and log-sums. */
static void softmax_block(const Shape *s, float *scores, int low, int high, int block, const int32_t first[BLOCK], bf16 *tiles,
                          float inverse[BLOCK], float log_sum[BLOCK]) {
    float factor = s->scale * LOG2E;
    int all_first = highest(first), all_last = block;
    for (int side = 0; side < 2; side++) {
        __m512i lane_first = _mm512_loadu_si512(first + 16 * side);
        __m512i lane_last = _mm512_add_epi32(_mm512_set1_epi32(block + 16 * side), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        __m512 top = _mm512_set1_ps(-1e30f), total = _mm512_setzero_ps();
        for (int j = low; j < high; j++) {
            float *row = scores + (int64_t)(j - low) * BLOCK + 16 * side;
            __m512 value = _mm512_mul_ps(_mm512_loadu_ps(row), _mm512_set1_ps(factor));
            if (j < all_first || j > all_last) {
                __m512i key = _mm512_set1_epi32(j);
                __mmask16 seen = _mm512_cmple_epi32_mask(lane_first, key) & _mm512_cmple_epi32_mask(key, lane_last);
                value = _mm512_mask_blend_ps(seen, _mm512_set1_ps(-1e30f), value);
            }
            top = _mm512_max_ps(top, value);
            _mm512_storeu_ps(row, value);
        }
        top = _mm512_max_ps(top, _mm512_set1_ps(-1e29f)); /* a lane that sees nothing: all its exponentials become zero */
        for (int j = low; j < high; j += 2) {
            float *row = scores + (int64_t)(j - low) * BLOCK + 16 * side;
            __m512 even = exp2_16(_mm512_sub_ps(_mm512_loadu_ps(row), top)), odd = exp2_16(_mm512_sub_ps(_mm512_loadu_ps(row + BLOCK), top));
            total = _mm512_add_ps(total, _mm512_add_ps(even, odd));
            int at = (j - low) / 32, pair = (j - low) % 32 / 2;
            _mm512_storeu_si512(tiles + (2 * at + side) * 512 + pair * 32, pair_up(even, odd));
        }
        __m512 safe = _mm512_max_ps(total, _mm512_set1_ps(1e-30f));
        _mm512_storeu_ps(inverse + 16 * side, _mm512_div_ps(_mm512_set1_ps(1.0f), safe));
        float sums[16], tops[16];
        _mm512_storeu_ps(sums, safe);
        _mm512_storeu_ps(tops, top);
        for (int i = 0; i < 16; i++) log_sum[16 * side + i] = tops[i] + log2f(sums[i]);
    }
}

/* An odd number of tasks keeps one of two threads waiting: the last one is two units, of its earlier and its later queries, which see
 * about as many keys. The number of threads does not decide. */
static int units_of(int tasks) { return tasks + tasks % 2; }

static void queries_of(int unit, int tasks, int time, int *begin, int *end) {
    int cut = (int)(0.7071 * time) / PANEL * PANEL, is_cut = tasks % 2 && unit >= tasks - 1;
    *begin = is_cut && unit == tasks ? cut : 0;
    *end = is_cut && unit < tasks ? cut : time;
}

/* out: batch x time x heads*size; log_sums: batch x heads x time, base 2 and of the scaled scores. Returns 0, or 1 without memory. */
int owngpt_attention(const bf16 *query, int64_t query_stride, const bf16 *key, int64_t key_stride, const bf16 *value, int64_t value_stride,
                     bf16 *out, float *log_sums, const int32_t *starts, int batch, int time, int heads, int groups, int size,
                     int window, float scale, int threads) {
    Shape s = {batch, time, heads, groups, size, window, scale, query_stride, key_stride, value_stride, (int64_t)heads * size, starts};
    int64_t length = padded(time), stride = apart(length);
    /* A task reads keys once for several heads where there are enough tasks to deal out, or as many for each thread. */
    int together = batch * groups >= 4 * threads || batch * groups % threads == 0 ? heads / groups : 1, tasks = batch * (heads / together), failed = 0;
#pragma omp parallel num_threads(threads)
    {
        char *memory = aligned_alloc(64, (size_t)((length + stride) * size * 2 + length * BLOCK * 6 + size * BLOCK * 6 + 4096));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        bf16 *keys = (bf16 *)memory, *values_t = keys + length * size, *tiles = values_t + stride * size, *packed = tiles + length * BLOCK;
        float *scores = (float *)(packed + size * BLOCK), *columns = scores + length * BLOCK;
        tiles_begin();
#pragma omp for schedule(dynamic) /* the result is the same on any thread */
        for (int unit = 0; unit < units_of(tasks); unit++) {
            if (!memory) continue;
            int task = unit < tasks ? unit : tasks - 1, begin, end;
            queries_of(unit, tasks, time, &begin, &end);
            int b = task / (heads / together), from = task % (heads / together) * together, g = from / (heads / groups);
            int64_t base = (int64_t)b * time;
            copy_rows(value + base * value_stride + (int64_t)g * size, value_stride, time, size, keys);
            copy_transposed(keys, length, size, values_t, stride);
            copy_rows(key + base * key_stride + (int64_t)g * size, key_stride, time, size, keys);
            for (int h = from; h < from + together; h++)
                for (int block = begin; block < end; block += BLOCK) {
                    int present = time - block < BLOCK ? time - block : BLOCK, high = block + BLOCK;
                    int32_t first[BLOCK];
                    float inverse[BLOCK], log_sum[BLOCK];
                    int low = first_visible(&s, b, block, first) / 32 * 32;
                    pack_block(query + (base + block) * query_stride + (int64_t)h * size, query_stride, present, size, packed);
                    for (int j = low; j < high; j += 32) block_product(keys + (int64_t)j * size, size, packed, scores + (int64_t)(j - low) * BLOCK);
                    softmax_block(&s, scores, low, high, block, first, tiles, inverse, log_sum);
                    for (int d = 0; d < size; d += 32)
                        tile_products(values_t + (int64_t)d * stride + low, stride, 32, tiles, 1024, (high - low) / 32, columns + d * BLOCK, BLOCK, 0);
                    store_transposed(columns, BLOCK, inverse, present, size, out + (base + block) * s.out_stride + (int64_t)h * size, s.out_stride);
                    memcpy(log_sums + ((int64_t)b * heads + h) * time + block, log_sum, sizeof(float) * (size_t)present);
                }
        }
        tiles_end();
        free(memory);
    }
    return failed;
}

typedef struct {
    bf16 *keys, *values, *keys_t;                              /* [length][size] twice, [size][stride] */
    bf16 *query_columns, *grad_columns;                        /* B tiles over columns, per block of 32 queries */
    bf16 *query_pairs, *grad_pairs;                            /* B tiles over rows: [length/32][size/16] tiles */
    bf16 *weights, *slopes, *slope_tiles;                      /* a panel: [64][stride] twice; per block [2 steps][2] tiles */
    float *d_keys, *d_values, *d_query_t;                      /* [length][size] twice, [length/32][size][32] */
    float *delta, *log_sum;                                    /* [length] */
    float scores[BLOCK * BLOCK], products[BLOCK * BLOCK];
} Workspace;

static size_t workspace_bytes(int64_t length, int size) {
    return (size_t)(apart(length) * size * (2 * 7 + 4 * 3) + apart(length) * PANEL * 6 + length * 8) + 4096;
}

static void workspace_lay(Workspace *w, char *memory, int64_t length, int size) {
    bf16 *half = (bf16 *)memory;
    bf16 **parts[] = {&w->keys, &w->values, &w->keys_t, &w->query_columns, &w->grad_columns, &w->query_pairs, &w->grad_pairs};
    for (int i = 0; i < 7; i++, half += apart(length) * size) *parts[i] = half;
    w->weights = half, w->slopes = half + apart(length) * PANEL, w->slope_tiles = half + 2 * apart(length) * PANEL;
    float *full = (float *)(half + 3 * apart(length) * PANEL);
    w->d_keys = full, w->d_values = full + length * size, w->d_query_t = full + 2 * length * size;
    w->delta = full + 3 * length * size, w->log_sum = w->delta + length;
}

/* Of two rows, in 16 parts. */
static inline __m512 row_product(const bf16 *a, const bf16 *b, int size) {
    __m512 sum = _mm512_setzero_ps();
    for (int d = 0; d < size; d += 32) sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a + d), (__m512bh)_mm512_loadu_si512(b + d));
    return sum;
}

/* All that one head's queries bring to the products, and delta = sum(d_out * out) per query. */
static void load_head(const Shape *s, Workspace *w, const bf16 *query, const bf16 *out, const bf16 *d_out, const float *log_sums, int64_t length) {
    int size = s->size;
    for (int block = 0; block < length; block += BLOCK) {
        int present = s->time - block < BLOCK ? s->time - block : BLOCK;
        if (present < 0) present = 0;
        const bf16 *q = query + block * s->query_stride, *g = d_out + block * s->out_stride, *o = out + block * s->out_stride;
        pack_block(q, s->query_stride, present, size, w->query_columns + (int64_t)block * size);
        pack_block(g, s->out_stride, present, size, w->grad_columns + (int64_t)block * size);
        for (int d = 0; d < size; d += 16) {
            pack_row_pairs(q + d, s->query_stride, present, w->query_pairs + (int64_t)block * size + d * 32);
            pack_row_pairs(g + d, s->out_stride, present, w->grad_pairs + (int64_t)block * size + d * 32);
        }
        for (int side = 0; side < BLOCK; side += 16) {
            __m512 dots[16];
            UNROLL
            for (int i = 0; i < 16; i++) dots[i] = row_product(g + (side + i) * s->out_stride, o + (side + i) * s->out_stride, side + i < present ? size : 0);
            _mm512_storeu_ps(w->delta + block + side, sums16(dots));
        }
        for (int i = 0; i < BLOCK; i++) w->log_sum[block + i] = i < present ? log_sums[block + i] : 1e30f;
    }
}

/* Probabilities and their slopes of 32 keys x 32 queries: rows for the key-side products, tiles for the query side. */
static void slope_block(const Shape *s, Workspace *w, int j0, int block, const int32_t first[BLOCK], int all_first, bf16 *weights, bf16 *slopes,
                        int64_t stride, bf16 *tiles) {
    for (int side = 0; side < 2; side++) {
        __m512 log_sum = _mm512_loadu_ps(w->log_sum + block + 16 * side), delta = _mm512_loadu_ps(w->delta + block + 16 * side);
        __m512 factor = _mm512_set1_ps(s->scale * LOG2E), scale = _mm512_set1_ps(s->scale);
        __m512i lane_first = _mm512_loadu_si512(first + 16 * side);
        __m512i lane_last = _mm512_add_epi32(_mm512_set1_epi32(block + 16 * side), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        for (int j = 0; j < BLOCK; j += 2) {
            __m512 slope[2];
            for (int odd = 0; odd < 2; odd++) {
                int at = (j + odd) * BLOCK + 16 * side;
                __m512 p = exp2_16(_mm512_fmsub_ps(_mm512_loadu_ps(w->scores + at), factor, log_sum));
                if (j0 + j + odd < all_first || j0 + j + odd > block) {
                    __m512i key = _mm512_set1_epi32(j0 + j + odd);
                    p = _mm512_maskz_mov_ps(_mm512_cmple_epi32_mask(lane_first, key) & _mm512_cmple_epi32_mask(key, lane_last), p);
                }
                slope[odd] = _mm512_mul_ps(_mm512_mul_ps(p, scale), _mm512_sub_ps(_mm512_loadu_ps(w->products + at), delta));
                _mm256_storeu_si256((__m256i *)(weights + (j + odd) * stride + 16 * side), (__m256i)_mm512_cvtneps_pbh(p));
                _mm256_storeu_si256((__m256i *)(slopes + (j + odd) * stride + 16 * side), (__m256i)_mm512_cvtneps_pbh(slope[odd]));
            }
            _mm512_storeu_si512(tiles + side * 512 + j / 2 * 32, pair_up(slope[0], slope[1]));
        }
    }
}

/* sum[64 keys][size] += panel rows (64 x queries [from, to)) times the head's pairs */
static void panel_product(const bf16 *panel, int64_t stride, const bf16 *pairs, int from, int to, int size, float *sum) {
    for (int half = 0; half < PANEL; half += 32)
        for (int d = 0; d < size; d += 32)
            tile_products(panel + half * stride + from, stride, 32, pairs + (int64_t)from * size + d * 32, 32 * size, (to - from) / 32,
                          sum + (int64_t)half * size + d, size, 1);
}

/* d_query_t of a block += keys_t (size x 64 keys) times the slopes of the panel */
static void query_product(const Workspace *w, int j0, int block, int64_t stride, int size, const bf16 *tiles) {
    for (int d = 0; d < size; d += 32)
        tile_products(w->keys_t + (int64_t)d * stride + j0, stride, 32, tiles, 1024, 2, w->d_query_t + (int64_t)block * size + d * BLOCK, BLOCK, 1);
}

/* What queries [begin, end) make of it; both are whole panels, or the end of all. */
static void head_backward(const Shape *s, Workspace *w, int sequence, int64_t length, int begin, int end) {
    int size = s->size;
    int64_t stride = apart(length);
    memset(w->d_query_t, 0, sizeof(float) * (size_t)(length * size));
    int to = end < s->time ? end : (int)length;
    for (int j0 = 0; j0 < end; j0 += PANEL) {
        int from = j0 > begin ? j0 : begin;
        for (int block = from; block < to; block += BLOCK) {
            int32_t first[BLOCK];
            int lowest = first_visible(s, sequence, block, first), all_first = highest(first);
            bf16 *tiles = w->slope_tiles + (int64_t)block * PANEL;
            if (lowest >= j0 + PANEL || block >= s->time) { /* nobody here sees this panel */
                for (int j = 0; j < PANEL; j++) {
                    memset(w->weights + j * stride + block, 0, BLOCK * sizeof(bf16));
                    memset(w->slopes + j * stride + block, 0, BLOCK * sizeof(bf16));
                }
                continue;
            }
            for (int half = 0; half < PANEL; half += 32) {
                if (j0 + half > block) { /* the diagonal: these keys are later than all the queries */
                    for (int j = half; j < half + 32; j++) {
                        memset(w->weights + j * stride + block, 0, BLOCK * sizeof(bf16));
                        memset(w->slopes + j * stride + block, 0, BLOCK * sizeof(bf16));
                    }
                    memset(tiles + half / 32 * 1024, 0, 1024 * sizeof(bf16));
                    continue;
                }
                const bf16 *columns = w->query_columns + (int64_t)block * size, *grads = w->grad_columns + (int64_t)block * size;
                block_product(w->keys + (int64_t)(j0 + half) * size, size, columns, w->scores);
                block_product(w->values + (int64_t)(j0 + half) * size, size, grads, w->products);
                slope_block(s, w, j0 + half, block, first, all_first, w->weights + half * stride + block, w->slopes + half * stride + block, stride,
                            tiles + half / 32 * 1024);
            }
            query_product(w, j0, block, stride, size, tiles);
        }
        panel_product(w->weights, stride, w->grad_pairs, from, to, size, w->d_values + (int64_t)j0 * size);
        panel_product(w->slopes, stride, w->query_pairs, from, to, size, w->d_keys + (int64_t)j0 * size);
    }
}

static void store_rows(const float *rows, int time, int size, bf16 *out, int64_t stride) {
    for (int t = 0; t < time; t++)
        for (int d = 0; d < size; d += 16)
            _mm256_storeu_si256((__m256i *)(out + t * stride + d), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(rows + (int64_t)t * size + d)));
}

/* A row of all parts, in their order. */
static inline void store_sum(const float *row, int64_t from_part_to_part, int parts, int size, bf16 *out) {
    for (int d = 0; d < size; d += 16) {
        __m512 sum = _mm512_loadu_ps(row + d);
        for (int part = 1; part < parts; part++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(row + part * from_part_to_part + d));
        _mm256_storeu_si256((__m256i *)(out + d), (__m256i)_mm512_cvtneps_pbh(sum));
    }
}

/* d_query, d_key, d_value share one row stride. */
int owngpt_attention_backward(const bf16 *query, int64_t query_stride, const bf16 *key, int64_t key_stride, const bf16 *value, int64_t value_stride,
                              const bf16 *out, const bf16 *d_out, const float *log_sums, bf16 *d_query, bf16 *d_key, bf16 *d_value,
                              int64_t d_stride, const int32_t *starts, int batch, int time, int heads, int groups, int size, int window,
                              float scale, int threads) {
    Shape s = {batch, time, heads, groups, size, window, scale, query_stride, key_stride, value_stride, (int64_t)heads * size, starts};
    int64_t length = padded(time), stride = apart(length);
    int shared = heads / groups, failed = 0;
    /* Few sequences: a task for each head instead of each group, whose sums are added up in the end. The number of threads does not decide. */
    int64_t sums_size = (int64_t)units_of(batch * heads) * 2 * length * size;
    float *apart_sums = shared > 1 && batch * groups < FEW_TASKS && sums_size <= LARGEST_SUMS ? malloc((size_t)sums_size * sizeof(float)) : NULL;
    int together = apart_sums ? 1 : shared, tasks = batch * (heads / together), units = apart_sums ? units_of(tasks) : tasks;
    float ones[BLOCK];
    for (int i = 0; i < BLOCK; i++) ones[i] = 1.0f;
#pragma omp parallel num_threads(threads)
    {
        Workspace *w = aligned_alloc(64, (sizeof(Workspace) + 63) / 64 * 64);
        char *memory = aligned_alloc(64, (workspace_bytes(length, size) + 63) / 64 * 64);
        if (!memory || !w) {
#pragma omp atomic write
            failed = 1;
        } else {
            workspace_lay(w, memory, length, size);
        }
        tiles_begin();
#pragma omp for schedule(dynamic) /* a task is the same on any thread */
        for (int unit = 0; unit < units; unit++) {
            if (!memory || !w || failed) continue;
            int task = unit < tasks ? unit : tasks - 1, begin = 0, end = time;
            if (apart_sums) queries_of(unit, tasks, time, &begin, &end);
            int b = task / (heads / together), from = task % (heads / together) * together, g = from / shared;
            int64_t base = (int64_t)b * time;
            if (apart_sums) w->d_keys = apart_sums + (int64_t)unit * 2 * length * size, w->d_values = w->d_keys + length * size;
            copy_rows(key + base * key_stride + (int64_t)g * size, key_stride, time, size, w->keys);
            copy_rows(value + base * value_stride + (int64_t)g * size, value_stride, time, size, w->values);
            copy_transposed(w->keys, length, size, w->keys_t, stride);
            memset(w->d_keys, 0, sizeof(float) * (size_t)(2 * length * size));
            for (int h = from; h < from + together; h++) {
                int64_t at = base * s.out_stride + (int64_t)h * size;
                load_head(&s, w, query + base * query_stride + (int64_t)h * size, out + at, d_out + at, log_sums + ((int64_t)b * heads + h) * time, length);
                head_backward(&s, w, b, length, begin, end);
                for (int block = begin; block < end; block += BLOCK)
                    store_transposed(w->d_query_t + (int64_t)block * size, BLOCK, ones, time - block < BLOCK ? time - block : BLOCK, size,
                                     d_query + (base + block) * d_stride + (int64_t)h * size, d_stride);
            }
            if (apart_sums) continue;
            store_rows(w->d_keys, time, size, d_key + base * d_stride + (int64_t)g * size, d_stride);
            store_rows(w->d_values, time, size, d_value + base * d_stride + (int64_t)g * size, d_stride);
        }
        if (apart_sums) {
#pragma omp for collapse(2) schedule(static)
            for (int task = 0; task < batch * groups; task++)
                for (int t = 0; t < time; t++) {
                    const float *sums = apart_sums + ((int64_t)task * shared * 2 * length + t) * size;
                    int64_t to = ((int64_t)(task / groups) * time + t) * d_stride + (int64_t)(task % groups) * size;
                    int parts = shared + (task == batch * groups - 1 ? units - tasks : 0);
                    store_sum(sums, 2 * length * size, parts, size, d_key + to);
                    store_sum(sums + length * size, 2 * length * size, parts, size, d_value + to);
                }
        }
        tiles_end();
        free(memory);
        free(w);
    }
    free(apart_sums);
    return failed;
}
#endif
