/* 64-bit Arm: the same tables, looked up by tbl. */
#include "packed.h"

#if defined(__aarch64__)
#include <arm_neon.h>

enum { AHEAD = 2048 }; /* bytes of values to fetch ahead */

typedef struct { float32x4_t low, high; } Eight;

static inline Eight eight_bf16(const uint16_t *p, unsigned byte)
{
    const uint8x16_t v = vld1q_u8((const uint8_t *)p);
    const uint8_t *at = prunus_upper[byte];
    Eight e = {vreinterpretq_f32_u8(vqtbl1q_u8(v, vld1q_u8(at))),
               vreinterpretq_f32_u8(vqtbl1q_u8(v, vld1q_u8(at + 16)))};
    return e;
}

static inline Eight eight_f16(const uint16_t *p, unsigned byte)
{
    const uint8x16_t v = vqtbl1q_u8(vld1q_u8((const uint8_t *)p), vld1q_u8(prunus_pairs[byte]));
    const float16x8_t h = vreinterpretq_f16_u8(v);
    Eight e = {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
    return e;
}

static inline Eight eight_f32(const float *p, unsigned byte)
{
    const uint8x16x2_t v = vld1q_u8_x2((const uint8_t *)p);
    const uint8_t *at = prunus_fours[byte];
    Eight e = {vreinterpretq_f32_u8(vqtbl2q_u8(v, vld1q_u8(at))),
               vreinterpretq_f32_u8(vqtbl2q_u8(v, vld1q_u8(at + 16)))};
    return e;
}

static inline int16x8_t whole_i8(const int8_t *p, unsigned byte)
{
    return vmovl_s8(vtbl1_s8(vld1_s8(p), vld1_s8((const int8_t *)prunus_bytes[byte])));
}

static inline Eight eight_i8(const int8_t *p, unsigned byte)
{
    const int16x8_t v = whole_i8(p, byte);
    Eight e = {vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))};
    return e;
}

