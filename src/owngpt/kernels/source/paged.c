/* Attention over a key-value cache in blocks of 32 tokens (paged attention, arXiv 2309.06180), for many sequences at once.
 *
 * A block of one key-value head holds its keys as B tiles (tiles.h) over head elements, [size/32][2 x 16 keys][16 pairs][16 keys][2],
 * and its values as B tiles over keys, [size/16][16 key pairs][16 elements][2]: what is stored is what both the tile products of
 * a prompt and the vector products of one new token read, and nothing is gathered or transposed again.
 * A segment is one sequence's part of a call: `count` tokens that follow `before` ones in its cache. */
#include "steps.h"

#ifdef MATRIX_UNIT

enum { PAGE = 32, QUERIES = 32 };
#define LOG2E 1.44269504f

typedef struct {
    int32_t first, count, before, table; /* first row of the call; tokens; tokens in the cache before; where its blocks begin in `tables` */
} Segment;

typedef struct {
    const Segment *segments;
    const int32_t *tables;
    bf16 *keys, *values; /* this layer's: blocks x groups x (32 * size) */
    int64_t heads, groups, size, window;
    float scale;
    const float *sinks;
    const bf16 *query; /* rows of query_stride */
    int64_t query_stride;
    bf16 *out; /* rows x heads*size */
} Paged;

static inline int64_t block_at(const Paged *p, const Segment *s, int64_t token, int64_t group) {
    return ((int64_t)p->tables[s->table + token / PAGE] * p->groups + group) * PAGE * p->size;
}

/* Rows of a call that become tokens [at, at + count) of a block, of one group; size is a multiple of 32. */
typedef struct {
    const bf16 *rows;
    int64_t stride, size, at, count;
} Tokens;

/* 16 tokens from a sixteenth one on are turned in registers: whole cache lines instead of words. */
static void append_keys(Tokens t, bf16 *block) {
    uint32_t *pairs = (uint32_t *)block;
    for (int64_t i = 0; i < t.count;) {
        int64_t at = t.at + i;
        const uint32_t *key = (const uint32_t *)(t.rows + i * t.stride);
        if (at % 16 || t.count - i < 16) {
            for (int64_t d = 0; d < t.size / 2; d++) pairs[(d / 16 * 2 + at / 16) * 256 + d % 16 * 16 + at % 16] = key[d];
            i++;
            continue;
        }
        for (int64_t d = 0; d < t.size / 2; d += 16) {
            __m512i r[16];
            UNROLL
            for (int n = 0; n < 16; n++) r[n] = _mm512_loadu_si512(t.rows + (i + n) * t.stride + 2 * d);
            transpose16(r);
            UNROLL
            for (int n = 0; n < 16; n++) _mm512_storeu_si512(pairs + (d / 16 * 2 + at / 16) * 256 + 16 * n, r[n]);
        }
        i += 16;
    }
}

/* Two tokens from an even one on fill whole lines. */
static void append_values(Tokens t, bf16 *block) {
    for (int64_t i = 0; i < t.count;) {
        int64_t at = t.at + i;
        const bf16 *value = t.rows + i * t.stride;
        bf16 *store = block + at / 2 * 32 + at % 2;
        int together = at % 2 == 0 && t.count - i > 1;
        for (int64_t d = 0; d < t.size; d += 16) {
            __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(value + d)));
            if (together) {
                __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(value + t.stride + d)));
                _mm512_storeu_si512(store + d * 32, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
            } else
                for (int64_t n = 0; n < 16; n++) store[d * 32 + n * 2] = value[d + n];
        }
        i += 1 + together;
    }
}

/* slots: segments, their number, tables, keys, values, groups, size, key (rows of stride), stride, value, stride. */
void owngpt_step_append(const int64_t *slots, Worker *worker) {
    int me = worker->me, threads = worker->threads;
    Paged p = {.segments = POINTER(const Segment, 0), .tables = POINTER(const int32_t, 2), .keys = POINTER(bf16, 3),
               .values = POINTER(bf16, 4), .groups = slots[5], .size = slots[6]};
    for (int64_t n = 0; n < slots[1]; n++) {
        const Segment *s = p.segments + n;
        int64_t first, last, end = s->before + s->count; /* a group stays with one thread: no word is written by two */
        row_share(p.groups, me, threads, &first, &last);
        for (int64_t g = first; g < last; g++)
            for (int64_t token = s->before, next; token < end; token = next) {
                next = (token / PAGE + 1) * PAGE < end ? (token / PAGE + 1) * PAGE : end;
                int64_t row = s->first + token - s->before, block = block_at(&p, s, token, g);
                append_keys((Tokens){POINTER(const bf16, 7) + row * slots[8] + g * p.size, slots[8], p.size, token % PAGE, next - token}, p.keys + block);
                append_values((Tokens){POINTER(const bf16, 9) + row * slots[10] + g * p.size, slots[10], p.size, token % PAGE, next - token}, p.values + block);
            }
    }
}

