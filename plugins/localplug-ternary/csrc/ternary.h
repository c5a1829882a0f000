/* What the kernel's bodies share: the layout of the weights and the work on one tile of them.

   Letters: N output channels, K input features, M tokens, g the width of a group along K. A code c is in {0, 1, 2} and stands
   for the weight (c - 1) s, s being the scale of its channel and group.

   Codes. A tile is ROWS channels; in it K runs in chunks of CHUNK features, and a chunk is 128 bytes: 4 bytes of each channel,
   in the order of the checkpoint (byte b of a channel's chunk has features 4b .. 4b + 3, feature 4b + f in bits 2f). N is
   padded to whole tiles and K to whole chunks.
   Scales. float16, (tile, group, ROWS).
   Activations. int8, a chunk transposed as 4 x 4: position 4f + b holds feature 4b + f, so that the four bits fields f of the 4
   bytes of a channel meet four neighbours. Padding is 0, which makes the codes opposite to it count nothing.

   One group of one channel: d = sum c q - sum q, all in int32, so that every body finds the same integer; then, in float32 and
   in the order of the groups, acc <- acc + (float) d * s with two roundings. */

#ifndef TERNARY_H
#define TERNARY_H

#include <stdint.h>

enum { ROWS = 32, CHUNK = 16, CHUNK_BYTES = ROWS * CHUNK / 4, TOKENS = 4 };

typedef uint32_t __attribute__((may_alias)) bits32; /* of floats */
typedef int32_t __attribute__((may_alias)) four8;   /* four int8 */

typedef struct {
    const uint8_t *codes;   /* of the tile */
    const uint16_t *scales; /* of the tile */
    const int8_t *q;        /* activations of the first token */
    const int32_t *sums;    /* sum q over each group, of the first token */
    int64_t q_stride;       /* bytes from one token to the next */
    int64_t groups;
    int64_t chunks; /* of a group */
} tile_work;

/* acc (tokens, ROWS) for 1, 2 or TOKENS tokens. */
typedef void tile_body(const tile_work *work, int tokens, float *acc);

enum { FLOAT32 = 0, BFLOAT16 = 1 }; /* kinds of activations */

/* q, its sums over groups, and the scale of the token, of K values; wide has room for K, unless they are float32. */
typedef float quantize_body(const void *x, int kind, float *wide, int64_t K, int64_t groups, int64_t chunks, int8_t *q,
                            int32_t *sums);

#define UNROLL _Pragma("GCC unroll 16") /* sums stay in registers only if their indices are constants */
#define INLINE static inline __attribute__((always_inline))

#endif
