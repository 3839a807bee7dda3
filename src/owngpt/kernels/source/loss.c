/* Softmax cross-entropy over a block of logits, loss and gradient in one visit. */
#include "common.h"

/* logits: rows x width, replaced by scale * (softmax - onehot(target)) where want_gradient; a negative target is ignored (zero
 * gradient). Columns from `valid` on are padding of the vocabulary: never predicted. losses: rows, in nats. */
void owngpt_cross_entropy(bf16 *logits, const int64_t *targets, float *losses, int64_t rows, int64_t width, int64_t valid, float scale,
                          int want_gradient, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        bf16 *z = logits + row * width;
        int64_t target = targets[row];
        if (target < 0) {
            losses[row] = 0.0f;
            if (want_gradient) memset(z, 0, sizeof(bf16) * (size_t)width);
            continue;
        }
        float top = -INFINITY;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < valid; i++) top = to_float(z[i]) > top ? to_float(z[i]) : top;
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < valid; i++) total += exp_fast(to_float(z[i]) - top);
        losses[row] = logf(total) + top - to_float(z[target]);
        if (!want_gradient) continue;
        float factor = scale / total;
        float at_target = exp_fast(to_float(z[target]) - top) * factor - scale;
#pragma omp simd
        for (int64_t i = 0; i < valid; i++) z[i] = to_bf16(exp_fast(to_float(z[i]) - top) * factor);
        z[target] = to_bf16(at_target);
        if (valid < width) memset(z + valid, 0, sizeof(bf16) * (size_t)(width - valid));
    }
}