/* Token `at` of a segment, the `many` query heads of one group from `head` on. scores: many x padded context floats; weights: as many bf16. */
static inline __attribute__((always_inline)) void attend_one(const Paged *p, const Segment *s, int64_t at, int64_t head, const int many, float *scores, bf16 *weights) {
    int64_t size = p->size, end = s->before + at + 1, group = head / (p->heads / p->groups), room = (end + PAGE - 1) / PAGE * PAGE;
    int64_t low = p->window && end > p->window ? end - p->window : 0, start = low / PAGE * PAGE;
    const bf16 *query = p->query + (s->first + at) * p->query_stride + head * size;
    __m512 factor = _mm512_set1_ps(p->scale * LOG2E), top[many];
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    UNROLL
    for (int h = 0; h < many; h++) top[h] = _mm512_set1_ps(-1e30f);
    for (int64_t j = start; j < end; j += PAGE) {
        const bf16 *keys = p->keys + block_at(p, s, j, group);
        __m512 sums[many][2];
        UNROLL
        for (int h = 0; h < many; h++) sums[h][0] = sums[h][1] = _mm512_setzero_ps();
        for (int64_t d = 0; d < size / 2; d++) {
            const bf16 *tile = keys + d / 16 * 1024 + d % 16 * 32;
            __m512bh k0 = (__m512bh)_mm512_loadu_si512(tile), k1 = (__m512bh)_mm512_loadu_si512(tile + 512);
            UNROLL
            for (int h = 0; h < many; h++) {
                __m512bh q = (__m512bh)_mm512_set1_epi32(((const int32_t *)(query + h * size))[d]);
                sums[h][0] = _mm512_dpbf16_ps(sums[h][0], k0, q);
                sums[h][1] = _mm512_dpbf16_ps(sums[h][1], k1, q);
            }
        }
        for (int side = 0; side < 2; side++) {
            __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)(j + 16 * side)));
            __mmask16 seen = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32((int)low)) & _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32((int)end));
            UNROLL
            for (int h = 0; h < many; h++) {
                __m512 value = _mm512_mask_blend_ps(seen, _mm512_set1_ps(-1e30f), _mm512_mul_ps(sums[h][side], factor));
                top[h] = _mm512_max_ps(top[h], value);
                _mm512_storeu_ps(scores + h * room + j + 16 * side, value);
            }
        }
    }
    float inverse[many];
    UNROLL
    for (int h = 0; h < many; h++) {
        float highest = _mm512_reduce_max_ps(top[h]), sink = p->sinks ? p->sinks[head + h] * LOG2E : -1e30f;
        if (sink > highest) highest = sink;
        __m512 total = _mm512_setzero_ps(), shift = _mm512_set1_ps(highest);
        for (int64_t j = start; j < room; j += 16) {
            __m512 value = exp2_16(_mm512_sub_ps(_mm512_loadu_ps(scores + h * room + j), shift));
            total = _mm512_add_ps(total, value);
            _mm256_storeu_si256((__m256i *)(weights + h * room + j), (__m256i)_mm512_cvtneps_pbh(value));
        }
        inverse[h] = 1.0f / (_mm512_reduce_add_ps(total) + (p->sinks ? exp2f(sink - highest) : 0.0f));
    }
    for (int64_t d = 0; d < size; d += 32) { /* two sums a head: each waits for its last product */
        __m512 sums[many][2];
        UNROLL
        for (int h = 0; h < many; h++) sums[h][0] = sums[h][1] = _mm512_setzero_ps();
        for (int64_t j = start; j < end; j += PAGE) {
            const bf16 *tile = p->values + block_at(p, s, j, group) + d / 16 * 512;
            for (int pair = 0; pair < 16; pair++, tile += 32) {
                __m512bh v0 = (__m512bh)_mm512_loadu_si512(tile), v1 = (__m512bh)_mm512_loadu_si512(tile + 512);
                UNROLL
                for (int h = 0; h < many; h++) {
                    __m512bh w = (__m512bh)_mm512_set1_epi32(((const int32_t *)(weights + h * room + j))[pair]);
                    sums[h][0] = _mm512_dpbf16_ps(sums[h][0], v0, w);
                    sums[h][1] = _mm512_dpbf16_ps(sums[h][1], v1, w);
                }
            }
        }
        UNROLL
        for (int h = 0; h < many; h++) {
            bf16 *out = p->out + (s->first + at) * p->heads * size + (head + h) * size + d;
            __m512 f = _mm512_set1_ps(inverse[h]);
            UNROLL
            for (int side = 0; side < 2; side++)
                _mm256_storeu_si256((__m256i *)(out + 16 * side), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sums[h][side], f)));
        }
    }
}

