/* The body for any machine: plain C, written so that a compiler finds the channels side by side. */

INLINE float from_half(uint16_t half) { /* finite values alone, which is what scales are */
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 0x3ffu;
    uint32_t bits = sign | ((exponent + 112u) << 23) | (fraction << 13);
    float value = (float)fraction * 0x1p-24f;
    if (exponent) memcpy(&value, &bits, sizeof value);
    return exponent || !sign ? value : -value;
}

static void tile_portable(const tile_work *work, int tokens, float *acc) {
    for (int t = 0; t < tokens; t++) {
        const uint8_t *w = work->codes;
        const int8_t *q = work->q + t * work->q_stride;
        float *const acc_t = acc + t * ROWS;
        for (int r = 0; r < ROWS; r++) acc_t[r] = 0.0f;
        for (int64_t group = 0; group < work->groups; group++) {
            int32_t d[ROWS];
            for (int r = 0; r < ROWS; r++) d[r] = -work->sums[t * work->groups + group];
            for (int64_t chunk = 0; chunk < work->chunks; chunk++, w += CHUNK_BYTES, q += CHUNK)
                for (int b = 0; b < 4; b++) {
                    const int32_t q0 = q[b], q1 = q[4 + b], q2 = q[8 + b], q3 = q[12 + b];
                    for (int r = 0; r < ROWS; r++) {
                        const int32_t c = w[4 * r + b];
                        d[r] += (c & 3) * q0 + ((c >> 2) & 3) * q1 + ((c >> 4) & 3) * q2 + (c >> 6) * q3;
                    }
                }
            for (int r = 0; r < ROWS; r++) acc_t[r] += (float)d[r] * from_half(work->scales[group * ROWS + r]);
        }
    }
}

QUANTIZE(quantize_portable, )
