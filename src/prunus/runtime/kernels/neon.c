/* 64-bit Arm: the same tables as AVX2, looked up by tbl. */
#if defined(__aarch64__)
#define VECTOR 16
#ifndef AHEAD
#define AHEAD 2048
#endif
#include "vectors.h"

#include <arm_neon.h>

INLINE void eight_f32(const float *p, unsigned byte, vec v[2])
{
    const uint8_t *first = (const uint8_t *)p, *second = (const uint8_t *)(p + ones(byte & 15));
    v[0] = (vec)vqtbl1q_u8(vld1q_u8(first), vld1q_u8(prunus_fours[byte & 15]));
    v[1] = (vec)vqtbl1q_u8(vld1q_u8(second), vld1q_u8(prunus_fours[byte >> 4]));
}

INLINE void eight_bf16(const uint16_t *p, unsigned byte, vec v[2])
{
    const uint8x16_t both = vld1q_u8((const uint8_t *)p);
    v[0] = (vec)vqtbl1q_u8(both, vld1q_u8(prunus_upper[byte]));
    v[1] = (vec)vqtbl1q_u8(both, vld1q_u8(prunus_upper[byte] + 16));
}

INLINE void eight_f16(const uint16_t *p, unsigned byte, vec v[2])
{
    const uint8x16_t all = vqtbl1q_u8(vld1q_u8((const uint8_t *)p), vld1q_u8(prunus_pairs[byte]));
    v[0] = (vec)vcvt_f32_f16(vget_low_f16(vreinterpretq_f16_u8(all)));
    v[1] = (vec)vcvt_high_f32_f16(vreinterpretq_f16_u8(all));
}

INLINE int16x8_t wide_i8(const int8_t *p, unsigned byte)
{
    return vmovl_s8(vtbl1_s8(vld1_s8(p), vld1_s8((const int8_t *)prunus_bytes[byte])));
}

INLINE void eight_i8(const int8_t *p, unsigned byte, vec v[2])
{
    const int16x8_t all = wide_i8(p, byte);
    v[0] = (vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(all)));
    v[1] = (vec)vcvtq_f32_s32(vmovl_high_s16(all));
}

#define WORD_OF(name, type)                                                                        \
    INLINE void word_##name(const type *p, const uint32_t *mask, vec v[PARTS])                     \
    {                                                                                              \
        const uint8_t *byte = (const uint8_t *)mask;                                               \
        for (int i = 0; i < PARTS / 2; i++) {                                                      \
            eight_##name(p, byte[i], v + 2 * i);                                                   \
            p += ones(byte[i]);                                                                    \
        }                                                                                          \
    }
WORD_OF(f32, float)
WORD_OF(bf16, uint16_t)
WORD_OF(f16, uint16_t)
WORD_OF(i8, int8_t)

INLINE const uint8_t *unpack(const uint8_t *p, int64_t values, const int8_t *levels, int8_t *to)
{
    const int8x16_t table = vld1q_s8(levels);
    for (int64_t i = 0; i < values; i += 32) {
        const uint8x16_t v = vld1q_u8(p + i / 2);
        const int8x16x2_t both = {{vqtbl1q_s8(table, vandq_u8(v, vdupq_n_u8(15))),
                                   vqtbl1q_s8(table, vshrq_n_u8(v, 4))}};
        vst2q_s8(to + i, both); /* low and high nibbles take turns */
    }
    return p + (values + 1) / 2;
}

INLINE const int8_t *span(const uint32_t *masks, int64_t words, const int8_t *p, const int16_t *q,
                          ivec sums[ROWS])
{
    for (int64_t w = 0; w < words; w++, masks += ROWS, q += WORD) {
        __builtin_prefetch(p + AHEAD);
        for (int r = 0; r < ROWS; r++) {
            uint32_t bits = masks[r];
            int32x4_t sum = (int32x4_t)sums[r];
            for (int i = 0; i < WORD; i += 8, bits >>= 8) {
                const int16x8_t v = wide_i8(p, bits & 0xff), at = vld1q_s16(q + i);
                sum = vmlal_s16(sum, vget_low_s16(v), vget_low_s16(at));
                sum = vmlal_high_s16(sum, v, at);
                p += ones(bits & 0xff);
            }
            sums[r] = (ivec)sum;
        }
    }
    return p;
}

INLINE void shorts(const int8_t *p, const uint32_t *mask, int16_t *to)
{
    uint32_t bits = *mask;
    for (int i = 0; i < WORD; i += 8, bits >>= 8) {
        vst1q_s16(to + i, wide_i8(p, bits & 0xff));
        p += ones(bits & 0xff);
    }
}

INLINE ivec pairs(ivec sums, const int16_t *a, const int16_t *b)
{
    const int16x8_t v = vld1q_s16(a), at = vld1q_s16(b);
    const int32x4_t sum = vmlal_s16((int32x4_t)sums, vget_low_s16(v), vget_low_s16(at));
    return (ivec)vmlal_high_s16(sum, v, at);
}

#include "kernels.h"

static int runs(void) { return 1; }

const Kernels prunus_neon = {
    "neon", runs, {vector_f32, vector_bf16, vector_f16, vector_i8, vector_i4}, batch, expand};
#endif
