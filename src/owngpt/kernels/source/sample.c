/* The next token of many texts at once: the likeliest, or one drawn by temperature, top-k, top-p, min-p and typical-p.
 *
 * Nothing is sorted. Where the k-th token or the last one of the nucleus lies is found by bisection of the logits. Ties go to the
 * lower id. Each row is computed by one thread and by itself, so that what is in the batch beside it changes nothing. */
#include "vectors.h"

enum { LANES = 16, BLOCK = 256, FEW = 48, LEVELS = 7 };
enum { NO_NUMBER = -1, NO_MEMORY = -2 };
#define LOG2_E 1.4426950408889634
#define NOTHING 125.0f /* so many powers of 2 below the likeliest a token has no probability */

typedef struct {
    double temperature, top_k, top_p, min_p, typical_p;
    double point; /* in [0, 1): where in the cumulative distribution the token is drawn */
} Settings;

/* Tokens in the order of their ids. Weights are probabilities relative to the likeliest token's; keys say who comes first. */
typedef struct {
    float *keys, *weights;
    int32_t *ids;
    int64_t count;
} Candidates;

typedef struct {
    double *sums;    /* of the weights of each block of tokens */
    float *highest;  /* logit of each block */
    float *weights;  /* of every token */
    Candidates left, scratch;
} Workspace;

typedef struct { float key; int32_t id; } Rank;

static inline int64_t block_end(int64_t start, int64_t count) { return start + BLOCK < count ? start + BLOCK : count; }

/* The highest of a block of logits; *wrong is set where one is not a number. */
static float highest_of(const float *x, int64_t count, int *wrong) {
    float most = -INFINITY;
    int64_t i = 0;
#ifdef WIDE_VECTORS
    __m512 lanes = _mm512_set1_ps(-INFINITY);
    __mmask16 odd = 0;
    for (; i + LANES <= count; i += LANES) {
        __m512 values = _mm512_loadu_ps(x + i);
        lanes = _mm512_max_ps(values, lanes); /* of a NaN and a number it takes the second */
        odd |= _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    }
    most = _mm512_reduce_max_ps(lanes);
    *wrong |= odd != 0;
#endif
    for (; i < count; i++) {
        most = x[i] > most ? x[i] : most;
        *wrong |= x[i] != x[i];
    }
    return most;
}

/* The highest logit, or NaN where one is not a number; fills in that of each block. */
static float find_highest(const float *x, int64_t vocab, float *highest) {
    float best = -INFINITY;
    int wrong = 0;
    for (int64_t start = 0; start < vocab; start += BLOCK) {
        float most = highest_of(x + start, block_end(start, vocab) - start, &wrong);
        highest[start / BLOCK] = most;
        best = most > best ? most : best;
    }
    return wrong ? NAN : best;
}

static int32_t first_of(const float *x, int64_t vocab, const float *highest, float value) {
    for (int64_t start = 0; start < vocab; start += BLOCK)
        if (highest[start / BLOCK] == value)
            for (int64_t i = start;; i++)
                if (x[i] == value) return (int32_t)i;
    return NO_NUMBER;
}

/* Fills in the weight of every token and the sums of blocks; scale is log2(e) / temperature. :returns: the sum of all. */
static double weigh(const float *x, int64_t vocab, float best, float scale, Workspace *work) {
    double total = 0.0;
    for (int64_t start = 0; start < vocab; start += BLOCK) {
        int64_t end = block_end(start, vocab);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = start; i < end; i++) {
            float power = (x[i] - best) * scale;
            float weight = power > -NOTHING ? exp2_fast(power) : 0.0f; /* below, the fast exponential would not reach 0 */
            work->weights[i] = weight;
            sum += weight;
        }
        total += work->sums[start / BLOCK] = sum;
    }
    return total;
}

static float sum_block(const float *weights, int64_t start, int64_t end) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < end; i++) sum += weights[i];
    return sum;
}

static double sum_of(const float *weights, int64_t count) {
    double sum = 0.0;
    for (int64_t start = 0; start < count; start += BLOCK) sum += sum_block(weights, start, block_end(start, count));
    return sum;
}

