/* A packed matrix, and the functions that each instruction set brings. docs/packed.md has the
 * format byte by byte.
 *
 * Rows are taken eight at a time. A group of eight rows has one mask word for each row and each 32
 * inputs (bit i: input i is kept), the words of the eight rows side by side, and one stream of kept
 * values in the order of those words. A value that is read beyond the end of the stream lies in the
 * padding behind it.
 */
#ifndef PRUNUS_PACKED_H
#define PRUNUS_PACKED_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = 8, WORD = 32, BATCH = 16, SPAN = 16 /* words at most */, TILE = SPAN * WORD };
enum { F32, BF16, F16, I8, I4, KINDS };

typedef struct {
    const uint32_t *masks;  /* (groups, words, ROWS) */
    const void *values;     /* what a kind says: float, bfloat16, float16, int8, or nibbles */
    const int64_t *offsets; /* (groups + 1): where a group's stream begins, in values */
    const int8_t *levels;   /* what the 16 nibbles stand for; I4 */
    const uint16_t *scales; /* bfloat16 (groups, spans, ROWS), or (groups, 1, ROWS); I8 and I4 */
    int64_t outputs, inputs, words;
    int64_t span;  /* words that share a scale of the inputs, and of the weights if there are many */
    int32_t kind;
    int32_t whole; /* one scale for the whole row */
} Matrix;

/* What is multiplied, padded with zeros to whole words. */
typedef struct {
    const float *f;         /* (batch, words * WORD) */
    const int16_t *q;       /* I8 and I4: x = q * q_scale */
    const float *q_scales;  /* (batch, spans) */
    int64_t batch;
} Inputs;

typedef struct {
    const char *name;
    int (*runs)(void); /* whether this processor has what it takes */
    /* sums[r] = row 8g + r times the one input */
    void (*vector[KINDS])(const Matrix *, int64_t g, const Inputs *, float sums[ROWS]);
    /* sums[b * ROWS + r], for 2 to BATCH inputs */
    void (*batch)(const Matrix *, int64_t g, const Inputs *, float *sums);
    /* `words` words of the eight rows from `word` on, as float (ROWS, TILE); returns where the
     * stream goes on; whole spans only where there are scales */
    const void *(*expand)(const Matrix *, int64_t g, int64_t word, int64_t words, const void *,
                          float *tile);
} Kernels;

extern const Kernels prunus_portable, prunus_avx2, prunus_avx512, prunus_neon;

/* For each byte of a mask: where in the stream the value of each bit lies, 0x80 for a pruned one,
 * as byte shuffles want it. Masks are read byte by byte: every processor here is little-endian. */
extern uint8_t prunus_bytes[256][8];       /* values of one byte */
extern uint8_t prunus_bytes_high[256][8];  /* the same + 8 */
extern uint8_t prunus_pairs[256][16];      /* values of two bytes */
extern uint8_t prunus_upper[256][32];      /* two bytes, as the upper half of four */
extern uint8_t prunus_fours[16][16];       /* values of four bytes, for four bits */

INLINE int ones(uint32_t m) { return __builtin_popcount(m); }

INLINE float from_bfloat16(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

INLINE float from_float16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, rest = h & 1023;
    const float small = (float)rest * 0x1p-24f; /* zero or subnormal */
    uint32_t bits;
    memcpy(&bits, &small, sizeof bits);
    if (exponent)
        bits = (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | rest << 13;
    bits |= sign;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

INLINE size_t size_of(int kind) { return kind == F32 ? 4 : kind < I8 ? 2 : 1; }

INLINE const void *stream(const Matrix *m, int64_t g)
{
    return (const char *)m->values + (size_t)m->offsets[g] * size_of(m->kind);
}

INLINE const uint32_t *masks_of(const Matrix *m, int64_t g, int64_t word)
{
    return m->masks + (g * m->words + word) * ROWS;
}

/* The eight scales of a span. */
INLINE const uint16_t *scales_of(const Matrix *m, int64_t g, int64_t word)
{
    int64_t spans = (m->words + m->span - 1) / m->span;
    return m->scales + (m->whole ? g : g * spans + word / m->span) * ROWS;
}

/* How many words go through a tile at once. */
INLINE int64_t step_of(const Matrix *m, int64_t word)
{
    int64_t step = m->kind < I8 ? 8 : m->span;
    return m->words - word < step ? m->words - word : step;
}

INLINE int64_t count(const uint32_t *masks, int64_t words)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < words * ROWS; i++)
        sum += ones(masks[i]);
    return sum;
}

#endif