/* Softmax of one query's row of scores over keys [start, end), visible from low to last; weights as bf16; returns 1/sum. */
static float softmax_row(const Paged *p, float *scores, bf16 *weights, int64_t start, int64_t end, int64_t low, int64_t last, int64_t head) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 factor = _mm512_set1_ps(p->scale * LOG2E), top = _mm512_set1_ps(-1e30f), total = _mm512_setzero_ps();
    for (int64_t j = start; j < end; j += 16) {
        __m512 value = _mm512_loadu_ps(scores + j - start);
        if (j < low || j + 15 > last) {
            __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)j));
            __mmask16 seen = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32((int)low)) & _mm512_cmple_epi32_mask(key, _mm512_set1_epi32((int)last));
            value = _mm512_mask_blend_ps(seen, _mm512_set1_ps(-1e30f), value);
            _mm512_storeu_ps(scores + j - start, value);
        }
        top = _mm512_max_ps(top, value);
    }
    float highest = _mm512_reduce_max_ps(top) * p->scale * LOG2E, sink = p->sinks ? p->sinks[head] * LOG2E : -1e30f;
    if (sink > highest) highest = sink;
    __m512 shift = _mm512_set1_ps(highest);
    for (int64_t j = start; j < end; j += 16) {
        __m512 value = exp2_16(_mm512_fmsub_ps(_mm512_loadu_ps(scores + j - start), factor, shift));
        total = _mm512_add_ps(total, value);
        _mm256_storeu_si256((__m256i *)(weights + j - start), (__m256i)_mm512_cvtneps_pbh(value));
    }
    return 1.0f / (_mm512_reduce_add_ps(total) + (p->sinks ? exp2f(sink - highest) : 0.0f));
}

/* 32 queries of one head (those of the segment from `from` on) against all keys that any of them sees.
 * scores: 32 rows of floats, weights: of bf16, an odd number of cache lines apart: at a power of two all rows would share few places
 * of the caches. */
static void attend_many(const Paged *p, const Segment *s, int64_t head, int64_t from, float *scores, bf16 *weights) {
    int64_t size = p->size, group = head / (p->heads / p->groups), present = s->count - from < QUERIES ? s->count - from : QUERIES;
    int64_t position = s->before + from, end = (position + present + PAGE - 1) / PAGE * PAGE;
    int64_t low = p->window && position + 1 > p->window ? position + 1 - p->window : 0, start = low / PAGE * PAGE, room = end - start;
    int64_t wide = room + 16, narrow = (room / 32 | 1) * 32;
    bf16 query[QUERIES * 512] __attribute__((aligned(64)));
    float inverse[QUERIES], c[QUERIES * 32] __attribute__((aligned(64)));
    Unit unit;
    for (int64_t i = 0; i < QUERIES; i++) {
        if (i < present) memcpy(query + i * size, p->query + (s->first + from + i) * p->query_stride + head * size, sizeof(bf16) * (size_t)size);
        else memset(query + i * size, 0, sizeof(bf16) * (size_t)size);
    }
    for (int64_t j = start; j < end; j += PAGE) {
        const bf16 *keys = p->keys + block_at(p, s, j, group);
        for (int side = 0; side < 2; side++) {
            float *out = scores + j - start + 16 * side;
            pair_begin(&unit, out, out + 16 * wide, wide * 4, 0);
            pair_multiply(&unit, (Rows){query, query + 16 * size, size * 2, 32}, (Columns){.first = keys + 512 * side, .step = 1024}, size / 32);
            pair_end(&unit, out, out + 16 * wide, wide * 4);
        }
    }
    for (int64_t i = 0; i < QUERIES; i++) {
        int64_t last = position + i, first = p->window && last + 1 > p->window ? last + 1 - p->window : 0;
        if (i < present) inverse[i] = softmax_row(p, scores + i * wide, weights + i * narrow, start, end, first, last, head);
        else memset(weights + i * narrow, 0, sizeof(bf16) * (size_t)room);
    }
    for (int64_t d = 0; d < size; d += 32) {
        for (int side = 0; side < 2; side++) {
            float *first = c + 16 * side, *second = first + 16 * 32;
            pair_begin(&unit, first, second, 32 * 4, 0);
            for (int64_t j = start; j < end; j += PAGE) {
                const bf16 *values = p->values + block_at(p, s, j, group) + d / 16 * 512 + 512 * side, *w = weights + j - start;
                pair_multiply(&unit, (Rows){w, w + 16 * narrow, narrow * 2, 0}, (Columns){.first = values}, 1);
            }
            pair_end(&unit, first, second, 32 * 4);
        }
        for (int64_t i = 0; i < present; i++) {
            __m512 f = _mm512_set1_ps(inverse[i]);
            bf16 *out = p->out + (s->first + from + i) * p->heads * size + head * size + d;
            for (int side = 0; side < 32; side += 16)
                _mm256_storeu_si256((__m256i *)(out + side), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(f, _mm512_loadu_ps(c + i * 32 + side))));
        }
    }
}