/* The place where the sum of weights exceeds a part of their total. Never one of no weight. */
static int64_t draw(const float *weights, int64_t count, const double *sums, double point, double total) {
    int64_t start = 0, last = -1;
    point *= total;
    for (; start + BLOCK < count; start += BLOCK) {
        double sum = sums ? sums[start / BLOCK] : sum_block(weights, start, start + BLOCK);
        if (point < sum) break;
        point -= sum;
    }
    for (int64_t i = start; i < count; i++) {
        if (weights[i] <= 0.0f) continue;
        last = i;
        point -= weights[i];
        if (point < 0.0) return i;
    }
    while (last < 0) /* rounding led past the last token that has a weight */
        if (weights[--start] > 0.0f) last = start;
    return last;
}

/* Append the tokens whose key is from `low` to below `high`, and where it is `low` only those up to an id.
 * ids may be NULL: then they are the places. In place it works too. */
static void append(const float *keys, const float *weights, const int32_t *ids, int64_t start, int64_t end, float low, int32_t last_id,
                   float high, Candidates *to) {
    int64_t i = start, count = to->count;
#ifdef WIDE_VECTORS
    __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + LANES <= end; i += LANES) {
        __m512 key = _mm512_loadu_ps(keys + i);
        __mmask16 within = _mm512_cmp_ps_mask(key, _mm512_set1_ps(low), _CMP_GE_OQ) & _mm512_cmp_ps_mask(key, _mm512_set1_ps(high), _CMP_LT_OQ);
        if (!within) continue;
        __m512i id = ids ? _mm512_loadu_si512(ids + i) : _mm512_add_epi32(places, _mm512_set1_epi32((int32_t)i));
        __m512 weight = _mm512_loadu_ps(weights + i);
        within &= _mm512_cmp_ps_mask(key, _mm512_set1_ps(low), _CMP_NEQ_UQ) | _mm512_cmp_epi32_mask(id, _mm512_set1_epi32(last_id), _MM_CMPINT_LE);
        _mm512_storeu_ps(to->keys + count, _mm512_maskz_compress_ps(within, key)); /* whole lanes: what is beyond is written over */
        _mm512_storeu_ps(to->weights + count, _mm512_maskz_compress_ps(within, weight));
        _mm512_storeu_si512(to->ids + count, _mm512_maskz_compress_epi32(within, id));
        count += __builtin_popcount(within);
    }
#endif
    for (; i < end; i++) {
        float key = keys[i], weight = weights[i];
        int32_t id = ids ? ids[i] : (int32_t)i;
        to->keys[count] = key, to->weights[count] = weight, to->ids[count] = id;
        count += key >= low && key < high && (key != low || id <= last_id);
    }
    to->count = count;
}

static void keep_between(Candidates *left, float low, int32_t last_id, float high) {
    int64_t count = left->count;
    left->count = 0;
    append(left->keys, left->weights, left->ids, 0, count, low, last_id, high, left);
}

/* Sum of the weights of a block's tokens with a key of at least `bound`; adds to their number. */
static float block_above(const float *keys, const float *weights, int64_t count, float bound, int64_t *number) {
    int64_t i = 0, many = 0;
    float mass = 0.0f;
#ifdef WIDE_VECTORS
    __m512 lanes = _mm512_setzero_ps();
    for (; i + LANES <= count; i += LANES) {
        __mmask16 above = _mm512_cmp_ps_mask(_mm512_loadu_ps(keys + i), _mm512_set1_ps(bound), _CMP_GE_OQ);
        lanes = _mm512_mask_add_ps(lanes, above, lanes, _mm512_loadu_ps(weights + i));
        many += __builtin_popcount(above);
    }
    mass = _mm512_reduce_add_ps(lanes);
#endif
    for (; i < count; i++)
        if (keys[i] >= bound) mass += weights[i], many++;
    *number += many;
    return mass;
}

static void sort_few(Candidates *few) {
    for (int64_t i = 1; i < few->count; i++) {
        float key = few->keys[i], weight = few->weights[i];
        int32_t id = few->ids[i];
        int64_t at = i;
        for (; at > 0 && few->keys[at - 1] < key; at--)
            few->keys[at] = few->keys[at - 1], few->weights[at] = few->weights[at - 1], few->ids[at] = few->ids[at - 1];
        few->keys[at] = key, few->weights[at] = weight, few->ids[at] = id;
    }
}

