/* x86-64 with AVX2, FMA and F16C: a table says for each byte of a mask how to spread eight values. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define VECTOR 32
#ifndef AHEAD
#define AHEAD 4096
#endif
#include "vectors.h"

#include <cpuid.h>
#include <immintrin.h>

INLINE __m256 eight_f32(const float *p, unsigned byte)
{
    const unsigned low = byte << 4 & 0xf0, high = byte & 0xf0; /* where a table of 16 bytes lies */
    const __m128i *const at = (const void *)prunus_fours;
    __m128i first = _mm_loadu_si128((const void *)p);
    __m128i second = _mm_loadu_si128((const void *)(p + ones(low)));
    first = _mm_shuffle_epi8(first, _mm_load_si128(at + low / 16));
    second = _mm_shuffle_epi8(second, _mm_load_si128(at + high / 16));
    return _mm256_castsi256_ps(_mm256_set_m128i(second, first));
}

INLINE __m256 eight_bf16(const uint16_t *p, unsigned byte)
{
    __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(
        _mm256_shuffle_epi8(both, _mm256_load_si256((const void *)prunus_upper[byte])));
}

INLINE __m256 eight_f16(const uint16_t *p, unsigned byte)
{
    __m128i v = _mm_loadu_si128((const void *)p);
    return _mm256_cvtph_ps(_mm_shuffle_epi8(v, _mm_load_si128((const void *)prunus_pairs[byte])));
}

INLINE __m256 eight_i8(const int8_t *p, unsigned byte)
{
    __m128i v = _mm_shuffle_epi8(_mm_loadl_epi64((const void *)p),
                                 _mm_loadl_epi64((const void *)prunus_bytes[byte]));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
}

#define WORD_OF(name, type)                                                                        \
    INLINE void word_##name(const type *p, const uint32_t *mask, vec v[PARTS])                     \
    {                                                                                              \
        const uint8_t *byte = (const uint8_t *)mask;                                               \
        for (int i = 0; i < PARTS; i++) {                                                          \
            v[i] = eight_##name(p, byte[i]);                                                       \
            p += ones(byte[i]);                                                                    \
        }                                                                                          \
    }
WORD_OF(f32, float)
WORD_OF(bf16, uint16_t)
WORD_OF(f16, uint16_t)
WORD_OF(i8, int8_t)

INLINE const uint8_t *unpack(const uint8_t *p, int64_t values, const int8_t *levels, int8_t *to)
{
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)levels));
    for (int64_t i = 0; i < values; i += 32) {
        __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(p + i / 2)));
        v = _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16(v, 4)), _mm256_set1_epi8(15));
        _mm256_storeu_si256((void *)(to + i), _mm256_shuffle_epi8(table, v));
    }
    return p + (values + 1) / 2;
}

INLINE __m256i sixteen_i8(const int8_t *p, uint32_t low, uint32_t high)
{
    __m128i v = _mm_loadl_epi64((const void *)p);
    __m128i at = _mm_loadl_epi64((const void *)prunus_bytes[low]);
    v = _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(v), (const void *)(p + ones(low))));
    at = _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(at), (const void *)prunus_bytes_high[high]));
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(v, at));
}

INLINE const int8_t *span(const uint32_t *masks, int64_t words, const int8_t *p, const int16_t *q,
                          ivec sums[ROWS])
{
    for (int64_t w = 0; w < words; w++, masks += ROWS, q += WORD) {
        const __m256i q0 = _mm256_loadu_si256((const void *)q);
        const __m256i q1 = _mm256_loadu_si256((const void *)(q + 16));
        _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)p + AHEAD + 64, _MM_HINT_T0);
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)
        {
            const uint8_t *byte = (const uint8_t *)(masks + r);
            const int8_t *upper = p + ones(masks[r] & 0xffff);
            const __m256i v0 = sixteen_i8(p, byte[0], byte[1]);
            const __m256i v1 = sixteen_i8(upper, byte[2], byte[3]);
            sums[r] += (ivec)_mm256_madd_epi16(v0, q0) + (ivec)_mm256_madd_epi16(v1, q1);
            p += ones(masks[r]);
        }
    }
    return p;
}

INLINE void shorts(const int8_t *p, const uint32_t *mask, int16_t *to)
{
    const uint8_t *byte = (const uint8_t *)mask;
    const __m256i low = sixteen_i8(p, byte[0], byte[1]);
    const __m256i high = sixteen_i8(p + ones(*mask & 0xffff), byte[2], byte[3]);
    _mm256_store_si256((void *)to, low);
    _mm256_store_si256((void *)(to + 16), high);
}

INLINE ivec pairs(ivec sums, const int16_t *a, const int16_t *b)
{
    const __m256i at = _mm256_loadu_si256((const void *)b);
    return sums + (ivec)_mm256_madd_epi16(_mm256_load_si256((const void *)a), at);
}

#include "kernels.h"

static int runs(void)
{
    unsigned a, b, c = 0, d; /* clang 14 and gcc 10 know no feature "f16c" by name */
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
}

const Kernels prunus_avx2 = {
    "avx2", runs, {vector_f32, vector_bf16, vector_f16, vector_i8, vector_i4}, batch, expand};
#endif
