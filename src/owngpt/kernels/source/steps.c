/* Runs an array of steps inside one parallel region. */
#include "steps.h"

#ifdef MATRIX_UNIT
#include <sched.h>
#include <time.h>

static const StepFunction FUNCTIONS[] = {
    owngpt_step_pack_rows, owngpt_step_linear, owngpt_step_embed, owngpt_step_norm, owngpt_step_rotate,
    owngpt_step_gated, owngpt_step_pointwise, owngpt_step_gather, owngpt_step_append, owngpt_step_attend, owngpt_step_add,
    owngpt_step_gated_linear, owngpt_step_small_rows, owngpt_step_small_linear, owngpt_step_small_gated,
};
enum { KINDS = sizeof FUNCTIONS / sizeof *FUNCTIONS, PATIENCE = 2000 };
enum { OFFER_EVERY = 8 /* steps */, LONGEST_READING = 1000000 /* nanoseconds */, PASSES_WITHOUT_OFFERS = 32 };

typedef struct {
    _Alignas(64) atomic_int waiting;
    _Alignas(64) atomic_int round;
} Barrier;

/* All threads meet; spinning is short, since a step takes microseconds, and gives way when a thread was taken off its core. */
static void meet(Barrier *barrier, int threads) {
    int round = atomic_load_explicit(&barrier->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->waiting, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&barrier->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->round, round + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&barrier->round, memory_order_acquire) == round; spins++) {
        if (spins < PATIENCE) _mm_pause();
        else sched_yield();
    }
}

static atomic_int passes_without_offers; /* that are left */

/* Threads that were woken to read the last tokens find every core taken, and a scheduler that favours whole slices lets them wait for
 * milliseconds, one after the other where they share a lock as Python's do. Returns 0 if it was no reader who waited: a program that
 * computes keeps a core for its slice, and would get it again and again. */
static int offer_core(void) {
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    sched_yield();
    clock_gettime(CLOCK_MONOTONIC, &after);
    if ((after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec < LONGEST_READING) return 1;
    atomic_store_explicit(&passes_without_offers, PASSES_WITHOUT_OFFERS, memory_order_relaxed);
    return 0;
}

static int offers_now(void) {
    int left = atomic_load_explicit(&passes_without_offers, memory_order_relaxed);
    if (left) atomic_store_explicit(&passes_without_offers, left - 1, memory_order_relaxed);
    return !left;
}

/* Returns 0, or, when nothing ran, 1 (a kind is unknown) or 2 (no memory). */
int owngpt_run_steps(const Step *steps, int64_t count, int threads) {
    for (int64_t i = 0; i < count; i++)
        if (steps[i].kind < 0 || steps[i].kind >= KINDS) return 1;
    Barrier barrier = {0};
    Taken *taken = aligned_alloc(64, sizeof *taken * 3 * (size_t)threads);
    if (!taken) return 2;
    memset(taken, 0, sizeof *taken * 3 * (size_t)threads);
    int offers = offers_now();
#pragma omp parallel num_threads(threads) firstprivate(offers)
    {
        Worker worker = {.me = omp_get_thread_num(), .threads = omp_get_num_threads()};
        tiles_begin();
        for (int64_t i = 0; i < count; i++) {
            worker.taken = taken + i % 3 * threads; /* three in turn: whoever resets the next ones knows that all are through with those */
            atomic_store_explicit(&taken[(i + 1) % 3 * threads + worker.me].count, 0, memory_order_relaxed);
            if (offers && i % OFFER_EVERY == OFFER_EVERY - 1) offers = offer_core();
            FUNCTIONS[steps[i].kind](steps[i].slots, &worker);
            if (i + 1 < count) meet(&barrier, worker.threads);
        }
        tiles_end();
    }
    free(taken);
    return 0;
}
#endif