/* The token at which weights, or counts, summed from the highest key on, first reach the target; the last if none does.
 * Bisection of the keys, which leaves out what is decided, until there are few or only equal ones. Uses up `open`.
 * low, high: the open tokens' keys are from one to below the other; done: what those above them have. */
static Rank reaching(Candidates *open, float low, float high, double done, double target, int counting) {
    while (open->count > FEW && nextafterf(low, INFINITY) < high) {
        int64_t number = 0;
        double mass = 0.0;
        float middle = low + 0.5f * (high - low);
        if (middle <= low || middle >= high) middle = nextafterf(low, INFINITY);
        for (int64_t start = 0; start < open->count; start += BLOCK)
            mass += block_above(open->keys + start, open->weights + start, block_end(start, open->count) - start, middle, &number);
        if (counting) mass = (double)number;
        if (done + mass >= target) low = middle;
        else high = middle, done += mass;
        keep_between(open, low, INT32_MAX, high);
    }
    if (open->count <= FEW) sort_few(open); /* otherwise all are equal, and in order */
    Rank last = {low, INT32_MAX};
    for (int64_t i = 0; i < open->count && done < target; i++) {
        done += counting ? 1.0 : open->weights[i];
        last = (Rank){open->keys[i], open->ids[i]};
    }
    return last;
}

/* Drop what comes after the token that reaches the target. */
static void keep_reaching(Workspace *work, double target) {
    Candidates *left = &work->left;
    float low = INFINITY, high = -INFINITY;
    const float *keys = left->keys;
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < left->count; i++) {
        low = keys[i] < low ? keys[i] : low;
        high = keys[i] > high ? keys[i] : high;
    }
    work->scratch.count = 0;
    append(left->keys, left->weights, left->ids, 0, left->count, -INFINITY, INT32_MAX, INFINITY, &work->scratch);
    Rank last = reaching(&work->scratch, low, nextafterf(high, INFINITY), 0.0, target, 0);
    keep_between(left, last.key, last.id, INFINITY);
}

/* The same among all tokens. One pass says between which of a few levels the place is; only what lies there is looked at again. */
static Rank reaching_in_row(const float *x, int64_t vocab, float best, float scale, double target, int counting, Workspace *work) {
    static const float depths[LEVELS] = {2.0f, 4.0f, 6.0f, 9.0f, 13.0f, 20.0f, NOTHING}; /* in powers of 2 below the likeliest */
    double masses[LEVELS] = {0.0}, done = 0.0;
    float bounds[LEVELS], high = nextafterf(best, INFINITY);
    for (int level = 0; level < LEVELS; level++) bounds[level] = best - depths[level] / scale;
    for (int64_t start = 0; start < vocab; start += BLOCK)
        for (int level = LEVELS - 1; level >= 0 && work->highest[start / BLOCK] >= bounds[level]; level--) {
            int64_t number = 0;
            float mass = block_above(x + start, work->weights + start, block_end(start, vocab) - start, bounds[level], &number);
            masses[level] += counting ? (double)number : mass;
        }
    for (int level = 0; level < LEVELS; level++) {
        if (masses[level] >= target) {
            work->scratch.count = 0;
            for (int64_t start = 0; start < vocab; start += BLOCK)
                if (work->highest[start / BLOCK] >= bounds[level])
                    append(x, work->weights, NULL, start, block_end(start, vocab), bounds[level], INT32_MAX, high, &work->scratch);
            return reaching(&work->scratch, bounds[level], high, done, target, counting);
        }
        high = bounds[level], done = masses[level];
    }
    return (Rank){high, INT32_MAX};
}

/* Take the tokens from the highest logit down to one. */
static void collect(const float *x, int64_t vocab, Rank last, Workspace *work) {
    work->left.count = 0;
    for (int64_t start = 0; start < vocab; start += BLOCK)
        if (work->highest[start / BLOCK] >= last.key)
            append(x, work->weights, NULL, start, block_end(start, vocab), last.key, last.id, INFINITY, &work->left);
}

