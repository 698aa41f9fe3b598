/* x86-64 with AVX-512 (F, BW, VL, VBMI, VBMI2, VNNI): the processor spreads values by a mask itself,
 * in a register. Its form that reads memory is slow, and compilers like to make it of the two
 * intrinsics: the empty asm keeps the load apart. */
#if defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) &&              \
    defined(__AVX512VL__) && defined(__AVX512BW__)
#define VECTOR 64
#ifndef AHEAD
#define AHEAD 4096
#endif
#define OWN_NIBBLES
#include "vectors.h"

#include <immintrin.h>

#ifndef IN_REGISTER
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#endif

/* Zeros of which compilers know nothing. Zen 5 waits for what the target of an expansion held before,
 * which the expansion of the last word wrote, also where it is told to zero it. */
INLINE __m512i zeros(void)
{
    __m512i v = _mm512_setzero_si512();
    IN_REGISTER(v);
    return v;
}

INLINE __m512i load(const void *p)
{
    __m512i v = _mm512_loadu_si512(p);
    IN_REGISTER(v);
    return v;
}

INLINE __m256i lower(__m512i v) { return _mm512_castsi512_si256(v); }
INLINE __m256i upper(__m512i v) { return _mm512_extracti64x4_epi64(v, 1); }

INLINE vec half_f32(const float *p, uint32_t bits)
{
    const __m512 values = _mm512_castsi512_ps(load(p));
    return (vec)_mm512_mask_expand_ps(_mm512_castsi512_ps(zeros()), (__mmask16)bits, values);
}

INLINE void word_f32(const float *p, const uint32_t *mask, vec v[PARTS])
{
    v[0] = half_f32(p, *mask & 0xffff);
    v[1] = half_f32(p + ones(*mask & 0xffff), *mask >> 16);
}

INLINE vec half_bf16(__m256i v)
{
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16);
}

INLINE void word_bf16(const uint16_t *p, const uint32_t *mask, vec v[PARTS])
{
    const __m512i word = _mm512_mask_expand_epi16(zeros(), *mask, load(p));
    v[0] = half_bf16(lower(word));
    v[1] = half_bf16(upper(word));
}

INLINE void word_f16(const uint16_t *p, const uint32_t *mask, vec v[PARTS])
{
    const __m512i word = _mm512_mask_expand_epi16(zeros(), *mask, load(p));
    v[0] = (vec)_mm512_cvtph_ps(lower(word));
    v[1] = (vec)_mm512_cvtph_ps(upper(word));
}

/* The words of two rows, side by side as their masks and values are. */
INLINE __m512i two_i8(const uint32_t *masks, __m512i values)
{
    uint64_t mask;
    memcpy(&mask, masks, sizeof mask);
    return _mm512_mask_expand_epi8(zeros(), mask, values);
}

/* The 32 weights of one word, as 16-bit integers. */
INLINE __m512i wide_i8(const int8_t *p, uint32_t mask)
{
    return _mm512_cvtepi8_epi16(lower(_mm512_mask_expand_epi8(zeros(), mask, load(p))));
}

INLINE void word_i8(const int8_t *p, const uint32_t *mask, vec v[PARTS])
{
    const __m512i word = wide_i8(p, *mask);
    v[0] = (vec)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(lower(word)));
    v[1] = (vec)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(upper(word)));
}

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

INLINE void add(ivec *sums, __m512i two, __m512i q)
{
    sums[0] = (ivec)_mm512_dpwssd_epi32((__m512i)sums[0], _mm512_cvtepi8_epi16(lower(two)), q);
    sums[1] = (ivec)_mm512_dpwssd_epi32((__m512i)sums[1], _mm512_cvtepi8_epi16(upper(two)), q);
}

INLINE const int8_t *span(const uint32_t *masks, int64_t words, const int8_t *p, const int16_t *q,
                          ivec sums[ROWS])
{
    for (int64_t w = 0; w < words; w++, masks += ROWS, q += WORD) {
        const __m512i at = _mm512_loadu_si512(q);
        _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)p + AHEAD + 64, _MM_HINT_T0);
        _Pragma("GCC unroll 4") for (int r = 0; r < ROWS; r += 2)
        {
            add(sums + r, two_i8(masks + r, load(p)), at);
            p += ones(masks[r]) + ones(masks[r + 1]);
        }
    }
    return p;
}

/* Which bytes of 36 hold eight nibbles each, for a vector's eight parts, and by how many bits to shift
 * for each nibble: the first is the low half of the first byte, or the high one. */
#define PART(i) i, i + 1, i + 2, i + 3, i + 4, i + 5, i + 6, i + 7
static const uint8_t parts[64] = {PART(0),  PART(4),  PART(8),  PART(12),
                                  PART(16), PART(20), PART(24), PART(28)};
static const int64_t shifts[2] = {0x1c1814100c080400, 0x201c1814100c0804};

INLINE const uint8_t *nibbles(const uint32_t *masks, int64_t words, const uint8_t *p,
                              const int8_t *levels, const int16_t *q, ivec sums[ROWS])
{
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)levels));
    const __m512i from = _mm512_loadu_si512(parts);
    uint64_t n = 0;
    for (int64_t w = 0; w < words; w++, masks += ROWS, q += WORD) {
        const __m512i at = _mm512_loadu_si512(q);
        _mm_prefetch((const char *)p + n / 2 + AHEAD, _MM_HINT_T0);
        _Pragma("GCC unroll 4") for (int r = 0; r < ROWS; r += 2)
        {
            const __m512i eights = _mm512_permutexvar_epi8(from, _mm512_loadu_si512(p + n / 2));
            const __m512i by = _mm512_set1_epi64(shifts[n % 2]);
            /* What is left above a nibble chooses between the table's four copies. */
            const __m512i values =
                _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(by, eights), table);
            add(sums + r, two_i8(masks + r, values), at);
            n += (uint64_t)(ones(masks[r]) + ones(masks[r + 1]));
        }
    }
    return p + (n + 1) / 2;
}

INLINE void shorts(const int8_t *p, const uint32_t *mask, int16_t *to)
{
    _mm512_storeu_si512(to, wide_i8(p, *mask));
}

INLINE ivec pairs(ivec sums, const int16_t *a, const int16_t *b)
{
    return (ivec)_mm512_dpwssd_epi32((__m512i)sums, _mm512_loadu_si512(a), _mm512_loadu_si512(b));
}

#include "kernels.h"

#ifndef RUNS
#define RUNS                                                                                       \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&                    \
     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&                 \
     __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni"))
#endif

static int runs(void) { return RUNS; }

const Kernels prunus_avx512 = {
    "avx512", runs, {vector_f32, vector_bf16, vector_f16, vector_i8, vector_i4}, batch, expand};
#endif
