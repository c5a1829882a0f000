/* The body for AVX2: 8 slots a register. Wider registers are no faster, as the memory is what it waits for.

   Rows are read one after the other, as they lie: the processor's own prefetching then keeps up, which several rows side by
   side, or hints ahead, make slower. */

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,f16c")))

INLINE AVX2 void add_products(const void *w, int kind, const float *x, __m256 *slots) { /* 8 registers */
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000u);
    __m256 wide[8];
    UNROLL
    for (int i = 0; i < 8; i++) {
        const half16 *const eight = (const half16 *)w + 8 * i;
        if (kind == WEIGHT_FLOAT32) wide[i] = _mm256_loadu_ps((const float *)w + 8 * i);
        if (kind == WEIGHT_FLOAT16) wide[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)eight));
        if (kind == WEIGHT_BFLOAT16 && i % 2 == 0) {
            const int to = i / 4 * 4 + i / 2 % 2; /* the even ones; the odd ones are two registers on */
            const __m256i pairs = _mm256_loadu_si256((const __m256i *)eight);
            wide[to] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
            wide[to + 2] = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
        }
    }
    UNROLL
    for (int i = 0; i < 8; i++)
        slots[i] = _mm256_add_ps(slots[i], _mm256_mul_ps(wide[i], _mm256_loadu_ps(x + 8 * i)));
}

INLINE AVX2 float token_avx2(const void *row, int kind, int64_t steps, const void *tail, const float *x) {
    const int64_t bytes = SLOTS * (kind == WEIGHT_FLOAT32 ? 4 : 2);
    __m256 slots[8];
    UNROLL
    for (int i = 0; i < 8; i++) slots[i] = _mm256_setzero_ps();
    for (int64_t step = 0; step < steps; step++, x += SLOTS) add_products((const char *)row + step * bytes, kind, x, slots);
    if (tail) add_products(tail, kind, x, slots);
    UNROLL
    for (int i = 0; i < 2; i++)
        slots[i] = _mm256_add_ps(_mm256_add_ps(slots[i], slots[2 + i]), _mm256_add_ps(slots[4 + i], slots[6 + i]));
    const __m256 s = _mm256_add_ps(slots[0], slots[1]);
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

#define BY_AVX2(name, kind)                                                                                            \
    AVX2 static float name(const void *row, int64_t steps, const void *tail, const float *x) {                         \
        return token_avx2(row, kind, steps, tail, x);                                                                  \
    }
BY_AVX2(float32_avx2, WEIGHT_FLOAT32)
BY_AVX2(bfloat16_avx2, WEIGHT_BFLOAT16)
BY_AVX2(float16_avx2, WEIGHT_FLOAT16)