/* Keep the tokens whose information is nearest to the expected one, up to a share of the probability (arXiv 2202.00666). */
static void keep_typical(Workspace *work, float best, float scale, double share) {
    Candidates *left = &work->left;
    double total = sum_of(left->weights, left->count), mean = 0.0;
    for (int64_t i = 0; i < left->count; i++) mean += left->weights[i] * (double)(left->keys[i] - best) * scale;
    mean /= total; /* of the binary logarithms of the weights: the entropy without its constant */
    for (int64_t i = 0; i < left->count; i++) left->keys[i] = (float)-fabs((double)(left->keys[i] - best) * scale - mean);
    keep_reaching(work, share * total);
}

static void keep_likely(Candidates *left, float share) {
    int64_t kept = 0;
    for (int64_t i = 0; i < left->count; i++)
        if (left->weights[i] >= share) {
            left->keys[kept] = left->keys[i], left->weights[kept] = left->weights[i], left->ids[kept] = left->ids[i];
            kept++;
        }
    left->count = kept;
}

/* Leave the tokens that may be drawn; k is 0 for no limit, total the sum of all weights. */
static void truncate_row(const float *x, int64_t vocab, const Settings *s, int64_t k, float best, float scale, double total, Workspace *work) {
    Candidates *left = &work->left;
    Rank last = {best - NOTHING / scale, INT32_MAX};
    if (k) last = reaching_in_row(x, vocab, best, scale, (double)k, 1, work);
    else if (s->top_p < 1.0) last = reaching_in_row(x, vocab, best, scale, s->top_p * total, 0, work);
    else if (s->min_p > 0.0) last.key = fmaxf(last.key, best + ((float)log2(s->min_p) - 0.001f) / scale); /* it drops what is below */
    collect(x, vocab, last, work);
    if (k && s->top_p < 1.0) keep_reaching(work, s->top_p * sum_of(left->weights, left->count));
    if (s->min_p > 0.0) keep_likely(left, (float)s->min_p);
    if (s->typical_p < 1.0) keep_typical(work, best, scale, s->typical_p);
}

static int32_t choose(const float *x, int64_t vocab, const Settings *s, Workspace *work) {
    float best = find_highest(x, vocab, work->highest);
    if (!isfinite(best)) return NO_NUMBER;
    if (s->temperature <= 0.0) return first_of(x, vocab, work->highest, best);
    float scale = (float)fmin(LOG2_E / s->temperature, 1e30);
    double total = weigh(x, vocab, best, scale, work);
    int64_t k = s->top_k > 0.0 && s->top_k < (double)vocab ? (int64_t)s->top_k : 0;
    if (!k && s->top_p >= 1.0 && s->min_p <= 0.0 && s->typical_p >= 1.0)
        return (int32_t)draw(work->weights, vocab, work->sums, s->point, total);
    truncate_row(x, vocab, s, k, best, scale, total, work);
    Candidates *left = &work->left;
    return left->ids[draw(left->weights, left->count, NULL, s->point, sum_of(left->weights, left->count))];
}

/* rows: an address of `vocab` logits for each row; settings: 6 numbers a row; chosen: a token a row, or why there is none. */
void owngpt_sample(const float *const *rows, const Settings *settings, int32_t *chosen, int64_t vocab, int64_t count, int threads) {
    size_t blocks = (size_t)(vocab + BLOCK - 1) / BLOCK;
    size_t room = (size_t)vocab + LANES; /* some more are written before they are known to count */
    if (count < threads) threads = (int)count;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Workspace work;
        void *memory = malloc(blocks * 12 + room * 28);
        work.sums = memory;
        work.highest = (float *)(work.sums + blocks);
        work.weights = work.highest + blocks;
        work.left = (Candidates){work.weights + room, work.weights + 2 * room, (int32_t *)(work.weights + 3 * room), 0};
        work.scratch = (Candidates){work.weights + 4 * room, work.weights + 5 * room, (int32_t *)(work.weights + 6 * room), 0};
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < count; row++)
            chosen[row] = memory ? choose(rows[row], vocab, &settings[row], &work) : NO_MEMORY;
        free(memory);
    }
}
