/* The NEON intrinsics that neon.c uses, in plain C: each does what Arm's manual defines for its
 * instruction, element by element, so that the kernels run, and are checked, on any processor. What
 * loads and stores touch is what the instructions touch, which is what sanitizers look at. */
#ifndef EMULATED_ARM_NEON_H
#define EMULATED_ARM_NEON_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BYTES(n) __attribute__((vector_size(n), may_alias))
typedef int8_t int8x8_t BYTES(8);
typedef int16_t int16x4_t BYTES(8);
typedef uint16_t float16x4_t BYTES(8); /* as bits: not every compiler has half precision */
typedef uint8_t uint8x16_t BYTES(16);
typedef int8_t int8x16_t BYTES(16);
typedef int16_t int16x8_t BYTES(16);
typedef uint16_t float16x8_t BYTES(16);
typedef int32_t int32x4_t BYTES(16);
typedef float float32x4_t BYTES(16);
#undef BYTES

typedef struct {
    int8x16_t val[2];
} int8x16x2_t;

#define EMULATED static inline __attribute__((unused))

/* ---- memory ---- */

#define LOAD(name, vector, type)                                                                   \
    EMULATED vector name(const type *from)                                                         \
    {                                                                                              \
        vector v;                                                                                  \
        memcpy(&v, from, sizeof v);                                                                \
        return v;                                                                                  \
    }
LOAD(vld1_s8, int8x8_t, int8_t)
LOAD(vld1q_s8, int8x16_t, int8_t)
LOAD(vld1q_u8, uint8x16_t, uint8_t)
LOAD(vld1q_s16, int16x8_t, int16_t)

EMULATED void vst1q_s16(int16_t *to, int16x8_t v) { memcpy(to, &v, sizeof v); }

/* ST2: elements of the two vectors take turns. */
EMULATED void vst2q_s8(int8_t *to, int8x16x2_t both)
{
    for (int i = 0; i < 16; i++) {
        to[2 * i] = both.val[0][i];
        to[2 * i + 1] = both.val[1][i];
    }
}

/* ---- bits ---- */

EMULATED uint8x16_t vandq_u8(uint8x16_t a, uint8x16_t b) { return a & b; }
EMULATED float16x8_t vreinterpretq_f16_u8(uint8x16_t v) { return (float16x8_t)v; }

EMULATED uint8x16_t vdupq_n_u8(uint8_t value)
{
    uint8x16_t v;
    memset(&v, value, sizeof v);
    return v;
}

EMULATED uint8x16_t vshrq_n_u8(uint8x16_t v, int by)
{
    for (int i = 0; i < 16; i++)
        v[i] = (uint8_t)(v[i] >> by);
    return v;
}

/* TBL: zero where the index lies outside of the table. */
#define LOOKUP(name, vector, indices, count)                                                       \
    EMULATED vector name(vector from, indices at)                                                  \
    {                                                                                              \
        vector to = {0};                                                                           \
        for (int i = 0; i < (count); i++)                                                          \
            if ((uint8_t)at[i] < (count))                                                          \
                to[i] = from[(uint8_t)at[i]];                                                      \
        return to;                                                                                 \
    }
LOOKUP(vqtbl1q_u8, uint8x16_t, uint8x16_t, 16)
LOOKUP(vqtbl1q_s8, int8x16_t, uint8x16_t, 16)
LOOKUP(vtbl1_s8, int8x8_t, int8x8_t, 8)

/* ---- halves and widening ---- */

#define PART(name, vector, half, first)                                                            \
    EMULATED half name(vector v) { return (half){v[first], v[first + 1], v[first + 2], v[first + 3]}; }
PART(vget_low_f16, float16x8_t, float16x4_t, 0)
PART(vget_low_s16, int16x8_t, int16x4_t, 0)
PART(emulated_high_f16, float16x8_t, float16x4_t, 4)
PART(emulated_high_s16, int16x8_t, int16x4_t, 4)

#define WIDEN(name, narrow, wide, count)                                                           \
    EMULATED wide name(narrow v)                                                                   \
    {                                                                                              \
        wide to = {0};                                                                             \
        for (int i = 0; i < (count); i++)                                                          \
            to[i] = v[i];                                                                          \
        return to;                                                                                 \
    }
WIDEN(vmovl_s8, int8x8_t, int16x8_t, 8)
WIDEN(vmovl_s16, int16x4_t, int32x4_t, 4)

EMULATED int32x4_t vmovl_high_s16(int16x8_t v) { return vmovl_s16(emulated_high_s16(v)); }

EMULATED float32x4_t vcvtq_f32_s32(int32x4_t v)
{
    return (float32x4_t){(float)v[0], (float)v[1], (float)v[2], (float)v[3]};
}

/* FCVTL: exact, subnormals too; a NaN keeps its upper bits and becomes quiet. */
EMULATED float32x4_t vcvt_f32_f16(float16x4_t from)
{
    int32x4_t to = {0};
    for (int i = 0; i < 4; i++) {
        const int exponent = from[i] >> 10 & 31, rest = from[i] & 1023;
        const float size = ldexpf((float)(exponent ? rest + 1024 : rest), (exponent ? exponent : 1) - 25);
        uint32_t bits;
        memcpy(&bits, &size, sizeof bits);
        if (exponent == 31)
            bits = 0x7f800000u | (uint32_t)rest << 13 | (rest ? 0x400000u : 0);
        to[i] = (int32_t)(bits | (uint32_t)(from[i] & 0x8000) << 16);
    }
    return (float32x4_t)to;
}

EMULATED float32x4_t vcvt_high_f32_f16(float16x8_t v) { return vcvt_f32_f16(emulated_high_f16(v)); }

/* ---- products ---- */

/* SMLAL: products of 16-bit integers added to 32 bits, modulo 2^32. */
EMULATED int32x4_t vmlal_s16(int32x4_t sums, int16x4_t a, int16x4_t b)
{
    for (int i = 0; i < 4; i++)
        sums[i] = (int32_t)((uint32_t)sums[i] + (uint32_t)((int32_t)a[i] * b[i]));
    return sums;
}

EMULATED int32x4_t vmlal_high_s16(int32x4_t sums, int16x8_t a, int16x8_t b)
{
    return vmlal_s16(sums, emulated_high_s16(a), emulated_high_s16(b));
}

#endif
