/* The body for AVX-512 VNNI: 16 channels a register, four products of bytes summed to int32 by one instruction.

   Fields are taken out of a byte by masks, without shifts: field f counts 4^f times, and the sum of its products, which 4^f
   divides, is shifted at the end of the group. Few tokens keep one sum a field, which hides the instruction's latency; TOKENS
   of them keep two, for fields 0 and 2, and 1 and 3, of which the upper is shifted down beforehand. */

#include <immintrin.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vnni,f16c")))

/* d + the products of four bytes. The intrinsic does the same, but GCC 12 copies d before each and spills the copies. */
INLINE VNNI __m512i dot(__m512i d, __m512i c, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(d) : "v"(c), "v"(x));
    return d;
}

INLINE VNNI void tokens_avx512vnni(const tile_work *work, const int tokens, float *acc) {
    const int own = tokens < TOKENS; /* one sum a field */
    const __m512i m0 = _mm512_set1_epi8(3), m1 = _mm512_set1_epi8(12);
    const __m512i m2 = own ? _mm512_set1_epi8(48) : m0, m3 = own ? _mm512_set1_epi8((char)192) : m1;
    const uint8_t *w = work->codes;
    const int8_t *q = work->q;
    for (int i = 0; i < tokens * ROWS; i += 16) _mm512_storeu_ps(acc + i, _mm512_setzero_ps());
    for (int64_t group = 0; group < work->groups; group++) {
        __m512i d[TOKENS][2][4];
        UNROLL
        for (int t = 0; t < tokens; t++)
            UNROLL
            for (int half = 0; half < 2; half++)
                UNROLL
                for (int f = 0; f < 4; f++) d[t][half][f] = _mm512_setzero_si512();
        for (int64_t chunk = 0; chunk < work->chunks; chunk++, w += CHUNK_BYTES, q += CHUNK) {
            __m512i c[2][4];
            UNROLL
            for (int half = 0; half < 2; half++) {
                const __m512i all = _mm512_loadu_si512(w + 64 * half);
                const __m512i upper = own ? all : _mm512_srli_epi16(all, 4);
                c[half][0] = _mm512_and_si512(all, m0);
                c[half][1] = _mm512_and_si512(all, m1);
                c[half][2] = _mm512_and_si512(upper, m2);
                c[half][3] = _mm512_and_si512(upper, m3);
            }
            UNROLL
            for (int t = 0; t < tokens; t++) {
                const four8 *const x = (const four8 *)(q + t * work->q_stride);
                UNROLL
                for (int f = 0; f < 4; f++) {
                    const __m512i xf = _mm512_set1_epi32(x[f]);
                    const int to = own ? f : f & 1;
                    d[t][0][to] = dot(d[t][0][to], c[0][f], xf);
                    d[t][1][to] = dot(d[t][1][to], c[1][f], xf);
                }
            }
        }
        UNROLL
        for (int half = 0; half < 2; half++) {
            const uint16_t *scales = work->scales + group * ROWS + 16 * half;
            const __m512 s = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
            UNROLL
            for (int t = 0; t < tokens; t++) {
                __m512i sum = _mm512_add_epi32(d[t][half][0], _mm512_srai_epi32(d[t][half][1], 2));
                if (own) {
                    sum = _mm512_add_epi32(sum, _mm512_srai_epi32(d[t][half][2], 4));
                    sum = _mm512_add_epi32(sum, _mm512_srai_epi32(d[t][half][3], 6));
                }
                sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(work->sums[t * work->groups + group]));
                float *const acc_t = acc + t * ROWS + 16 * half;
                const __m512 term = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), s);
                _mm512_storeu_ps(acc_t, _mm512_add_ps(_mm512_loadu_ps(acc_t), term));
            }
        }
    }
}

VNNI static void tile_avx512vnni(const tile_work *work, int tokens, float *acc) {
    if (tokens == 1) tokens_avx512vnni(work, 1, acc);
    else if (tokens == 2) tokens_avx512vnni(work, 2, acc);
    else tokens_avx512vnni(work, TOKENS, acc);
}

QUANTIZE(quantize_avx512vnni, VNNI)
