/* The AVX-512 intrinsics that avx512.c uses, in plain C: each does what Intel's manual defines for its
 * instruction, element by element, so that the kernels run, and are checked, on any processor. What
 * loads and stores touch is what the instructions touch, which is what sanitizers look at. Compile with
 * -Wno-psabi: how vectors are passed without AVX-512 matters only between files. */
#ifndef EMULATED_IMMINTRIN_H
#define EMULATED_IMMINTRIN_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BYTES(n) __attribute__((vector_size(n), may_alias))
typedef float __m512 BYTES(64);
typedef int64_t __m512i BYTES(64);
typedef int64_t __m256i BYTES(32);
typedef int64_t __m128i BYTES(16);
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;
typedef uint64_t __mmask64;

typedef int8_t bytes_64 BYTES(64);
typedef int16_t words_64 BYTES(64);
typedef uint16_t unsigned_words_64 BYTES(64);
typedef int32_t ints_64 BYTES(64);
typedef uint32_t unsigned_ints_64 BYTES(64);
typedef int8_t bytes_32 BYTES(32);
typedef uint8_t unsigned_bytes_32 BYTES(32);
typedef int16_t words_32 BYTES(32);
typedef uint16_t unsigned_words_32 BYTES(32);
#undef BYTES

#define EMULATED static inline __attribute__((unused))

/* ---- memory ---- */

#define _MM_HINT_T0 3
#define _mm_prefetch(address, hint) ((void)(address), (void)(hint))

#define LOAD(name, vector)                                                                         \
    EMULATED vector name(const void *from)                                                         \
    {                                                                                              \
        vector v;                                                                                  \
        memcpy(&v, from, sizeof v);                                                                \
        return v;                                                                                  \
    }
LOAD(_mm_loadu_si128, __m128i)
LOAD(_mm256_loadu_si256, __m256i)
LOAD(_mm512_loadu_si512, __m512i)

EMULATED void _mm512_storeu_si512(void *to, __m512i v) { memcpy(to, &v, sizeof v); }

/* ---- constants ---- */

EMULATED __m512i _mm512_setzero_si512(void) { return (__m512i){0}; }
EMULATED __m512i _mm512_set1_epi64(long long v) { return (__m512i){v, v, v, v, v, v, v, v}; }

EMULATED __m512i _mm512_set1_epi8(char value)
{
    __m512i v;
    memset(&v, value, sizeof v);
    return v;
}

EMULATED __m512i _mm512_broadcast_i32x4(__m128i part)
{
    return (__m512i){part[0], part[1], part[0], part[1], part[0], part[1], part[0], part[1]};
}

/* ---- bits ---- */

EMULATED __m512 _mm512_castsi512_ps(__m512i v) { return (__m512)v; }
EMULATED __m256i _mm512_castsi512_si256(__m512i v) { return (__m256i){v[0], v[1], v[2], v[3]}; }

EMULATED __m256i _mm512_extracti64x4_epi64(__m512i v, int half)
{
    return half ? (__m256i){v[4], v[5], v[6], v[7]} : _mm512_castsi512_si256(v);
}

EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }

EMULATED __m512i _mm512_slli_epi16(__m512i v, unsigned by)
{
    unsigned_words_64 all = (unsigned_words_64)v;
    for (int i = 0; i < 32; i++)
        all[i] = (uint16_t)(by < 16 ? (uint32_t)all[i] << by : 0);
    return (__m512i)all;
}

EMULATED __m512i _mm512_slli_epi32(__m512i v, unsigned by)
{
    unsigned_ints_64 all = (unsigned_ints_64)v;
    for (int i = 0; i < 16; i++)
        all[i] = by < 32 ? all[i] << by : 0;
    return (__m512i)all;
}

/* VPSHUFB: within each 16 bytes; zero where the highest bit of the index is set. */
EMULATED __m512i _mm512_shuffle_epi8(__m512i v, __m512i at)
{
    const bytes_64 from = (bytes_64)v, index = (bytes_64)at;
    bytes_64 to = {0};
    for (int i = 0; i < 64; i++)
        to[i] = index[i] & 0x80 ? 0 : from[(i & ~15) + (index[i] & 15)];
    return (__m512i)to;
}

