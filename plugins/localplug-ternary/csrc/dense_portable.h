/* The body for any machine: plain C, written so that a compiler finds the slots side by side. */

INLINE void widened_portable(const void *w, int kind, float *wide) { /* SLOTS of them, in the order of the slots */
    if (kind == WEIGHT_FLOAT32) memcpy(wide, w, SLOTS * sizeof(float));
    else if (kind == WEIGHT_FLOAT16)
        for (int k = 0; k < SLOTS; k++) wide[k] = wide_float16(((const half16 *)w)[k]);
    else
        for (int pair = 0; pair < SLOTS; pair += 2 * LANES)
            for (int l = 0; l < LANES; l++) {
                wide[pair + l] = wide_bfloat16(((const half16 *)w)[pair + 2 * l]);
                wide[pair + LANES + l] = wide_bfloat16(((const half16 *)w)[pair + 2 * l + 1]);
            }
}

INLINE float token_portable(const void *row, int kind, int64_t steps, const void *tail, const float *x) {
    const int64_t bytes = SLOTS * (kind == WEIGHT_FLOAT32 ? 4 : 2);
    float slots[SLOTS] = {0}, wide[SLOTS];
    for (int64_t step = 0; step < steps + (tail != NULL); step++, x += SLOTS) {
        widened_portable(step < steps ? (const char *)row + step * bytes : tail, kind, wide);
        for (int k = 0; k < SLOTS; k++) slots[k] += wide[k] * x[k];
    }
    for (int l = 0; l < LANES; l++) slots[l] = (slots[l] + slots[16 + l]) + (slots[32 + l] + slots[48 + l]);
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) slots[l] += slots[l + half];
    return slots[0];
}

#define BY_PORTABLE(name, kind)                                                                                        \
    static float name(const void *row, int64_t steps, const void *tail, const float *x) {                              \
        return token_portable(row, kind, steps, tail, x);                                                              \
    }
BY_PORTABLE(float32_portable, WEIGHT_FLOAT32)
BY_PORTABLE(bfloat16_portable, WEIGHT_BFLOAT16)
BY_PORTABLE(float16_portable, WEIGHT_FLOAT16)
