/* Packed weights and rows as what others read: rows of a table, weights as bfloat16, rows of x as tiles. */
#include "linear.h"

#ifdef MATRIX_UNIT

/* x: rows x inputs, row-major -> B tiles [ceil(rows/16)][input tiles][16 pairs][16 rows][2]; absent rows and inputs are zero. */
void owngpt_step_pack_rows(const int64_t *slots, Worker *worker) {
    int me = worker->me, threads = worker->threads;
    const bf16 *x = POINTER(const bf16, 0);
    bf16 *tiles = POINTER(bf16, 1);
    int64_t rows = slots[2], inputs = slots[3], stride = slots[4], depth = (inputs + 31) / 32, groups = (rows + 15) / 16;
    int64_t first, last;
    row_share(groups * depth, me, threads, &first, &last);
    for (int64_t at = first; at < last; at++) {
        int64_t group = at / depth, k = at % depth * 32;
        int present = (int)(rows - group * 16 < 16 ? rows - group * 16 : 16);
        __mmask32 inside = inputs - k >= 32 ? 0xffffffffu : (1u << (inputs - k)) - 1;
        __m512i r[16];
        UNROLL
        for (int i = 0; i < 16; i++)
            r[i] = i < present ? _mm512_maskz_loadu_epi16(inside, x + (group * 16 + i) * stride + k) : _mm512_setzero_si512();
        transpose16(r);
        UNROLL
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(tiles + at * TILE + i * 32, r[i]);
    }
}

/* The values of one output. */
static void read_output(const uint8_t *tiles, int64_t kind, int64_t outputs, int64_t depth, int64_t output, bf16 *values) {
    Block block = block_of(tiles, kind, outputs, depth, output / 16);
    bf16 tile[TILE] __attribute__((aligned(64)));
    for (int64_t k = 0; k < depth; k++) {
        unpack_tiles(&block, k, k + 1, tile);
        for (int pair = 0; pair < 16; pair++) memcpy(values + 32 * k + 2 * pair, tile + pair_at(output % 16, pair), 2 * sizeof(bf16));
    }
}

/* Rows of a packed weight: slots weight, kind, outputs, inputs, ids, rows, out (bf16), factor, whether ids have 32 bits, scratch of
 * a row a thread. */
void owngpt_step_embed(const int64_t *slots, Worker *worker) {
    int64_t inputs = slots[3], depth = (inputs + 31) / 32, first, last;
    bf16 *out = POINTER(bf16, 6), *values = POINTER(bf16, 9) + worker->me * 32 * depth;
    float scale = NUMBER(7);
    row_share(slots[5], worker->me, worker->threads, &first, &last);
    for (int64_t row = first; row < last; row++) {
        int64_t id = slots[8] ? POINTER(const int32_t, 4)[row] : POINTER(const int64_t, 4)[row];
        read_output(POINTER(const uint8_t, 0), slots[1], slots[2], depth, id, values);
        if (scale == 1.0f) memcpy(out + row * inputs, values, sizeof(bf16) * (size_t)inputs);
        else
            for (int64_t i = 0; i < inputs; i++) out[row * inputs + i] = to_bf16(to_float(values[i]) * scale);
    }
}

/* A quantized weight as bf16 tiles. */
int owngpt_widen(const uint8_t *tiles, int kind, int64_t outputs, int64_t inputs, bf16 *out, int threads) {
    int64_t depth = (inputs + 31) / 32, blocks = (outputs + 15) / 16;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t at = 0; at < blocks; at++) {
        Block block = block_of(tiles, kind, outputs, depth, at);
        unpack_tiles(&block, 0, depth, out + at * depth * TILE);
    }
    return 0;
}
#endif