#define VECTOR_OF(name, type, eight)                                                               \
    static void vector_##name(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])       \
    {                                                                                              \
        const uint32_t *masks = masks_of(m, g, 0);                                                 \
        const type *p = stream(m, g);                                                              \
        float32x4_t kept[ROWS];                                                                    \
        for (int r = 0; r < ROWS; r++)                                                             \
            kept[r] = vdupq_n_f32(0);                                                              \
        for (int64_t w = 0; w < m->words; w++, masks += ROWS) {                                    \
            const float *at = x->f + w * WORD;                                                     \
            for (int i = 0; i < ROWS * WORD / 2; i += 64 / (int)sizeof(type))                      \
                __builtin_prefetch((const char *)(p + i) + AHEAD);                                 \
            for (int r = 0; r < ROWS; r++) {                                                       \
                uint32_t bits = masks[r];                                                          \
                for (int i = 0; i < WORD; i += 8, bits >>= 8) {                                    \
                    const Eight v = eight(p, bits & 0xff);                                         \
                    kept[r] = vfmaq_f32(kept[r], v.low, vld1q_f32(at + i));                        \
                    kept[r] = vfmaq_f32(kept[r], v.high, vld1q_f32(at + i + 4));                   \
                    p += ones(bits & 0xff);                                                        \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        for (int r = 0; r < ROWS; r++)                                                             \
            sums[r] = vaddvq_f32(kept[r]);                                                         \
    }
VECTOR_OF(f32, float, eight_f32)
VECTOR_OF(bf16, uint16_t, eight_bf16)
VECTOR_OF(f16, uint16_t, eight_f16)

/* Nibbles of a span as bytes; returns the stream behind them, which begins at a whole byte. */
static inline const uint8_t *unpack(const uint8_t *p, int64_t values, int8_t *to)
{
    static const int8_t found[16] = {-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15};
    const int8x16_t levels = vld1q_s8(found);
    for (int64_t i = 0; i < values; i += 32) {
        const uint8x16_t v = vld1q_u8(p + i / 2);
        int8x16x2_t both = {{vqtbl1q_s8(levels, vandq_u8(v, vdupq_n_u8(15))),
                             vqtbl1q_s8(levels, vshrq_n_u8(v, 4))}};
        vst2q_s8(to + i, both); /* low and high nibbles take turns */
    }
    return p + (values + 1) / 2;
}

static void vector_int(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    int8_t unpacked[UNPACKED];
    float32x4_t kept[ROWS];
    const int8_t *p = stream(m, g);
    for (int r = 0; r < ROWS; r++)
        kept[r] = vdupq_n_f32(0);
    for (int64_t w = 0, step; w < m->words; w += step) {
        int32x4_t whole[ROWS];
        for (int r = 0; r < ROWS; r++)
            whole[r] = vdupq_n_s32(0);
        step = step_of(m, w);
        const uint32_t *masks = masks_of(m, g, w);
        const int8_t *at = p;
        if (m->kind == I4) {
            p = (const int8_t *)unpack((const uint8_t *)p, count(masks, step), unpacked);
            at = unpacked;
        }
        for (int64_t i = 0; i < step; i++, masks += ROWS) {
            const int16_t *q = x->q + (w + i) * WORD;
            __builtin_prefetch(at + AHEAD);
            for (int r = 0; r < ROWS; r++) {
                uint32_t bits = masks[r];
                for (int j = 0; j < WORD; j += 8, bits >>= 8) {
                    const int16x8_t v = whole_i8(at, bits & 0xff), b = vld1q_s16(q + j);
                    whole[r] = vmlal_s16(whole[r], vget_low_s16(v), vget_low_s16(b));
                    whole[r] = vmlal_high_s16(whole[r], v, b);
                    at += ones(bits & 0xff);
                }
            }
        }
        if (m->kind == I8)
            p = at;
        const uint16_t *scales = scales_of(m, g, w);
        for (int r = 0; r < ROWS; r++) {
            const float scale = from_bfloat16(scales[r]) * x->q_scales[w / m->span];
            kept[r] = vfmaq_n_f32(kept[r], vcvtq_f32_s32(whole[r]), scale);
        }
    }
    for (int r = 0; r < ROWS; r++)
        sums[r] = vaddvq_f32(kept[r]);
}

#define EXPAND(type, eight)                                                                        \
    do {                                                                                           \
        const type *at = p;                                                                        \
        for (int64_t w = 0; w < words; w++)                                                        \
            for (int r = 0; r < ROWS; r++) {                                                       \
                float *to = tile + r * TILE + w * WORD;                                            \
                uint32_t bits = *masks++;                                                          \
                for (int i = 0; i < WORD; i += 8, bits >>= 8) {                                    \
                    const Eight v = eight(at, bits & 0xff);                                        \
                    vst1q_f32(to + i, v.low);                                                      \
                    vst1q_f32(to + i + 4, v.high);                                                 \
                    at += ones(bits & 0xff);                                                       \
                }                                                                                  \
            }                                                                                      \
        p = at;                                                                                    \
    } while (0)

static const void *expand(const Matrix *m, int64_t g, int64_t word, int64_t words, const void *p,
                          float *tile)
{
    int8_t unpacked[UNPACKED];
    const uint32_t *masks = masks_of(m, g, word);
    if (m->kind == F32)
        EXPAND(float, eight_f32);
    else if (m->kind == BF16)
        EXPAND(uint16_t, eight_bf16);
    else if (m->kind == F16)
        EXPAND(uint16_t, eight_f16);
    else {
        const void *behind = NULL;
        if (m->kind == I4) {
            behind = unpack(p, count(masks, words), unpacked);
            p = unpacked;
        }
        EXPAND(int8_t, eight_i8);
        if (behind)
            p = behind;
        const uint16_t *scales = scales_of(m, g, word);
        for (int r = 0; r < ROWS; r++) {
            const float scale = from_bfloat16(scales[r]);
            for (int64_t i = 0; i < words * WORD; i++)
                tile[r * TILE + i] *= scale;
        }
    }
    return p;
}

#define VECTOR 16
#include "batch.h"

static int runs(void) { return 1; }

const Kernels prunus_neon = {
    "neon", runs, {vector_f32, vector_bf16, vector_f16, vector_int, vector_int}, batch, expand};
#endif
