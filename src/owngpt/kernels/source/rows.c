/* The steps of an inference pass that work on each token's row by itself: norms, rotation, activations. */
#include "gate.h"
#include "steps.h"

#ifdef MATRIX_UNIT

enum { GATED_SWIGLU = 0, GATED_GEGLU = 1 };
enum { PLAIN_GELU = 0, PLAIN_GELU_TANH = 1, PLAIN_RELU = 2, PLAIN_RELU2 = 3, PLAIN_SILU = 4 };

static void layer_norm_row(const bf16 *x, const float *weight, const float *bias, int64_t width, float epsilon, bf16 *out) {
    float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += to_float(x[i]);
    float mean = sum / (float)width;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++) squares += (to_float(x[i]) - mean) * (to_float(x[i]) - mean);
    float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) out[i] = to_bf16((to_float(x[i]) - mean) * scale * weight[i] + bias[i]);
}

static void rms_norm_row(const bf16 *x, const float *weight, int64_t width, float epsilon, bf16 *out) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++) squares += to_float(x[i]) * to_float(x[i]);
    float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) out[i] = to_bf16(to_float(x[i]) * scale * weight[i]);
}

/* slots: x, update or NULL, weight, bias (NULL: RMSNorm), summed (where there is an update), normed, rows, width, epsilon. */
void owngpt_step_norm(const int64_t *slots, Worker *worker) {
    int me = worker->me, threads = worker->threads;
    int64_t rows = slots[6], width = slots[7], first, last;
    const float *weight = POINTER(const float, 2), *bias = POINTER(const float, 3);
    row_share(rows, me, threads, &first, &last);
    for (int64_t row = first; row < last; row++) {
        const bf16 *x = POINTER(const bf16, 0) + row * width;
        if (slots[1]) {
            const bf16 *update = POINTER(const bf16, 1) + row * width;
            bf16 *summed = POINTER(bf16, 4) + row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) summed[i] = to_bf16(to_float(x[i]) + to_float(update[i]));
            x = summed;
        }
        bf16 *out = POINTER(bf16, 5) + row * width;
        if (bias) layer_norm_row(x, weight, bias, width, NUMBER(8), out);
        else rms_norm_row(x, weight, width, NUMBER(8), out);
    }
}

/* One head of one token: norm over it (weight may be NULL), then turn element i with element i + half, i < half. */
static void turn(const bf16 *restrict in, const float *restrict weight, const float *restrict c, const float *restrict s, bf16 *restrict out, float epsilon, int64_t size, int64_t half) {
    float values[1024], scale = 1.0f;
    if (weight) {
        float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < size; i++) squares += to_float(in[i]) * to_float(in[i]);
        scale = 1.0f / sqrtf(squares / (float)size + epsilon);
    }
    if (weight)
#pragma omp simd
        for (int64_t i = 0; i < size; i++) values[i] = to_float(in[i]) * scale * weight[i];
    else
#pragma omp simd
        for (int64_t i = 0; i < size; i++) values[i] = to_float(in[i]);
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        out[i] = to_bf16(values[i] * c[i] - values[i + half] * s[i]);
        out[i + half] = to_bf16(values[i + half] * c[i] + values[i] * s[i]);
    }
    for (int64_t i = 2 * half; i < size; i++) out[i] = to_bf16(values[i]);
}

/* slots: projected (rows x (heads + 2 groups) x size), query weight, key weight (or NULL), cosines, sines (positions x half),
 * positions (int32, a row each), rotated (rows x (heads + groups) x size), rows, heads, groups, size, half, epsilon. */
void owngpt_step_rotate(const int64_t *slots, Worker *worker) {
    int me = worker->me, threads = worker->threads;
    const int32_t *positions = POINTER(const int32_t, 5);
    int64_t heads = slots[8], groups = slots[9], size = slots[10], half = slots[11], turned = heads + groups, first, last;
    row_share(slots[7] * turned, me, threads, &first, &last);
    for (int64_t at = first; at < last; at++) {
        int64_t row = at / turned, head = at % turned, position = half ? positions[row] : 0;
        const float *weight = head < heads ? POINTER(const float, 1) : POINTER(const float, 2);
        turn(POINTER(const bf16, 0) + (row * (turned + groups) + head) * size, weight, POINTER(const float, 3) + position * half,
             POINTER(const float, 4) + position * half, POINTER(bf16, 6) + at * size, NUMBER(12), size, half);
    }
}

