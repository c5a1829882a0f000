/* y = x W^T for M tokens, few of them, and a floating-point weight W (N, K) as it lies in memory: it is read once, as fast as
   the memory gives it. Sums are float32. See dense.h for their order. */

#include <stdlib.h>
#include <string.h>

#include "dense.h"

#include "dense_portable.h"
#if defined(__x86_64__)
#include "dense_avx2.h"
#endif

#define SMALL_WEIGHT (1 << 18) /* weights below which one thread is faster than several */
#define SHARES 8               /* of the rows for each thread: one that is held up leaves some to the others */

enum { PORTABLE = 0, AVX2_BODY = 1 };

int dense_supports(int body) {
    if (body == PORTABLE) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (body == AVX2_BODY) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
#endif
    return 0;
}

static dense_body *body_of(int body, int kind) {
#if defined(__x86_64__)
    static dense_body *const bodies[2][3] = {
        {float32_portable, bfloat16_portable, float16_portable},
        {float32_avx2, bfloat16_avx2, float16_avx2},
    };
#else
    static dense_body *const bodies[1][3] = {{float32_portable, bfloat16_portable, float16_portable}};
#endif
    return bodies[body][kind];
}

/* x (M, K) in the order of the slots, padded to whole steps. */
static void in_slots(const float *x, int64_t M, int64_t K, int64_t padded, int kind, float *to) {
    for (int64_t t = 0; t < M; t++, x += K, to += padded) {
        memset(to + padded - SLOTS, 0, SLOTS * sizeof *to);
        if (kind != WEIGHT_BFLOAT16) memcpy(to, x, K * sizeof *to);
        else
            for (int64_t k = 0; k < K; k++) to[k / 32 * 32 + k % 2 * LANES + k % 32 / 2] = x[k];
    }
}

/* y (M, N) of x (M, K), both contiguous; rows of the weight are `stride` values apart. Returns 0, or 1 if there is no memory. */
int dense_linear(int body, const void *weight, int64_t N, int64_t K, int64_t stride, int kind, const float *x, float *y,
                 int64_t M, int threads) {
    const int64_t steps = K / SLOTS, rest = K % SLOTS, padded = (steps + (rest > 0)) * SLOTS;
    const size_t element = kind == WEIGHT_FLOAT32 ? sizeof(float) : sizeof(half16);
    dense_body *const dot = body_of(body, kind);
    float *const slots = aligned_alloc(64, (size_t)(M * padded) * sizeof *slots);
    if (!slots) return 1;
    in_slots(x, M, K, padded, kind, slots);
#ifdef _OPENMP
    const int team = threads > 1 && N * K >= SMALL_WEIGHT ? threads : 1;
#else
    const int team = 1;
    (void)threads;
#endif
    const int64_t share = N / (team * SHARES) + 1, shares = (N + share - 1) / share;
#ifdef _OPENMP
#pragma omp parallel for num_threads(team) schedule(dynamic) if (team > 1)
#endif
    for (int64_t part = 0; part < shares; part++) {
        const int64_t end = (part + 1) * share < N ? (part + 1) * share : N;
        for (int64_t n = part * share; n < end; n++) {
            const char *const row = (const char *)weight + n * stride * element;
            float tail[SLOTS];
            if (rest) {
                memset(tail, 0, sizeof tail);
                memcpy(tail, row + steps * SLOTS * element, rest * element);
            }
            for (int64_t t = 0; t < M; t++) y[t * N + n] = dot(row, steps, rest ? tail : NULL, slots + t * padded);
        }
    }
    free(slots);
    return 0;
}
