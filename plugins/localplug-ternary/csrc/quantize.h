/* int8 activations of one token: q = round(x / s), half to even, s = max |x| / 127.

   Included once a body, so that each has its own machine code; the steps are those of plain float32 and integer arithmetic,
   the same in each. A token whose largest value is below TINY counts as 0; one that holds a NaN or an infinity has the scale
   NaN, which makes all its outputs NaN. */

#include <string.h>

#define TINY_BITS 0x0da24260u /* 1e-30f */
#define ROUND 12582912.0f     /* 1.5 * 2^23: x + ROUND has no fraction left, and its low bits are the integer */

INLINE float quantize_floats(const float *x, int64_t K, int64_t groups, int64_t chunks, int8_t *q, int32_t *sums) {
    const int64_t padded = groups * chunks * CHUNK;
    const bits32 *bits = (const bits32 *)x;
    uint32_t largest = 0; /* the bits of |x| are in the order of its values, NaN above infinity */
    for (int64_t k = 0; k < K; k++) {
        const uint32_t magnitude = bits[k] & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    memset(q + K, 0, (size_t)(padded - K));
    if (largest < TINY_BITS || largest >= 0x7f800000u) {
        memset(q, 0, (size_t)padded);
        memset(sums, 0, (size_t)groups * sizeof *sums);
        const uint32_t nan = 0x7fc00000u;
        float scale = 0.0f;
        if (largest >= 0x7f800000u) memcpy(&scale, &nan, sizeof scale);
        return scale;
    }
    float maximum;
    memcpy(&maximum, &largest, sizeof maximum);
    const float inverse = 127.0f / maximum;
    for (int64_t k = 0; k < K; k++) {
        const float rounded = x[k] * inverse + ROUND;
        uint32_t low;
        memcpy(&low, &rounded, sizeof low);
        q[k] = (int8_t)low;
    }
    for (int64_t group = 0; group < groups; group++) {
        const int8_t *of_group = q + group * chunks * CHUNK;
        int32_t sum = 0;
        for (int64_t k = 0; k < chunks * CHUNK; k++) sum += of_group[k];
        sums[group] = sum;
    }
    for (int64_t k = 0; k < padded; k += CHUNK) { /* 4 x 4 transpose of bytes: pairs within words, then pairs of words */
        uint32_t w[4];
        memcpy(w, q + k, CHUNK);
        const uint32_t even01 = (w[0] & 0x00ff00ffu) | ((w[1] & 0x00ff00ffu) << 8);
        const uint32_t odd01 = ((w[0] >> 8) & 0x00ff00ffu) | (w[1] & 0xff00ff00u);
        const uint32_t even23 = (w[2] & 0x00ff00ffu) | ((w[3] & 0x00ff00ffu) << 8);
        const uint32_t odd23 = ((w[2] >> 8) & 0x00ff00ffu) | (w[3] & 0xff00ff00u);
        w[0] = (even01 & 0xffffu) | (even23 << 16);
        w[1] = (odd01 & 0xffffu) | (odd23 << 16);
        w[2] = (even01 >> 16) | (even23 & 0xffff0000u);
        w[3] = (odd01 >> 16) | (odd23 & 0xffff0000u);
        memcpy(q + k, w, CHUNK);
    }
    return maximum / 127.0f;
}

INLINE float quantize(const void *x, int kind, float *wide, int64_t K, int64_t groups, int64_t chunks, int8_t *q,
                      int32_t *sums) {
    if (kind == FLOAT32) return quantize_floats((const float *)x, K, groups, chunks, q, sums);
    const uint16_t *narrow = (const uint16_t *)x;
    for (int64_t k = 0; k < K; k++) {
        const uint32_t bits = (uint32_t)narrow[k] << 16;
        memcpy(wide + k, &bits, sizeof bits);
    }
    return quantize_floats(wide, K, groups, chunks, q, sums);
}

#define QUANTIZE(name, attribute)                                                                                      \
    attribute static float name(const void *x, int kind, float *wide, int64_t K, int64_t groups, int64_t chunks,       \
                                int8_t *q, int32_t *sums) {                                                            \
        return quantize(x, kind, wide, K, groups, chunks, q, sums);                                                    \
    }
