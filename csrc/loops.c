/* The loops of localplug.kernels. What they compute is said in localplug/noise.py and localplug/rounding.py; they give the
 * same bits as the operations of torch there. Built without -ffast-math and without contraction to fused multiply-add.
 *
 * A stream's 64-bit words lie in memory as four 16-bit values, the first in the lowest bits: little-endian machines only.
 */
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the words of a stream are read as four 16-bit values each, which needs a little-endian machine"
#endif

/* One body for each generation of x86, chosen when the library is loaded; -DONE_BODY where that cannot be had. */
#if defined(__x86_64__) && !defined(ONE_BODY)
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif

#define GAMMA 0x9E3779B97F4A7C15u
#define BLOCK 1024 /* elements of a row in work at once, while several products are added to them */
#define WORDS 512 /* of a stream in work at once: their 2048 elements, and what is added to, stay in the first cache */

static inline __attribute__((always_inline)) uint64_t word(uint64_t key, uint64_t number)
{
    uint64_t x = key + number * GAMMA;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static inline __attribute__((always_inline)) uint16_t value16(uint64_t key, uint64_t element)
{
    return (uint16_t)(word(key, element >> 2) >> (16 * (element & 3)));
}

/* out[i] = given[i] + table[16 bits of element offset + i]; out and given are the same array or two apart. */
EVERY_PROCESSOR
void localplug_add_normal(float *out, const float *given, int64_t size, const float *table, uint64_t key, uint64_t offset)
{
    int64_t i = 0;
    for (; i < size && ((offset + (uint64_t)i) & 3); i++)
        out[i] = given[i] + table[value16(key, offset + (uint64_t)i)];
    while (size - i >= 4) {
        uint64_t words[WORDS], first = (offset + (uint64_t)i) >> 2;
        uint16_t places[4 * WORDS];
        int64_t num = (size - i) / 4 < WORDS ? (size - i) / 4 : WORDS;
        for (int64_t k = 0; k < num; k++)
            words[k] = word(key, first + (uint64_t)k);
        memcpy(places, words, (size_t)num * 8);
        float *to = out + i;
        const float *from = given + i;
        if (to == from)
            for (int64_t j = 0; j < 4 * num; j++)
                to[j] += table[places[j]];
        else {
            float *restrict apart = to;
            for (int64_t j = 0; j < 4 * num; j++)
                apart[j] = from[j] + table[places[j]];
        }
        i += 4 * num;
    }
    for (; i < size; i++)
        out[i] = given[i] + table[value16(key, offset + (uint64_t)i)];
}

/* out[i] = given[i] + factor or - factor, by bit (offset + i) % 64 of word (offset + i) / 64. */
EVERY_PROCESSOR
void localplug_add_signs(float *out, const float *given, int64_t size, float factor, uint64_t key, uint64_t offset)
{
    uint32_t plus;
    memcpy(&plus, &factor, 4);
    for (int64_t i = 0; i < size;) {
        uint64_t at = offset + (uint64_t)i;
        uint64_t bits = word(key, at >> 6) >> (at & 63);
        int64_t num = 64 - (int64_t)(at & 63);
        num = num < size - i ? num : size - i;
        float added[64];
        uint32_t halves[2] = {(uint32_t)bits, (uint32_t)(bits >> 32)}, signed_bits[64];
        for (int half = 0; half < 2; half++)
            for (uint32_t b = 0; b < 32; b++)
                signed_bits[32 * half + b] = plus ^ ((halves[half] >> b) << 31);
        memcpy(added, signed_bits, sizeof added);
        float *to = out + i;
        const float *from = given + i;
        if (to == from)
            for (int64_t b = 0; b < num; b++)
                to[b] += added[b];
        else
            for (int64_t b = 0; b < num; b++)
                to[b] = from[b] + added[b];
        i += num;
    }
}

/* out += rows columns^T, of the product's elements from `offset` on, row by row; each product is rounded before it is added. */
EVERY_PROCESSOR
void localplug_add_outer(
    float *restrict out, int64_t size, const float *restrict rows, const float *restrict columns, int64_t width, int64_t offset)
{
    for (int64_t i = 0; i < size;) {
        int64_t row = (offset + i) / width, column = (offset + i) % width;
        int64_t num = width - column < size - i ? width - column : size - i;
        float value = rows[row];
        for (int64_t j = 0; j < num; j++)
            out[i + j] += value * columns[column + j];
        i += num;
    }
}

/* The same for several products, one after another in each element: out = ((out keep_0 + rows_0 columns_0^T) keep_1 + ...), of
 * rows (num, height) and columns (num, width). The bits are those of a call for each product, and memory is gone over once. */
EVERY_PROCESSOR
void localplug_add_outers(
    float *restrict out, int64_t size, const float *restrict rows, const float *restrict columns, const float *restrict keeps,
    int64_t num, int64_t height, int64_t width, int64_t offset)
{
    for (int64_t i = 0; i < size;) {
        int64_t row = (offset + i) / width, column = (offset + i) % width;
        int64_t length = width - column < size - i ? width - column : size - i;
        length = length < BLOCK ? length : BLOCK;
        float *restrict to = out + i;
        for (int64_t k = 0; k < num;) {
            const float *restrict value = rows + k * height + row, *restrict from = columns + k * width + column;
            if (k + 4 <= num && keeps[k] == 1 && keeps[k + 1] == 1 && keeps[k + 2] == 1 && keeps[k + 3] == 1) {
                float a = value[0], b = value[height], c = value[2 * height], d = value[3 * height];
                for (int64_t j = 0; j < length; j++)
                    to[j] = (((to[j] + a * from[j]) + b * from[width + j]) + c * from[2 * width + j]) + d * from[3 * width + j];
                k += 4;
                continue;
            }
            float keep = keeps[k], a = value[0];
            for (int64_t j = 0; j < length; j++)
                to[j] = to[j] * keep + a * from[j];
            k++;
        }
        i += length;
    }
}

/* For each of num streams its first sizes[k] signs, one stream after another, times scales[k]. names[k] becomes the stream's key
 * by the three parts that all have in common; see localplug.noise.stream. */
EVERY_PROCESSOR
void localplug_signs(
    float *restrict out, const uint64_t *restrict names, const int64_t *restrict sizes, const float *restrict scales, int64_t num,
    uint64_t seed, uint64_t step, uint64_t direction)
{
    for (int64_t k = 0; k < num; k++) {
        uint64_t key = word((names[k] + GAMMA) ^ seed, 0);
        key = word((key + GAMMA) ^ step, 0);
        key = word((key + GAMMA) ^ direction, 0);
        uint32_t plus;
        memcpy(&plus, scales + k, 4);
        for (int64_t i = 0; i < sizes[k]; i += 64) {
            uint64_t bits = word(key, (uint64_t)i >> 6);
            int64_t length = sizes[k] - i < 64 ? sizes[k] - i : 64;
            uint32_t halves[2] = {(uint32_t)bits, (uint32_t)(bits >> 32)}, made[64];
            for (int half = 0; half < 2; half++)
                for (uint32_t b = 0; b < 32; b++)
                    made[32 * half + b] = plus ^ ((halves[half] >> b) << 31);
            memcpy(out + i, made, (size_t)length * 4);
        }
        out += sizes[k];
    }
}

/* bfloat16 from float32, up or down by 16 bits of the stream against the 16 bits that are lost; infinities and NaN stay. */
EVERY_PROCESSOR
void localplug_round_bfloat16(uint16_t *restrict out, const uint32_t *restrict bits, int64_t size, uint64_t key, uint64_t offset)
{
    uint64_t words[WORDS];
    uint16_t dice[4 * WORDS];
    for (int64_t i = 0; i < size;) {
        uint64_t at = offset + (uint64_t)i, first = at >> 2;
        int64_t lead = (int64_t)(at & 3), num = 4 * WORDS - lead;
        num = num < size - i ? num : size - i;
        int64_t num_words = (lead + num + 3) / 4;
        for (int64_t k = 0; k < num_words; k++)
            words[k] = word(key, first + (uint64_t)k);
        memcpy(dice, words, (size_t)num_words * 8);
        for (int64_t j = 0; j < num; j++) {
            uint32_t x = bits[i + j], upper = x >> 16, lower = x & 0xFFFF, away = upper + 1;
            uint32_t drawn = dice[lead + j] < lower ? away : upper;
            uint32_t nearest = (x + 0x7FFF + (upper & 1)) >> 16; /* the largest number, infinity or no number */
            uint32_t is_nan = (upper & 0x7F80) == 0x7F80 && (lower != 0 || (upper & 0x7F) != 0);
            out[i + j] = (uint16_t)((away & 0x7F80) == 0x7F80 ? (is_nan ? 0x7FC0 : nearest) : drawn);
        }
        i += num;
    }
}
