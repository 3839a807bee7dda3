/* RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), fused with the residual sum before them and with dropout on the
 * update. */
#include "normed.h"

/* summed = x + dropout(update); normed = summed * rstd * weight, rstd = 1/sqrt(mean(summed^2) + epsilon).
 * update may be NULL: then summed is not written and x itself is normed. threshold: an element of the update is dropped
 * where hash < threshold; kept ones are multiplied by keep_scale. */
void owngpt_add_rms_norm(const bf16 *x, const bf16 *update, const float *weight, bf16 *summed, bf16 *normed, float *rstd,
                         int64_t rows, int64_t width, float epsilon, uint32_t threshold, float keep_scale, uint32_t seed, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *in = x + row * width;
        if (update) {
            const bf16 *add = update + row * width;
            bf16 *out = summed + row * width;
            if (threshold) {
                uint32_t base = (uint32_t)(row * width);
#pragma omp simd
                for (int64_t i = 0; i < width; i++) {
                    float keep = hash_index(seed, base + (uint32_t)i) < threshold ? 0.0f : keep_scale;
                    out[i] = to_bf16(to_float(in[i]) + keep * to_float(add[i]));
                }
            } else {
#pragma omp simd
                for (int64_t i = 0; i < width; i++) out[i] = to_bf16(to_float(in[i]) + to_float(add[i]));
            }
            in = out;
        }
        float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; i++) squares += to_float(in[i]) * to_float(in[i]);
        float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
        rstd[row] = scale;
        normed_row(in, scale, weight, normed + row * width, width);
    }
}

/* d_x = d_summed + rstd * (weight * d_normed - hat * mean(weight * d_normed * hat)), hat = summed * rstd.
 * d_update = d_x with the dropped elements zeroed (written only under dropout). weight_parts: threads x width, summed by the caller; or NULL. */
void owngpt_add_rms_norm_backward(const bf16 *d_summed, const bf16 *d_normed, const bf16 *summed, const float *weight,
                                  const float *rstd, bf16 *d_x, bf16 *d_update, float *weight_parts, int64_t rows, int64_t width,
                                  uint32_t threshold, float keep_scale, uint32_t seed, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int me = omp_get_thread_num();
        int64_t first, last;
        row_share(rows, me, omp_get_num_threads(), &first, &last);
        float *d_weight = weight_parts ? weight_parts + (int64_t)me * width : NULL;
        if (d_weight) memset(d_weight, 0, sizeof(float) * (size_t)width);
        for (int64_t row = first; row < last; row++) {
            const bf16 *s = summed + row * width, *dy = d_normed + row * width;
            float scale = rstd[row], dot = 0.0f;
#pragma omp simd reduction(+ : dot)
            for (int64_t i = 0; i < width; i++) {
                float product = to_float(dy[i]) * to_float(s[i]) * scale;
                if (d_weight) d_weight[i] += product;
                dot += product * weight[i];
            }
            dot = dot / (float)width * scale;
            bf16 *dx = d_x + row * width;
            if (d_summed) {
                const bf16 *ds = d_summed + row * width;
#pragma omp simd
                for (int64_t i = 0; i < width; i++)
                    dx[i] = to_bf16(to_float(ds[i]) + scale * (to_float(dy[i]) * weight[i] - to_float(s[i]) * dot));
            } else {
#pragma omp simd
                for (int64_t i = 0; i < width; i++) dx[i] = to_bf16(scale * (to_float(dy[i]) * weight[i] - to_float(s[i]) * dot));
            }
            if (d_update) {
                bf16 *du = d_update + row * width;
                uint32_t base = (uint32_t)(row * width);
#pragma omp simd
                for (int64_t i = 0; i < width; i++) {
                    float keep = hash_index(seed, base + (uint32_t)i) < threshold ? 0.0f : keep_scale;
                    du[i] = to_bf16(keep * to_float(dx[i]));
                }
            }
        }
    }
}

/* LayerNorm of summed = x + update (update may be NULL): normed = (summed - mean) * rstd * weight + bias. */
void owngpt_add_layer_norm(const bf16 *x, const bf16 *update, const float *weight, const float *bias, bf16 *summed, bf16 *normed,
                           float *mean, float *rstd, int64_t rows, int64_t width, float epsilon, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *in = x + row * width;
        if (update) {
            const bf16 *add = update + row * width;
            bf16 *out = summed + row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) out[i] = to_bf16(to_float(in[i]) + to_float(add[i]));
            in = out;
        }
        float total = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < width; i++) total += to_float(in[i]);
        float middle = total / (float)width;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; i++) squares += (to_float(in[i]) - middle) * (to_float(in[i]) - middle);
        float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
        mean[row] = middle;
        rstd[row] = scale;
        bf16 *out = normed + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) out[i] = to_bf16((to_float(in[i]) - middle) * scale * weight[i] + bias[i]);
    }
}

/* parts: threads x 2 x width (weight, bias), summed by the caller. d_summed may be NULL. */
void owngpt_add_layer_norm_backward(const bf16 *d_summed, const bf16 *d_normed, const bf16 *summed, const float *weight, const float *mean,
                                    const float *rstd, bf16 *d_x, float *parts, int64_t rows, int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int me = omp_get_thread_num();
        int64_t first, last;
        row_share(rows, me, omp_get_num_threads(), &first, &last);
        float *d_weight = parts + (int64_t)me * 2 * width, *d_bias = d_weight + width;
        memset(d_weight, 0, sizeof(float) * 2 * (size_t)width);
        for (int64_t row = first; row < last; row++) {
            const bf16 *s = summed + row * width, *dy = d_normed + row * width;
            float scale = rstd[row], middle = mean[row], dot = 0.0f, total = 0.0f;
#pragma omp simd reduction(+ : dot, total)
            for (int64_t i = 0; i < width; i++) {
                float d = to_float(dy[i]), hat = (to_float(s[i]) - middle) * scale;
                d_weight[i] += d * hat;
                d_bias[i] += d;
                dot += d * weight[i] * hat;
                total += d * weight[i];
            }
            dot /= (float)width;
            total /= (float)width;
            bf16 *dx = d_x + row * width;
            const bf16 *ds = d_summed ? d_summed + row * width : NULL;
            if (ds) {
#pragma omp simd
                for (int64_t i = 0; i < width; i++)
                    dx[i] = to_bf16(to_float(ds[i]) + scale * (to_float(dy[i]) * weight[i] - total - (to_float(s[i]) - middle) * scale * dot));
            } else {
#pragma omp simd
                for (int64_t i = 0; i < width; i++)
                    dx[i] = to_bf16(scale * (to_float(dy[i]) * weight[i] - total - (to_float(s[i]) - middle) * scale * dot));
            }
        }
    }
}

/* sums[threads][width]: column sums of a rows x width matrix, in parts; a bias's gradient. */
void owngpt_column_sums(const bf16 *matrix, float *parts, int64_t rows, int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int me = omp_get_thread_num();
        int64_t first, last;
        row_share(rows, me, omp_get_num_threads(), &first, &last);
        float *sums = parts + (int64_t)me * width;
        memset(sums, 0, sizeof(float) * (size_t)width);
        for (int64_t row = first; row < last; row++) {
            const bf16 *in = matrix + row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) sums[i] += to_float(in[i]);
        }
    }
}
