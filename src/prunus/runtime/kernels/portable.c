/* Any processor: plain C. */
#define VECTOR 16
#ifndef AHEAD
#define AHEAD 1024
#endif
#include "vectors.h"

#define WORD_OF(name, type, value)                                                                 \
    INLINE void word_##name(const type *p, const uint32_t *mask, vec v[PARTS])                     \
    {                                                                                              \
        memset(v, 0, PARTS * sizeof *v);                                                           \
        for (uint32_t bits = *mask; bits; bits &= bits - 1, p++)                                   \
            v[__builtin_ctz(bits) / LANES][__builtin_ctz(bits) % LANES] = value(*p);               \
    }
WORD_OF(f32, float, (float))
WORD_OF(bf16, uint16_t, from_bfloat16)
WORD_OF(f16, uint16_t, from_float16)
WORD_OF(i8, int8_t, (float))

INLINE const uint8_t *unpack(const uint8_t *p, int64_t values, const int8_t *levels, int8_t *to)
{
    for (int64_t i = 0; i < values; i += 2, p++) {
        to[i] = levels[*p & 15];
        to[i + 1] = levels[*p >> 4];
    }
    return p;
}

INLINE const int8_t *span(const uint32_t *masks, int64_t words, const int8_t *p, const int16_t *q,
                          ivec sums[ROWS])
{
    for (int64_t w = 0; w < words; w++, q += WORD)
        for (int r = 0; r < ROWS; r++, masks++)
            for (uint32_t bits = *masks; bits; bits &= bits - 1)
                sums[r][0] += *p++ * q[__builtin_ctz(bits)];
    return p;
}

INLINE void shorts(const int8_t *p, const uint32_t *mask, int16_t *to)
{
    memset(to, 0, WORD * sizeof *to);
    for (uint32_t bits = *mask; bits; bits &= bits - 1)
        to[__builtin_ctz(bits)] = *p++;
}

INLINE ivec pairs(ivec sums, const int16_t *a, const int16_t *b)
{
    for (int lane = 0; lane < LANES; lane++)
        sums[lane] += a[2 * lane] * b[2 * lane] + a[2 * lane + 1] * b[2 * lane + 1];
    return sums;
}

#include "kernels.h"

static int runs(void) { return 1; }

const Kernels prunus_portable = {
    "portable", runs, {vector_f32, vector_bf16, vector_f16, vector_i8, vector_i4}, batch, expand};
