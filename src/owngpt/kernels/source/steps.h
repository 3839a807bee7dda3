/* A step is one operation of an inference pass, cut into shares that threads work on side by side.
 *
 * Arguments travel as 64-bit slots, so that a whole pass is an array of steps which one call runs inside one parallel region
 * (steps.c), with a light barrier between one step and the next instead of starting threads for each. */
#pragma once
#include "tiles.h"
#include <stdatomic.h>

enum { SLOTS = 23 };
enum { WEIGHT_BF16 = 0, WEIGHT_INT8 = 1, WEIGHT_INT4 = 2, WEIGHT_INT6 = 3, WEIGHT_COMPACT = 4, WEIGHT_Q4_1 = 5 };

/* Of 16 outputs x 32 inputs, see values.h. */
static inline int64_t tile_bytes(int64_t kind) {
    switch (kind) {
        case WEIGHT_BF16: return 1024;
        case WEIGHT_COMPACT: return 768;
        case WEIGHT_INT8: return 544;
        case WEIGHT_INT6: return 416;
        case WEIGHT_Q4_1: return 320;
        default: return 288;
    }
}

/* Where the factors of a quantized tile lie; where there are offsets, they follow. */
static inline int64_t factors_at(int64_t kind) { return kind == WEIGHT_INT8 ? 512 : kind == WEIGHT_INT6 ? 384 : 256; }

typedef struct {
    int64_t kind;
    int64_t slots[SLOTS];
} Step;

/* What of a thread's own part of a step's shares has been taken: so many from its front (the lower half of the bits), so many from its back. */
typedef struct {
    _Alignas(64) atomic_llong count;
} Taken;

typedef struct {
    int me, threads;
    Taken *taken; /* a thread each */
} Worker;

typedef void (*StepFunction)(const int64_t *slots, Worker *worker);

/* Shares [first, last) of a part: a quarter of what is left of it from its front, or half from its back; 0 when nothing is. */
static inline int take_of(Worker *worker, int part, int64_t total, int front, int64_t *first, int64_t *last) {
    int64_t begin, end;
    row_share(total, part, worker->threads, &begin, &end);
    long long seen = atomic_load_explicit(&worker->taken[part].count, memory_order_relaxed), size;
    do {
        int64_t left = end - begin - (seen & 0xffffffff) - (seen >> 32);
        if (left <= 0) return 0;
        size = (left + (front ? 3 : 1)) / (front ? 4 : 2);
    } while (!atomic_compare_exchange_weak_explicit(&worker->taken[part].count, &seen, seen + (front ? size : size << 32), memory_order_relaxed, memory_order_relaxed));
    *last = end - (seen >> 32);
    if (front) *first = begin + (seen & 0xffffffff), *last = *first + size;
    else *first = *last - size;
    return 1;
}

enum { HELPED = 8 /* others whose counters a thread looks at: with many threads, looking at all would take longer than helping saves */ };

/* The next of `total` shares that this thread should do, [first, last); 0 when there are none. Each goes through a part of its own from
 * front to back, so that it reads memory strictly forward, then helps the others from behind: a thread whose processor is slow, or is
 * taken away for a while (another program, another guest of the machine), holds them up by the piece that it has, not by its part. */
static inline int next_share(Worker *worker, int64_t total, int64_t *first, int64_t *last) {
    for (int i = 0; i < worker->threads && i <= HELPED; i++)
        if (take_of(worker, (worker->me + i) % worker->threads, total, !i, first, last)) return 1;
    return 0;
}

/* The same for a step that must come to its shares in their order: large ones first, and whoever is free takes them. It counts where
 * next_share does for thread 0, so a step uses the one or the other. */
static inline int next_in_order(Worker *worker, int64_t total, int64_t *first, int64_t *last) {
    long long at = atomic_load_explicit(&worker->taken->count, memory_order_relaxed), size;
    do {
        if (at >= total) return 0;
        size = (total - at) / (2 * worker->threads);
        if (size < 1) size = 1;
    } while (!atomic_compare_exchange_weak_explicit(&worker->taken->count, &at, at + size, memory_order_relaxed, memory_order_relaxed));
    *first = at;
    *last = at + size;
    return 1;
}

#define POINTER(type, index) ((type *)(intptr_t)slots[index])
static inline double slot_number(int64_t slot) { union { int64_t bits; double number; } u = {.bits = slot}; return u.number; }
#define NUMBER(index) ((float)slot_number(slots[index]))

/* packed.c */
void owngpt_step_pack_rows(const int64_t *slots, Worker *worker);
void owngpt_step_embed(const int64_t *slots, Worker *worker);

/* tiled.c, or plain.c */
void owngpt_step_linear(const int64_t *slots, Worker *worker);
void owngpt_step_gated_linear(const int64_t *slots, Worker *worker);

/* small.c */
void owngpt_step_small_rows(const int64_t *slots, Worker *worker);
void owngpt_step_small_linear(const int64_t *slots, Worker *worker);
void owngpt_step_small_gated(const int64_t *slots, Worker *worker);

/* rows.c */
void owngpt_step_norm(const int64_t *slots, Worker *worker);
void owngpt_step_rotate(const int64_t *slots, Worker *worker);
void owngpt_step_gated(const int64_t *slots, Worker *worker);
void owngpt_step_pointwise(const int64_t *slots, Worker *worker);
void owngpt_step_add(const int64_t *slots, Worker *worker);
void owngpt_step_gather(const int64_t *slots, Worker *worker);

/* paged.c */
void owngpt_step_append(const int64_t *slots, Worker *worker);
void owngpt_step_attend(const int64_t *slots, Worker *worker);
