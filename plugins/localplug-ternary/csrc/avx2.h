/* The body for AVX2: 8 channels a register, products of bytes summed to int16 and then to int32.

   A product is at most 2 * 127, so a lane of int16 gains at most 4 * 2 * 254 = 2032 a chunk and holds SAFE chunks. */

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,f16c")))
enum { SAFE = 16 };

INLINE AVX2 void tokens_avx2(const tile_work *work, const int tokens, float *acc) {
    const __m256i low = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < tokens * ROWS; i += 8) _mm256_storeu_ps(acc + i, _mm256_setzero_ps());
    for (int64_t group = 0; group < work->groups; group++) {
        const int64_t first = group * work->chunks;
        for (int part = 0; part < 4; part++) {
            __m256i d[TOKENS];
            UNROLL
            for (int t = 0; t < tokens; t++) d[t] = _mm256_set1_epi32(-work->sums[t * work->groups + group]);
            const uint8_t *w = work->codes + first * CHUNK_BYTES + 32 * part;
            const int8_t *q = work->q + first * CHUNK;
            for (int64_t done = 0; done < work->chunks;) {
                const int64_t until = done + SAFE < work->chunks ? done + SAFE : work->chunks;
                __m256i short_d[TOKENS];
                UNROLL
                for (int t = 0; t < tokens; t++) short_d[t] = _mm256_setzero_si256();
                for (; done < until; done++, w += CHUNK_BYTES, q += CHUNK) {
                    const __m256i c = _mm256_loadu_si256((const __m256i *)w);
                    const __m256i c0 = _mm256_and_si256(c, low);
                    const __m256i c1 = _mm256_and_si256(_mm256_srli_epi16(c, 2), low);
                    const __m256i c2 = _mm256_and_si256(_mm256_srli_epi16(c, 4), low);
                    const __m256i c3 = _mm256_and_si256(_mm256_srli_epi16(c, 6), low);
                    UNROLL
                    for (int t = 0; t < tokens; t++) {
                        const four8 *const x = (const four8 *)(q + t * work->q_stride);
                        const __m256i a = _mm256_add_epi16(
                            _mm256_maddubs_epi16(c0, _mm256_set1_epi32(x[0])),
                            _mm256_maddubs_epi16(c1, _mm256_set1_epi32(x[1])));
                        const __m256i b = _mm256_add_epi16(
                            _mm256_maddubs_epi16(c2, _mm256_set1_epi32(x[2])),
                            _mm256_maddubs_epi16(c3, _mm256_set1_epi32(x[3])));
                        short_d[t] = _mm256_add_epi16(short_d[t], _mm256_add_epi16(a, b));
                    }
                }
                UNROLL
                for (int t = 0; t < tokens; t++)
                    d[t] = _mm256_add_epi32(d[t], _mm256_madd_epi16(short_d[t], ones));
            }
            const uint16_t *scales = work->scales + group * ROWS + 8 * part;
            const __m256 s = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)scales));
            UNROLL
            for (int t = 0; t < tokens; t++) {
                float *const acc_t = acc + t * ROWS + 8 * part;
                const __m256 term = _mm256_mul_ps(_mm256_cvtepi32_ps(d[t]), s);
                _mm256_storeu_ps(acc_t, _mm256_add_ps(_mm256_loadu_ps(acc_t), term));
            }
        }
    }
}

AVX2 static void tile_avx2(const tile_work *work, int tokens, float *acc) {
    if (tokens == 1) tokens_avx2(work, 1, acc);
    else if (tokens == 2) tokens_avx2(work, 2, acc);
    else tokens_avx2(work, TOKENS, acc);
}

QUANTIZE(quantize_avx2, AVX2)
