/* What the bodies of the product with a floating-point weight share. See dense.c.

   A row of the weight runs in steps of SLOTS features. Feature k adds w * x to slot k mod SLOTS, in the order of the steps, with
   two roundings: product and sum. bfloat16 is widened in pairs, the even ones of a register by a
   shift and the odd ones by a mask: there the slots of 32 features are 16 even ones, then 16 odd ones. At the end
       s_l = (slot l + slot 16 + l) + (slot 32 + l + slot 48 + l), l < 16,
   and halves are added to halves. Every body does these steps, so that all give the same bits. */

#ifndef DENSE_H
#define DENSE_H

#include <stdint.h>
#include <string.h>

#include "ternary.h"

enum { SLOTS = 64, LANES = 16 };
enum { WEIGHT_FLOAT32 = 0, WEIGHT_BFLOAT16 = 1, WEIGHT_FLOAT16 = 2 };

typedef uint16_t __attribute__((may_alias)) half16;

/* The product of a row with one token, x in the order of the slots: `steps` times SLOTS features, and SLOTS more at the tail,
   if there is one. */
typedef float dense_body(const void *row, int64_t steps, const void *tail, const float *x);

INLINE float wide_bfloat16(uint16_t value) {
    const uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

INLINE float wide_float16(uint16_t value) {
    const uint32_t sign = (uint32_t)(value & 0x8000u) << 16, exponent = (value >> 10) & 31u, fraction = value & 0x3ffu;
    if (!exponent) return (sign ? -0x1p-24f : 0x1p-24f) * (float)fraction;
    const uint32_t quiet = exponent == 31u && fraction ? 0x200u : 0u;
    const uint32_t bits = sign | ((exponent == 31u ? 255u : exponent + 112u) << 23) | ((fraction | quiet) << 13);
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

#endif