/* VPERMB: from anywhere, by the lowest six bits of the index. */
EMULATED __m512i _mm512_permutexvar_epi8(__m512i at, __m512i v)
{
    const bytes_64 from = (bytes_64)v, index = (bytes_64)at;
    bytes_64 to = {0};
    for (int i = 0; i < 64; i++)
        to[i] = from[index[i] & 63];
    return (__m512i)to;
}

/* VPMULTISHIFTQB: eight bits of the same 64, from the bit that the control names on, round the end. */
EMULATED __m512i _mm512_multishift_epi64_epi8(__m512i control, __m512i v)
{
    const bytes_64 by = (bytes_64)control;
    bytes_64 to = {0};
    for (int i = 0; i < 64; i++) {
        const uint64_t all = (uint64_t)v[i / 8];
        const int bit = by[i] & 63;
        to[i] = (int8_t)(bit ? all >> bit | all << (64 - bit) : all);
    }
    return (__m512i)to;
}

/* ---- widening ---- */

#define WIDEN(name, narrow, from_vector, wide, to_vector, count)                                   \
    EMULATED to_vector name(narrow v)                                                              \
    {                                                                                              \
        const from_vector from = (from_vector)v;                                                   \
        wide to = {0};                                                                             \
        for (int i = 0; i < (count); i++)                                                          \
            to[i] = from[i];                                                                       \
        return (to_vector)to;                                                                      \
    }
WIDEN(_mm512_cvtepi8_epi16, __m256i, bytes_32, words_64, __m512i, 32)
WIDEN(_mm512_cvtepu8_epi16, __m256i, unsigned_bytes_32, words_64, __m512i, 32)
WIDEN(_mm512_cvtepi16_epi32, __m256i, words_32, ints_64, __m512i, 16)
WIDEN(_mm512_cvtepu16_epi32, __m256i, unsigned_words_32, ints_64, __m512i, 16)

EMULATED __m512 _mm512_cvtepi32_ps(__m512i v)
{
    const ints_64 from = (ints_64)v;
    __m512 to = {0};
    for (int i = 0; i < 16; i++)
        to[i] = (float)from[i];
    return to;
}

/* VCVTPH2PS: exact, subnormals too; a NaN keeps its upper bits and becomes quiet. */
EMULATED __m512 _mm512_cvtph_ps(__m256i v)
{
    const unsigned_words_32 from = (unsigned_words_32)v;
    ints_64 to = {0};
    for (int i = 0; i < 16; i++) {
        const int exponent = from[i] >> 10 & 31, rest = from[i] & 1023;
        const float size = ldexpf((float)(exponent ? rest + 1024 : rest), (exponent ? exponent : 1) - 25);
        uint32_t bits;
        memcpy(&bits, &size, sizeof bits);
        if (exponent == 31)
            bits = 0x7f800000u | (uint32_t)rest << 13 | (rest ? 0x400000u : 0);
        to[i] = (int32_t)(bits | (uint32_t)(from[i] & 0x8000) << 16);
    }
    return (__m512)to;
}

/* ---- expansion: the next element for each set bit, the target's own for the others ---- */

#define EXPANSION(name, mask_type, vector, elements, count)                                        \
    EMULATED vector name(vector target, mask_type mask, vector v)                                  \
    {                                                                                              \
        const elements from = (elements)v;                                                         \
        elements to = (elements)target;                                                            \
        for (int i = 0, next = 0; i < (count); i++)                                                \
            if (mask >> i & 1)                                                                     \
                to[i] = from[next++];                                                              \
        return (vector)to;                                                                         \
    }
EXPANSION(_mm512_mask_expand_ps, __mmask16, __m512, __m512, 16)
EXPANSION(_mm512_mask_expand_epi16, __mmask32, __m512i, words_64, 32)
EXPANSION(_mm512_mask_expand_epi8, __mmask64, __m512i, bytes_64, 64)

/* ---- products ---- */

/* VPDPWSSD: two products of 16-bit integers added to 32 bits, modulo 2^32. */
EMULATED __m512i _mm512_dpwssd_epi32(__m512i sums, __m512i a, __m512i b)
{
    const words_64 x = (words_64)a, y = (words_64)b;
    unsigned_ints_64 to = (unsigned_ints_64)sums;
    for (int i = 0; i < 16; i++)
        for (int j = 2 * i; j < 2 * i + 2; j++)
            to[i] += (uint32_t)((int32_t)x[j] * y[j]);
    return (__m512i)to;
}

#endif
