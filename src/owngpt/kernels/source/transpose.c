/* Transposition of a bfloat16 matrix in 32 x 32 blocks, for the weight gradient: the library's product of a transposed matrix is
 * half as fast as that of a plain one. */
#include "common.h"

#ifdef __AVX512BW__
#include "tiles.h"

static void block(const bf16 *source, int64_t from, bf16 *target, int64_t to) {
    for (int half = 0; half < 32; half += 16) {
        __m512i r[16]; /* words of (row 2i, row 2i+1) over 16 columns */
        for (int pair = 0; pair < 16; pair++) {
            const bf16 *p = source + 2 * pair * from + half;
            __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
            __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + from)));
            r[pair] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
        }
        transpose16(r);
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(target + (half + i) * to, r[i]);
    }
}
#else
static void block(const bf16 *source, int64_t from, bf16 *target, int64_t to) {
    for (int i = 0; i < 32; i++)
        for (int j = 0; j < 32; j++) target[j * to + i] = source[i * from + j];
}
#endif

/* source: rows x columns -> target: columns x rows; both sizes are multiples of 32. */
void owngpt_transpose(const bf16 *source, bf16 *target, int64_t rows, int64_t columns, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t j = 0; j < columns; j += 32)
        for (int64_t i = 0; i < rows; i += 32) block(source + i * columns + j, columns, target + j * rows + i, rows);
}