static void attend_heads(const Paged *p, const Segment *s, int64_t at, int64_t head, int64_t many, float *scores, bf16 *weights) {
    for (; many >= 4; many -= 4, head += 4) attend_one(p, s, at, head, 4, scores, weights);
    if (many == 3) attend_one(p, s, at, head, 3, scores, weights);
    else if (many == 2) attend_one(p, s, at, head, 2, scores, weights);
    else if (many == 1) attend_one(p, s, at, head, 1, scores, weights);
}

/* Tokens of a segment that go one by one: where tiles are made of vectors, 32 at once would be the work of 32. */
enum { MOST_ONE_BY_ONE = MADE_OF_VECTORS ? 16 : 1 };

static int64_t units(const Paged *p, const Segment *s, int64_t together) {
    return s->count <= MOST_ONE_BY_ONE ? p->heads / together * s->count : p->heads * ((s->count + QUERIES - 1) / QUERIES);
}

/* slots: segments, their number, tables, keys, values, groups, size, query, its stride, out, heads, window, scale, sinks or NULL,
 * scratch bytes a thread and scratch: 32 x (padded context + 32) x 6 bytes each.
 * A share is 32 queries of a head, or a token's heads of one group where there are few tokens and enough of such shares. */
void owngpt_step_attend(const int64_t *slots, Worker *worker) {
    Paged p = {POINTER(const Segment, 0), POINTER(const int32_t, 2), POINTER(bf16, 3), POINTER(bf16, 4), slots[10], slots[5], slots[6],
               slots[11], NUMBER(12), POINTER(const float, 13), POINTER(const bf16, 7), slots[8], POINTER(bf16, 9)};
    char *scratch = POINTER(char, 15) + worker->me * slots[14];
    float *scores = (float *)scratch;
    bf16 *weights = (bf16 *)(scratch + slots[14] / 6 * 4);
    int64_t total = 0, at = 0, first = 0, last = 0, tokens = 0;
    for (int64_t n = 0; n < slots[1]; n++) tokens += p.segments[n].count;
    int64_t together = tokens * p.groups >= 2 * worker->threads ? p.heads / p.groups : 1;
    for (int64_t n = 0; n < slots[1]; n++) total += units(&p, p.segments + n, together);
    for (int64_t n = 0; n < slots[1]; n++) {
        const Segment *s = p.segments + n;
        int64_t one_by_one = s->count <= MOST_ONE_BY_ONE, many = one_by_one ? together : 1;
        for (int64_t head = 0; head < p.heads; head += many)
            for (int64_t q = 0; q < s->count; q += one_by_one ? 1 : QUERIES, at++) {
                if (at == last && !next_in_order(worker, total, &first, &last)) return;
                if (at < first) continue;
                if (one_by_one) attend_heads(&p, s, q, head, many, scores, weights);
                else attend_many(&p, s, head, q, scores, weights);
            }
    }
}
#endif
