/* y = (sum over groups of (float) d * s) * xs + bias for M tokens: int8 activations, ternary weights. See ternary.h.

   A C interface for ctypes without any dependency; the bodies are chosen at run time. Bad arguments are the caller's to
   refuse: see localplug_ternary/kernels. */

#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "ternary.h"

#include "quantize.h"

#include "portable.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512vnni.h"
#endif

#define ABI 2                   /* to be raised when layout or arguments change */
#define SMALL_WORK (1 << 18)    /* weights times tokens below which one thread is faster than several */
#define CACHED_BYTES (1 << 18)  /* of activations that one pass over the weights serves: they stay in a core's cache */
#define HELD_BYTES (1 << 24)    /* of activations in int8 at a time */
#define SHARES 8                /* of the work for each thread: one that is held up leaves some to the others */

enum { PORTABLE = 0, AVX2_BODY = 1, VNNI_BODY = 2 };

int ternary_abi(void) { return ABI; }

int ternary_supports(int body) {
    if (body == PORTABLE) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (body == AVX2_BODY) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    if (body == VNNI_BODY)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c");
#endif
    return 0;
}

static tile_body *tile_of(int body) {
#if defined(__x86_64__)
    if (body == VNNI_BODY) return tile_avx512vnni;
    if (body == AVX2_BODY) return tile_avx2;
#endif
    return tile_portable;
}

static quantize_body *quantize_of(int body) {
#if defined(__x86_64__)
    if (body == VNNI_BODY) return quantize_avx512vnni;
    if (body == AVX2_BODY) return quantize_avx2;
#endif
    return quantize_portable;
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int thread_number(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static uint16_t to_bfloat16(float value) { /* to nearest, half to even */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

typedef struct {
    const uint8_t *codes;
    const uint16_t *scales;
    const float *bias; /* or NULL */
    int64_t N, K, groups, chunks;
    int kind; /* of x and y */
} matrix;

typedef struct { /* the tokens of one pass over the weights */
    int8_t *q;
    int32_t *sums;
    float *scales; /* of the tokens */
    float *wide;   /* (threads, K) for x that is not float32 */
} activations;

static void quantize_token(const matrix *m, quantize_body *quantize, const void *x, int64_t t, int thread,
                           const activations *a) {
    const int64_t padded = m->groups * m->chunks * CHUNK;
    const size_t element = m->kind == FLOAT32 ? sizeof(float) : sizeof(uint16_t);
    a->scales[t] = quantize((const char *)x + t * m->K * element, m->kind, a->wide + thread * m->K, m->K, m->groups,
                            m->chunks, a->q + t * padded, a->sums + t * m->groups);
}

static void run_tile(const matrix *m, tile_body *body, int64_t tile, int64_t first, int64_t end, const activations *a,
                     void *y) {
    const int64_t padded = m->groups * m->chunks * CHUNK, row = tile * ROWS;
    const int64_t rows = m->N - row < ROWS ? m->N - row : ROWS;
    float acc[TOKENS * ROWS];
    for (int64_t t = first; t < end;) {
        const int tokens = end - t >= TOKENS ? TOKENS : end - t >= 2 ? 2 : 1;
        const tile_work work = {
            .codes = m->codes + tile * m->groups * m->chunks * CHUNK_BYTES,
            .scales = m->scales + tile * m->groups * ROWS,
            .q = a->q + t * padded,
            .sums = a->sums + t * m->groups,
            .q_stride = padded,
            .groups = m->groups,
            .chunks = m->chunks,
        };
        body(&work, tokens, acc);
        for (int i = 0; i < tokens; i++, t++) {
            float *const acc_t = acc + i * ROWS;
            for (int64_t r = 0; r < rows; r++) acc_t[r] *= a->scales[t];
            if (m->bias)
                for (int64_t r = 0; r < rows; r++) acc_t[r] += m->bias[row + r];
            const int64_t at = t * m->N + row;
            if (m->kind == FLOAT32) memcpy((float *)y + at, acc_t, rows * sizeof(float));
            else
                for (int64_t r = 0; r < rows; r++) ((uint16_t *)y)[at + r] = to_bfloat16(acc_t[r]);
        }
    }
}

/* y (M, N) of x (M, K), both contiguous and of one kind. Returns 0, or 1 if there is no memory for the activations. */
int ternary_linear(int body, const uint8_t *codes, const uint16_t *scales, const float *bias, int64_t N, int64_t K,
                   int64_t groups, const void *x, void *y, int64_t M, int kind, int threads) {
    const int64_t all_chunks = (K + CHUNK - 1) / CHUNK, chunks = all_chunks / groups, padded = all_chunks * CHUNK;
    const int64_t tiles = (N + ROWS - 1) / ROWS;
    const matrix m = {codes, scales, bias, N, K, groups, chunks, kind};
    const size_t element = kind == FLOAT32 ? sizeof(float) : sizeof(uint16_t);
    tile_body *const tile_function = tile_of(body);
    quantize_body *const quantize = quantize_of(body);
#ifdef _OPENMP
    const int team = threads > 1 && (double)N * K * M >= SMALL_WORK ? threads : 1;
#else
    const int team = 1;
    (void)threads;
#endif
    const int64_t held = smaller(M, larger(HELD_BYTES / padded, 4 * TOKENS));
    const int64_t block = smaller(held, larger(CACHED_BYTES / padded / TOKENS, 4) * TOKENS);
    const int64_t share = larger(tiles / (team * SHARES), 1), shares = (tiles + share - 1) / share;
    const size_t q_bytes = (size_t)(held * padded + 63) / 64 * 64;
    const size_t wide = kind == FLOAT32 ? 0 : (size_t)team * K * sizeof(float);
    const size_t bytes = q_bytes + wide + held * (groups * sizeof(int32_t) + sizeof(float));
    char *const memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) return 1;
    activations a;
    a.q = (int8_t *)memory;
    a.wide = (float *)(memory + q_bytes);
    a.scales = (float *)(memory + q_bytes + wide);
    a.sums = (int32_t *)(a.scales + held);
    for (int64_t from = 0; from < M; from += held) {
        const int64_t tokens = smaller(M - from, held), parts = (tokens + block - 1) / block * shares;
        const void *const x_held = (const char *)x + from * K * element;
        void *const y_held = (char *)y + from * N * element;
        const int alone = team == 1 || tokens < 2 * team || tokens <= TOKENS; /* to wait for others would take longer */
        if (alone)
            for (int64_t t = 0; t < tokens; t++) quantize_token(&m, quantize, x_held, t, 0, &a);
#ifdef _OPENMP
#pragma omp parallel num_threads(team) if (team > 1)
#endif
        {
            if (!alone) {
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
                for (int64_t t = 0; t < tokens; t++) quantize_token(&m, quantize, x_held, t, thread_number(), &a);
            }
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
            for (int64_t part = 0; part < parts; part++) {
                const int64_t t = part / shares * block, tile = part % shares * share;
                for (int64_t i = tile; i < smaller(tile + share, tiles); i++)
                    run_tile(&m, tile_function, i, t, smaller(t + block, tokens), &a, y_held);
            }
        }
    }
    free(memory);
    return 0;
}