static inline float gelu_tanh(float x) { /* x * (1 + tanh(u)) / 2 = x * sigmoid(2u) */
    return x * sigmoid_fast(1.5957691216f * (x + 0.044715f * x * x * x));
}

static inline float gelu_exact(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

/* Columns [first, last) of a row are a thread's when there are fewer rows than threads. */
static void split_work(int64_t rows, int64_t width, int me, int threads, int64_t *row, int64_t *row_end, int64_t *column, int64_t *column_end) {
    *row = 0, *row_end = rows, *column = 0, *column_end = width;
    if (rows >= threads) row_share(rows, me, threads, row, row_end);
    else row_share(width, me, threads, column, column_end);
}

/* slots: gate_up (rows x 2 width, gate first), out, rows, width, kind. */
void owngpt_step_gated(const int64_t *slots, Worker *worker) {
    int me = worker->me, threads = worker->threads;
    int64_t width = slots[3], row, row_end, column, column_end;
    split_work(slots[2], width, me, threads, &row, &row_end, &column, &column_end);
    for (; row < row_end; row++) {
        const bf16 *gate = POINTER(const bf16, 0) + row * 2 * width, *up = gate + width;
        bf16 *out = POINTER(bf16, 1) + row * width;
        if (slots[4] == GATED_SWIGLU) swiglu_values(gate + column, up + column, out + column, column_end - column);
        else
#pragma omp simd
            for (int64_t i = column; i < column_end; i++) out[i] = to_bf16(gelu_tanh(to_float(gate[i])) * to_float(up[i]));
    }
}

/* slots: x, out, rows, width, kind. */
void owngpt_step_pointwise(const int64_t *slots, Worker *worker) {
    int me = worker->me, threads = worker->threads;
    const bf16 *x = POINTER(const bf16, 0);
    bf16 *out = POINTER(bf16, 1);
    int64_t first, last;
    row_share(slots[2] * slots[3], me, threads, &first, &last);
    switch (slots[4]) {
        case PLAIN_GELU:
            for (int64_t i = first; i < last; i++) out[i] = to_bf16(gelu_exact(to_float(x[i])));
            break;
        case PLAIN_GELU_TANH:
#pragma omp simd
            for (int64_t i = first; i < last; i++) out[i] = to_bf16(gelu_tanh(to_float(x[i])));
            break;
        case PLAIN_SILU:
#pragma omp simd
            for (int64_t i = first; i < last; i++) out[i] = to_bf16(to_float(x[i]) * sigmoid_fast(to_float(x[i])));
            break;
        default:
            for (int64_t i = first; i < last; i++) {
                float value = to_float(x[i]) > 0.0f ? to_float(x[i]) : 0.0f;
                out[i] = to_bf16(slots[4] == PLAIN_RELU2 ? value * value : value);
            }
    }
}

/* slots: x, y, out, rows, width: out = x + y. */
void owngpt_step_add(const int64_t *slots, Worker *worker) {
    int me = worker->me, threads = worker->threads;
    const bf16 *x = POINTER(const bf16, 0), *y = POINTER(const bf16, 1);
    bf16 *out = POINTER(bf16, 2);
    int64_t first, last;
    row_share(slots[3] * slots[4], me, threads, &first, &last);
#pragma omp simd
    for (int64_t i = first; i < last; i++) out[i] = to_bf16(to_float(x[i]) + to_float(y[i]));
}

/* slots: x, its row's width, indices (int32), count, out. */
void owngpt_step_gather(const int64_t *slots, Worker *worker) {
    int me = worker->me, threads = worker->threads;
    const int32_t *index = POINTER(const int32_t, 2);
    int64_t width = slots[1], first, last;
    row_share(slots[3], me, threads, &first, &last);
    for (int64_t i = first; i < last; i++)
        memcpy(POINTER(bf16, 4) + i * width, POINTER(const bf16, 0) + index[i] * width, sizeof(bf16) * (size_t)width);
}
#endif
