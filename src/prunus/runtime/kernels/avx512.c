/* x86-64 with AVX-512 (F, BW, VL, VBMI2, VNNI, BF16): the processor spreads values by a mask itself,
 * in a register. Its form that reads memory is slow, and compilers like to make it of the two
 * intrinsics: the empty asm keeps the load apart. */
#include "packed.h"

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__) &&              \
    defined(__AVX512VL__) && defined(__AVX512BW__)
#include <immintrin.h>

#ifndef IN_REGISTER
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#endif

enum { AHEAD = 4096 }; /* bytes of values to fetch ahead */

static inline __m512 half_f32(const float *p, uint32_t bits)
{
    __m512 v = _mm512_loadu_ps(p);
    IN_REGISTER(v);
    return _mm512_maskz_expand_ps((__mmask16)bits, v);
}

static inline __m256i half_16(const uint16_t *p, uint32_t bits)
{
    __m256i v = _mm256_loadu_si256((const void *)p);
    IN_REGISTER(v);
    return _mm256_maskz_expand_epi16((__mmask16)bits, v);
}

static inline __m512 half_bf16(const uint16_t *p, uint32_t bits)
{
    __m512i v = _mm512_cvtepu16_epi32(half_16(p, bits));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

static inline __m512 half_f16(const uint16_t *p, uint32_t bits)
{
    return _mm512_cvtph_ps(half_16(p, bits));
}

static inline __m256i word_i8(const int8_t *p, uint32_t bits)
{
    __m256i v = _mm256_loadu_si256((const void *)p);
    IN_REGISTER(v);
    return _mm256_maskz_expand_epi8(bits, v);
}

static inline __m512 half_i8(const int8_t *p, uint32_t bits)
{
    __m128i v = _mm_loadu_si128((const void *)p);
    IN_REGISTER(v);
    v = _mm_maskz_expand_epi8((__mmask16)bits, v);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v));
}

#define VECTOR_OF(name, type, half)                                                                \
    static void vector_##name(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])       \
    {                                                                                              \
        const uint32_t *masks = masks_of(m, g, 0);                                                 \
        const type *p = stream(m, g);                                                              \
        __m512 kept[ROWS];                                                                         \
        for (int r = 0; r < ROWS; r++)                                                             \
            kept[r] = _mm512_setzero_ps();                                                         \
        for (int64_t w = 0; w < m->words; w++, masks += ROWS) {                                    \
            const __m512 x0 = _mm512_loadu_ps(x->f + w * WORD);                                    \
            const __m512 x1 = _mm512_loadu_ps(x->f + w * WORD + 16);                               \
            for (int i = 0; i < ROWS * WORD / 2; i += 64 / (int)sizeof(type))                      \
                _mm_prefetch((const char *)(p + i) + AHEAD, _MM_HINT_T0);                          \
            _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                 \
            {                                                                                      \
                const uint32_t bits = masks[r];                                                    \
                const type *upper = p + ones(bits & 0xffff);                                       \
                kept[r] = _mm512_fmadd_ps(half(p, bits & 0xffff), x0, kept[r]);                    \
                kept[r] = _mm512_fmadd_ps(half(upper, bits >> 16), x1, kept[r]);                   \
                p += ones(bits);                                                                   \
            }                                                                                      \
        }                                                                                          \
        for (int r = 0; r < ROWS; r++)                                                             \
            sums[r] = _mm512_reduce_add_ps(kept[r]);                                               \
    }
VECTOR_OF(f32, float, half_f32)
VECTOR_OF(wide_bf16, uint16_t, half_bf16)
VECTOR_OF(f16, uint16_t, half_f16)

/* Pairs of bfloat16 at once, where the inputs are such too. */
static void vector_bf16(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    if (x->h == NULL) {
        vector_wide_bf16(m, g, x, sums);
        return;
    }
    const uint32_t *masks = masks_of(m, g, 0);
    const uint16_t *p = stream(m, g);
    __m512 kept[ROWS];
    for (int r = 0; r < ROWS; r++)
        kept[r] = _mm512_setzero_ps();
    for (int64_t w = 0; w < m->words; w++, masks += ROWS) {
        const __m512i at = _mm512_loadu_si512(x->h + w * WORD);
        for (int i = 0; i < ROWS * WORD / 2; i += 32)
            _mm_prefetch((const char *)(p + i) + AHEAD, _MM_HINT_T0);
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)
        {
            __m512i v = _mm512_loadu_si512(p);
            IN_REGISTER(v);
            v = _mm512_maskz_expand_epi16(masks[r], v);
            kept[r] = _mm512_dpbf16_ps(kept[r], (__m512bh)v, (__m512bh)at);
            p += ones(masks[r]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        sums[r] = _mm512_reduce_add_ps(kept[r]);
}

/* Nibbles of a span as bytes; returns the stream behind them, which begins at a whole byte. */
static inline const uint8_t *unpack(const uint8_t *p, int64_t values, int8_t *to)
{
    const __m128i few =
        _mm_setr_epi8(-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15);
    const __m512i levels = _mm512_broadcast_i32x4(few);
    for (int64_t i = 0; i < values; i += 64) {
        __m512i v = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(p + i / 2)));
        v = _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi16(v, 4)), _mm512_set1_epi8(15));
        _mm512_storeu_si512(to + i, _mm512_shuffle_epi8(levels, v));
    }
    return p + (values + 1) / 2;
}

