/* Query-key norm and rotary positions (RoFormer, arXiv 2104.09864; half-split layout), one pass over the fused projection. */
#include "common.h"

#define INLINE static inline __attribute__((always_inline))

/* One head of one token: norm (weight may be NULL), then turn the first 2*half elements. Returns 1/rms. */
INLINE float turn_head(const bf16 *in, const float *weight, const float *c, const float *s, bf16 *out, float epsilon, int size, int half) {
    float values[512], scale = 1.0f;
    if (weight) {
        float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
        for (int i = 0; i < size; i++) squares += to_float(in[i]) * to_float(in[i]);
        scale = 1.0f / sqrtf(squares / (float)size + epsilon);
#pragma omp simd
        for (int i = 0; i < size; i++) values[i] = to_float(in[i]) * scale * weight[i];
    } else {
#pragma omp simd
        for (int i = 0; i < size; i++) values[i] = to_float(in[i]);
    }
#pragma omp simd
    for (int i = 0; i < half; i++) out[i] = to_bf16(values[i] * c[i] - values[i + half] * s[i]);
#pragma omp simd
    for (int i = 0; i < half; i++) out[i + half] = to_bf16(values[i + half] * c[i] + values[i] * s[i]);
#pragma omp simd
    for (int i = 2 * half; i < size; i++) out[i] = to_bf16(values[i]);
    return scale;
}

/* The gradient of turn_head: d_weight gathers, scale is what it returned, x what it read. */
INLINE void turn_head_backward(const bf16 *dy, const bf16 *x, const float *weight, const float *c, const float *s, float scale, bf16 *dx,
                               float *d_weight, int size, int half) {
    float values[512];
#pragma omp simd
    for (int i = 0; i < half; i++) values[i] = to_float(dy[i]) * c[i] + to_float(dy[i + half]) * s[i];
#pragma omp simd
    for (int i = 0; i < half; i++) values[i + half] = to_float(dy[i + half]) * c[i] - to_float(dy[i]) * s[i];
#pragma omp simd
    for (int i = 2 * half; i < size; i++) values[i] = to_float(dy[i]);
    if (!weight) {
#pragma omp simd
        for (int i = 0; i < size; i++) dx[i] = to_bf16(values[i]);
        return;
    }
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int i = 0; i < size; i++) {
        float product = values[i] * to_float(x[i]) * scale;
        d_weight[i] += product;
        dot += product * weight[i];
    }
    dot = dot / (float)size * scale;
#pragma omp simd
    for (int i = 0; i < size; i++) dx[i] = to_bf16(scale * (values[i] * weight[i] - to_float(x[i]) * dot));
}

/* projected: rows x (heads + 2*groups) x size. rotated: rows x (heads + groups) x size, queries then keys, and then the values where it is
 * `with_values`, which makes rows of it as long as those of projected.
 * cosines, sines: positions x half. position: one per row. weights may be NULL (no norm); half may be 0 (no rotation). */
void owngpt_rotate(const bf16 *projected, const float *query_weight, const float *key_weight, const float *cosines,
                   const float *sines, const int32_t *position, bf16 *rotated, int with_values, float *rstd, int64_t rows, int heads, int groups,
                   int size, int half, float epsilon, int threads) {
    int turned = heads + groups;
    int64_t in_width = (int64_t)(heads + 2 * groups) * size, out_width = with_values ? in_width : (int64_t)turned * size;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *c = cosines + (int64_t)position[row] * half, *s = sines + (int64_t)position[row] * half;
        for (int head = 0; head < turned; head++) {
            const bf16 *in = projected + row * in_width + (int64_t)head * size;
            bf16 *out = rotated + row * out_width + (int64_t)head * size;
            const float *weight = head < heads ? query_weight : key_weight;
            float scale;
#define TURN(size, half) scale = turn_head(in, weight, c, s, out, epsilon, size, half)
            WITH_HEAD_SIZE(TURN, size, half);
            if (weight) rstd[row * turned + head] = scale;
        }
        if (with_values) memcpy(rotated + row * out_width + turned * size, projected + row * in_width + turned * size, sizeof(bf16) * (size_t)(groups * size));
    }
}

/* d_rotated queries, keys, values: rows x heads x size with their own row strides -> d_projected.
 * weight_parts: threads x 2 x size (query, key); NULL without weights. */
void owngpt_rotate_backward(const bf16 *d_query, int64_t query_stride, const bf16 *d_key, int64_t key_stride, const bf16 *d_value,
                            int64_t value_stride, const bf16 *projected, const float *query_weight, const float *key_weight,
                            const float *cosines, const float *sines, const int32_t *position, const float *rstd, bf16 *d_projected,
                            float *weight_parts, int64_t rows, int heads, int groups, int size, int half, int threads) {
    int turned = heads + groups;
    int64_t width = (int64_t)(heads + 2 * groups) * size;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        row_share(rows, omp_get_thread_num(), omp_get_num_threads(), &first, &last);
        float *parts = weight_parts ? weight_parts + (int64_t)omp_get_thread_num() * 2 * size : NULL;
        if (parts) memset(parts, 0, sizeof(float) * 2 * (size_t)size);
        for (int64_t row = first; row < last; row++) {
            const float *c = cosines + (int64_t)position[row] * half, *s = sines + (int64_t)position[row] * half;
            for (int head = 0; head < turned; head++) {
                int is_query = head < heads;
                const bf16 *dy = is_query ? d_query + row * query_stride + (int64_t)head * size
                                          : d_key + row * key_stride + (int64_t)(head - heads) * size;
                const bf16 *x = projected ? projected + row * width + (int64_t)head * size : NULL; /* read only under a norm */
                bf16 *dx = d_projected + row * width + (int64_t)head * size;
                const float *weight = is_query ? query_weight : key_weight;
                float *d_weight = parts ? parts + (is_query ? 0 : size) : NULL, scale = weight ? rstd[row * turned + head] : 1.0f;
#define TURN_BACK(size, half) turn_head_backward(dy, x, weight, c, s, scale, dx, d_weight, size, half)
                WITH_HEAD_SIZE(TURN_BACK, size, half);
            }
            memcpy(d_projected + row * width + (int64_t)turned * size, d_value + row * value_stride, sizeof(bf16) * (size_t)(groups * size));
        }
    }
}
