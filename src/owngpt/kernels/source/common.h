/* Shared by all kernels: bfloat16 as its upper 16 bits, conversions, and an exponential that vectorises. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>

typedef uint16_t bf16;

static inline float to_float(bf16 value) {
    union { uint32_t bits; float number; } u = {.bits = (uint32_t)value << 16};
    return u.number;
}

/* Round to nearest, ties to even. A NaN stays one: those that arithmetic makes have no low bits that could carry. */
static inline bf16 to_bf16(float value) {
    union { float number; uint32_t bits; } u = {.number = value};
    return (bf16)((u.bits + 0x7fffu + ((u.bits >> 16) & 1u)) >> 16);
}

/* Call the body with the usual sizes as constants, so that its short loops unroll. */
#define WITH_HEAD_SIZE(call, size, half)                                                                                      \
    do {                                                                                                                      \
        if ((size) == 32 && (half) == 16) call(32, 16);                                                                       \
        else if ((size) == 64 && (half) == 32) call(64, 32);                                                                  \
        else if ((size) == 128 && (half) == 64) call(128, 64);                                                                \
        else call(size, half);                                                                                                \
    } while (0)

/* 2^x for x <= 127, relative error below 3e-7: integer part into the exponent, a degree-6 minimax polynomial for the rest. */
static inline float exp2_fast(float x) {
    x = x < -126.0f ? -126.0f : x;
    float whole = rintf(x);
    float f = x - whole;
    float p = 1.5353362e-4f;
    p = p * f + 1.3398874e-3f;
    p = p * f + 9.6184373e-3f;
    p = p * f + 5.5503324e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314720e-1f;
    p = p * f + 1.0f;
    union { int32_t bits; float number; } u = {.bits = ((int32_t)whole + 127) << 23};
    return p * u.number;
}

static inline float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }
static inline float sigmoid_fast(float x) { return 1.0f / (1.0f + exp_fast(-(x < -80.0f ? -80.0f : x))); }

/* A stateless random number: a 32-bit avalanche hash of (seed, index), so dropout needs no stored mask. */
static inline uint32_t hash_index(uint32_t seed, uint32_t index) {
    uint32_t h = index * 0x9e3779b1u ^ seed;
    h ^= h >> 16; h *= 0x7feb352du;
    h ^= h >> 15; h *= 0x846ca68bu;
    h ^= h >> 16;
    return h;
}

/* Rows [first, last) of thread `me` of `threads`: fixed, so sums over threads come in one order. */
static inline void row_share(int64_t rows, int me, int threads, int64_t *first, int64_t *last) {
    *first = rows * me / threads;
    *last = rows * (me + 1) / threads;
}
