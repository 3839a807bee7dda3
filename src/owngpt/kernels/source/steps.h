/* A step is one operation of an inference pass, cut into shares that threads work on side by side.
 *
 * Arguments travel as 64-bit slots, so that a whole pass is an array of steps which one call runs inside one parallel region
 * (steps.c), with a light barrier between one step and the next instead of starting threads for each. */
#pragma once
#include "tiles.h"

enum { SLOTS = 23 };
enum { WEIGHT_BF16 = 0, WEIGHT_INT8 = 1, WEIGHT_INT4 = 2 };

/* Of 16 outputs x 32 inputs, see packed.c. */
static inline int64_t tile_bytes(int64_t kind) { return kind == WEIGHT_BF16 ? 1024 : kind == WEIGHT_INT8 ? 544 : 320; }

typedef struct {
    int64_t kind;
    int64_t slots[SLOTS];
} Step;

typedef void (*StepFunction)(const int64_t *slots, int me, int threads);

#define POINTER(type, index) ((type *)(intptr_t)slots[index])
static inline double slot_number(int64_t slot) { union { int64_t bits; double number; } u = {.bits = slot}; return u.number; }
#define NUMBER(index) ((float)slot_number(slots[index]))

/* packed.c */
void owngpt_step_pack_rows(const int64_t *slots, int me, int threads);
void owngpt_step_linear(const int64_t *slots, int me, int threads);
void owngpt_step_gated_linear(const int64_t *slots, int me, int threads);
void owngpt_step_embed(const int64_t *slots, int me, int threads);

/* rows.c */
void owngpt_step_norm(const int64_t *slots, int me, int threads);
void owngpt_step_rotate(const int64_t *slots, int me, int threads);
void owngpt_step_gated(const int64_t *slots, int me, int threads);
void owngpt_step_pointwise(const int64_t *slots, int me, int threads);
void owngpt_step_add(const int64_t *slots, int me, int threads);
void owngpt_step_gather(const int64_t *slots, int me, int threads);

/* paged.c */
void owngpt_step_append(const int64_t *slots, int me, int threads);
void owngpt_step_attend(const int64_t *slots, int me, int threads);
