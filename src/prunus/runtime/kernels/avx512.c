/* x86-64 with AVX-512 (F, BW, VL, VBMI2, VNNI, BF16): the processor spreads values by a mask itself,
 * in a register. Its form that reads memory is slow, and compilers like to make it of the two
 * intrinsics: the empty asm keeps the load apart. */
#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__) &&              \
    defined(__AVX512VL__) && defined(__AVX512BW__)
#define VECTOR 64
#ifndef AHEAD
#define AHEAD 4096
#endif
#define OWN_BF16
#include "vectors.h"

#include <immintrin.h>

#ifndef IN_REGISTER
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#endif

INLINE __m512 half_f32(const float *p, uint32_t bits)
{
    __m512 v = _mm512_loadu_ps(p);
    IN_REGISTER(v);
    return _mm512_maskz_expand_ps((__mmask16)bits, v);
}

INLINE __m256i half_16(const uint16_t *p, uint32_t bits)
{
    __m256i v = _mm256_loadu_si256((const void *)p);
    IN_REGISTER(v);
    return _mm256_maskz_expand_epi16((__mmask16)bits, v);
}

INLINE __m512 half_bf16(const uint16_t *p, uint32_t bits)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half_16(p, bits)), 16));
}

INLINE __m512 half_f16(const uint16_t *p, uint32_t bits)
{
    return _mm512_cvtph_ps(half_16(p, bits));
}

INLINE __m512 half_i8(const int8_t *p, uint32_t bits)
{
    __m128i v = _mm_loadu_si128((const void *)p);
    IN_REGISTER(v);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_expand_epi8((__mmask16)bits, v)));
}

#define WORD_OF(name, type)                                                                        \
    INLINE void word_##name(const type *p, const uint32_t *mask, vec v[PARTS])                     \
    {                                                                                              \
        v[0] = (vec)half_##name(p, *mask & 0xffff);                                                \
        v[1] = (vec)half_##name(p + ones(*mask & 0xffff), *mask >> 16);                            \
    }
WORD_OF(f32, float)
WORD_OF(bf16, uint16_t)
WORD_OF(f16, uint16_t)
WORD_OF(i8, int8_t)

INLINE const uint8_t *unpack(const uint8_t *p, int64_t values, const int8_t *levels, int8_t *to)
{
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)levels));
    for (int64_t i = 0; i < values; i += 64) {
        __m512i v = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(p + i / 2)));
        v = _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi16(v, 4)), _mm512_set1_epi8(15));
        _mm512_storeu_si512(to + i, _mm512_shuffle_epi8(table, v));
    }
    return p + (values + 1) / 2;
}

INLINE const int8_t *span(const uint32_t *masks, int64_t words, const int8_t *p, const int16_t *q,
                          ivec sums[ROWS])
{
    for (int64_t w = 0; w < words; w++, masks += ROWS, q += WORD) {
        const __m512i at = _mm512_loadu_si512(q);
        _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)p + AHEAD + 64, _MM_HINT_T0);
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)
        {
            __m256i v = _mm256_loadu_si256((const void *)p);
            IN_REGISTER(v);
            const __m512i wide = _mm512_cvtepi8_epi16(_mm256_maskz_expand_epi8(masks[r], v));
            sums[r] = (ivec)_mm512_dpwssd_epi32((__m512i)sums[r], wide, at);
            p += ones(masks[r]);
        }
    }
    return p;
}

INLINE void shorts(const int8_t *p, const uint32_t *mask, int16_t *to)
{
    __m256i v = _mm256_loadu_si256((const void *)p);
    IN_REGISTER(v);
    _mm512_storeu_si512(to, _mm512_cvtepi8_epi16(_mm256_maskz_expand_epi8(*mask, v)));
}

INLINE ivec pairs(ivec sums, const int16_t *a, const int16_t *b)
{
    return (ivec)_mm512_dpwssd_epi32((__m512i)sums, _mm512_loadu_si512(a), _mm512_loadu_si512(b));
}

static void vector_bf16(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS]);

#include "kernels.h"

#define word_wide word_bf16
VECTOR_OF(wide, uint16_t)

/* Pairs of bfloat16 at once, where the inputs are such too. */
static void vector_bf16(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    if (x->h == NULL) {
        vector_wide(m, g, x, sums);
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
        UNROLL for (int r = 0; r < ROWS; r++)
        {
            __m512i v = _mm512_loadu_si512(p);
            IN_REGISTER(v);
            v = _mm512_maskz_expand_epi16(masks[r], v);
            kept[r] = _mm512_dpbf16_ps(kept[r], (__m512bh)v, (__m512bh)at);
            p += ones(masks[r]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        sums[r] = total((vec)kept[r]);
}

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
