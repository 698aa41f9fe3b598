/* Any processor: plain C. */
#include "packed.h"

static inline float from_float16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, rest = h & 1023, bits;
    float f;
    if (exponent == 31)
        bits = sign | 0x7f800000 | rest << 13;
    else if (exponent)
        bits = sign | (exponent + 112) << 23 | rest << 13;
    else { /* zero or subnormal: rest * 2^-24 */
        f = (float)rest * 0x1p-24f;
        memcpy(&bits, &f, sizeof bits);
        bits |= sign;
    }
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline float value_f32(const float *p) { return *p; }
static inline float value_bf16(const uint16_t *p) { return from_bfloat16(*p); }
static inline float value_f16(const uint16_t *p) { return from_float16(*p); }

/* Zeros are multiplied too, as a dense product does: zero times infinity is not a number. */
#define VECTOR_OF(name, type, value)                                                               \
    static void vector_##name(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])       \
    {                                                                                              \
        const uint32_t *masks = masks_of(m, g, 0);                                                 \
        const type *p = stream(m, g);                                                              \
        memset(sums, 0, ROWS * sizeof *sums);                                                      \
        for (int64_t w = 0; w < m->words; w++)                                                     \
            for (int r = 0; r < ROWS; r++, masks++) {                                              \
                float row[WORD] = {0}, sum = 0;                                                    \
                for (uint32_t bits = *masks; bits; bits &= bits - 1)                               \
                    row[__builtin_ctz(bits)] = value(p++);                                         \
                for (int i = 0; i < WORD; i++)                                                     \
                    sum += row[i] * x->f[w * WORD + i];                                            \
                sums[r] += sum;                                                                    \
            }                                                                                      \
    }
VECTOR_OF(f32, float, value_f32)
VECTOR_OF(bf16, uint16_t, value_bf16)
VECTOR_OF(f16, uint16_t, value_f16)

/* Nibbles of a span as bytes; returns the stream behind them, which begins at a whole byte. */
static const uint8_t *unpack(const uint8_t *p, int64_t values, int8_t *to)
{
    for (int64_t i = 0; i < values; i += 2, p++) {
        to[i] = LEVEL(*p & 15);
        to[i + 1] = LEVEL(*p >> 4);
    }
    return p;
}

static void vector_int(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    int8_t unpacked[UNPACKED];
    const int8_t *p = stream(m, g);
    memset(sums, 0, ROWS * sizeof *sums);
    for (int64_t w = 0, step; w < m->words; w += step) {
        step = step_of(m, w);
        const uint32_t *masks = masks_of(m, g, w);
        const int8_t *at = p;
        if (m->kind == I4) {
            p = (const int8_t *)unpack((const uint8_t *)p, count(masks, step), unpacked);
            at = unpacked;
        }
        int32_t whole[ROWS] = {0};
        for (int64_t i = 0; i < step; i++)
            for (int r = 0; r < ROWS; r++)
                for (uint32_t bits = masks[i * ROWS + r]; bits; bits &= bits - 1)
                    whole[r] += *at++ * x->q[(w + i) * WORD + __builtin_ctz(bits)];
        if (m->kind == I8)
            p = at;
        for (int r = 0; r < ROWS; r++)
            sums[r] += (float)whole[r] * (from_bfloat16(scales_of(m, g, w)[r]) * x->q_scales[w / m->span]);
    }
}

#define EXPAND(type, value)                                                                        \
    do {                                                                                           \
        const type *at = p;                                                                        \
        for (int64_t w = 0; w < words; w++)                                                        \
            for (int r = 0; r < ROWS; r++, masks++)                                                \
                for (uint32_t bits = *masks; bits; bits &= bits - 1)                               \
                    tile[r * TILE + w * WORD + __builtin_ctz(bits)] = value(at++);                 \
        p = at;                                                                                    \
    } while (0)

static const void *expand(const Matrix *m, int64_t g, int64_t word, int64_t words, const void *p,
                          float *tile)
{
    int8_t unpacked[UNPACKED];
    const uint32_t *masks = masks_of(m, g, word);
    for (int r = 0; r < ROWS; r++)
        memset(tile + r * TILE, 0, (size_t)words * WORD * sizeof *tile);
    if (m->kind == F32)
        EXPAND(float, value_f32);
    else if (m->kind == BF16)
        EXPAND(uint16_t, value_bf16);
    else if (m->kind == F16)
        EXPAND(uint16_t, value_f16);
    else {
        const void *behind = NULL;
        if (m->kind == I4) {
            behind = unpack(p, count(masks, words), unpacked);
            p = unpacked;
        }
        EXPAND(int8_t, *);
        if (behind)
            p = behind;
        for (int r = 0; r < ROWS; r++)
            for (int64_t i = 0; i < words * WORD; i++)
                tile[r * TILE + i] *= from_bfloat16(scales_of(m, g, word)[r]);
    }
    return p;
}

#define VECTOR 16
#include "batch.h"

static int runs(void) { return 1; }

const Kernels prunus_portable = {
    "portable", runs, {vector_f32, vector_bf16, vector_f16, vector_int, vector_int}, batch, expand};