static inline const int8_t *span(const uint32_t *masks, int64_t words, const int8_t *p,
                                 const int16_t *q, __m512i whole[ROWS])
{
    for (int64_t w = 0; w < words; w++, masks += ROWS, q += WORD) {
        const __m512i at = _mm512_loadu_si512(q);
        _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)p + AHEAD + 64, _MM_HINT_T0);
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)
        {
            whole[r] = _mm512_dpwssd_epi32(whole[r], _mm512_cvtepi8_epi16(word_i8(p, masks[r])), at);
            p += ones(masks[r]);
        }
    }
    return p;
}

static inline __attribute__((always_inline)) void vector_int(const Matrix *m, int64_t g,
                                                             const Inputs *x, float sums[ROWS],
                                                             const int nibbles)
{
    int8_t unpacked[UNPACKED];
    __m512 kept[ROWS];
    const int8_t *p = stream(m, g);
    for (int r = 0; r < ROWS; r++)
        kept[r] = _mm512_setzero_ps();
    for (int64_t w = 0, step; w < m->words; w += step) {
        __m512i whole[ROWS];
        for (int r = 0; r < ROWS; r++)
            whole[r] = _mm512_setzero_si512();
        step = step_of(m, w);
        const uint32_t *masks = masks_of(m, g, w);
        if (nibbles) {
            p = (const int8_t *)unpack((const uint8_t *)p, count(masks, step), unpacked);
            span(masks, step, unpacked, x->q + w * WORD, whole);
        } else
            p = span(masks, step, p, x->q + w * WORD, whole);
        const uint16_t *scales = scales_of(m, g, w);
        for (int r = 0; r < ROWS; r++) {
            __m512 scale = _mm512_set1_ps(from_bfloat16(scales[r]) * x->q_scales[w / m->span]);
            kept[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r]), scale, kept[r]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        sums[r] = _mm512_reduce_add_ps(kept[r]);
}

static void vector_i8(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    vector_int(m, g, x, sums, 0);
}

static void vector_i4(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    vector_int(m, g, x, sums, 1);
}

#define EXPAND(type, half)                                                                         \
    do {                                                                                           \
        const type *at = p;                                                                        \
        for (int64_t w = 0; w < words; w++)                                                        \
            for (int r = 0; r < ROWS; r++) {                                                       \
                float *to = tile + r * TILE + w * WORD;                                            \
                const uint32_t bits = *masks++;                                                    \
                _mm512_storeu_ps(to, half(at, bits & 0xffff));                                     \
                _mm512_storeu_ps(to + 16, half(at + ones(bits & 0xffff), bits >> 16));             \
                at += ones(bits);                                                                  \
            }                                                                                      \
        p = at;                                                                                    \
    } while (0)

static const void *expand(const Matrix *m, int64_t g, int64_t word, int64_t words, const void *p,
                          float *tile)
{
    int8_t unpacked[UNPACKED];
    const uint32_t *masks = masks_of(m, g, word);
    if (m->kind == F32)
        EXPAND(float, half_f32);
    else if (m->kind == BF16)
        EXPAND(uint16_t, half_bf16);
    else if (m->kind == F16)
        EXPAND(uint16_t, half_f16);
    else {
        const void *behind = NULL;
        if (m->kind == I4) {
            behind = unpack(p, count(masks, words), unpacked);
            p = unpacked;
        }
        EXPAND(int8_t, half_i8);
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

#define VECTOR 64
#include "batch.h"

#ifndef RUNS
#define RUNS                                                                                       \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&                    \
     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi2") &&                \
     __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
#endif

static int runs(void) { return RUNS; }

const Kernels prunus_avx512 = {
    "avx512", runs, {vector_f32, vector_bf16, vector_f16, vector_i8, vector_i4}, batch, expand};
#endif
