/* x86-64 with AVX2, FMA and F16C: a table says for each byte of a mask how to spread eight values. */
#include "packed.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

enum { AHEAD = 2048 }; /* bytes of values to fetch ahead */

static inline __m256 eight_f32(const float *p, unsigned byte)
{
    __m256 v = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p),
                                        _mm256_load_si256((const void *)prunus_lanes[byte]));
    return _mm256_and_ps(v, _mm256_load_ps((const void *)prunus_kept[byte]));
}

static inline __m256 eight_bf16(const uint16_t *p, unsigned byte)
{
    __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(
        _mm256_shuffle_epi8(both, _mm256_load_si256((const void *)prunus_upper[byte])));
}

static inline __m256 eight_f16(const uint16_t *p, unsigned byte)
{
    __m128i v = _mm_loadu_si128((const void *)p);
    return _mm256_cvtph_ps(_mm_shuffle_epi8(v, _mm_load_si128((const void *)prunus_pairs[byte])));
}

static inline __m256 eight_i8(const int8_t *p, unsigned byte)
{
    __m128i v = _mm_shuffle_epi8(_mm_loadl_epi64((const void *)p),
                                 _mm_loadl_epi64((const void *)prunus_bytes[byte]));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
}

static inline __m256i sixteen_i8(const int8_t *p, uint32_t low, uint32_t high)
{
    __m128i v = _mm_loadl_epi64((const void *)p);
    __m128i at = _mm_loadl_epi64((const void *)prunus_bytes[low]);
    v = _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(v), (const void *)(p + ones(low))));
    at = _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(at), (const void *)prunus_bytes_high[high]));
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(v, at));
}

static inline float sum_of(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#define VECTOR_OF(name, type, eight)                                                               \
    static void vector_##name(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])       \
    {                                                                                              \
        const uint32_t *masks = masks_of(m, g, 0);                                                 \
        const type *p = stream(m, g);                                                              \
        __m256 kept[ROWS];                                                                         \
        for (int r = 0; r < ROWS; r++)                                                             \
            kept[r] = _mm256_setzero_ps();                                                         \
        for (int64_t w = 0; w < m->words; w++, masks += ROWS) {                                    \
            const float *at = x->f + w * WORD;                                                     \
            const __m256 x0 = _mm256_loadu_ps(at), x1 = _mm256_loadu_ps(at + 8);                   \
            const __m256 x2 = _mm256_loadu_ps(at + 16), x3 = _mm256_loadu_ps(at + 24);             \
            for (int i = 0; i < ROWS * WORD / 2; i += 64 / (int)sizeof(type))                      \
                _mm_prefetch((const char *)(p + i) + AHEAD, _MM_HINT_T0);                          \
            _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                 \
            {                                                                                      \
                const uint32_t bits = masks[r];                                                    \
                const type *p1 = p + ones(bits & 0xff), *p2 = p + ones(bits & 0xffff);             \
                const type *p3 = p + ones(bits & 0xffffff);                                        \
                kept[r] = _mm256_fmadd_ps(eight(p, bits & 0xff), x0, kept[r]);                     \
                kept[r] = _mm256_fmadd_ps(eight(p1, bits >> 8 & 0xff), x1, kept[r]);               \
                kept[r] = _mm256_fmadd_ps(eight(p2, bits >> 16 & 0xff), x2, kept[r]);              \
                kept[r] = _mm256_fmadd_ps(eight(p3, bits >> 24), x3, kept[r]);                     \
                p += ones(bits);                                                                   \
            }                                                                                      \
        }                                                                                          \
        for (int r = 0; r < ROWS; r++)                                                             \
            sums[r] = sum_of(kept[r]);                                                             \
    }
VECTOR_OF(f32, float, eight_f32)
VECTOR_OF(bf16, uint16_t, eight_bf16)
VECTOR_OF(f16, uint16_t, eight_f16)

/* Nibbles of a span as bytes; returns the stream behind them, which begins at a whole byte. */
static inline const uint8_t *unpack(const uint8_t *p, int64_t values, int8_t *to)
{
    const __m256i levels = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15));
    for (int64_t i = 0; i < values; i += 32) {
        __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(p + i / 2)));
        v = _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16(v, 4)), _mm256_set1_epi8(15));
        _mm256_storeu_si256((void *)(to + i), _mm256_shuffle_epi8(levels, v));
    }
    return p + (values + 1) / 2;
}

static inline const int8_t *span(const uint32_t *masks, int64_t words, const int8_t *p,
                                 const int16_t *q, __m256i whole[ROWS])
{
    for (int64_t w = 0; w < words; w++, masks += ROWS, q += WORD) {
        const __m256i q0 = _mm256_loadu_si256((const void *)q);
        const __m256i q1 = _mm256_loadu_si256((const void *)(q + 16));
        _mm_prefetch((const char *)p + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)p + AHEAD + 64, _MM_HINT_T0);
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)
        {
            const uint32_t bits = masks[r];
            const int8_t *upper = p + ones(bits & 0xffff);
            __m256i v0 = sixteen_i8(p, bits & 0xff, bits >> 8 & 0xff);
            __m256i v1 = sixteen_i8(upper, bits >> 16 & 0xff, bits >> 24);
            __m256i both = _mm256_add_epi32(_mm256_madd_epi16(v0, q0), _mm256_madd_epi16(v1, q1));
            whole[r] = _mm256_add_epi32(whole[r], both);
            p += ones(bits);
        }
    }
    return p;
}

static inline __attribute__((always_inline)) void vector_int(const Matrix *m, int64_t g,
                                                             const Inputs *x, float sums[ROWS],
                                                             const int nibbles)
{
    int8_t unpacked[UNPACKED];
    __m256 kept[ROWS];
    const int8_t *p = stream(m, g);
    for (int r = 0; r < ROWS; r++)
        kept[r] = _mm256_setzero_ps();
    for (int64_t w = 0, step; w < m->words; w += step) {
        __m256i whole[ROWS];
        for (int r = 0; r < ROWS; r++)
            whole[r] = _mm256_setzero_si256();
        step = step_of(m, w);
        const uint32_t *masks = masks_of(m, g, w);
        if (nibbles) {
            p = (const int8_t *)unpack((const uint8_t *)p, count(masks, step), unpacked);
            span(masks, step, unpacked, x->q + w * WORD, whole);
        } else
            p = span(masks, step, p, x->q + w * WORD, whole);
        const uint16_t *scales = scales_of(m, g, w);
        for (int r = 0; r < ROWS; r++) {
            __m256 scale = _mm256_set1_ps(from_bfloat16(scales[r]) * x->q_scales[w / m->span]);
            kept[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r]), scale, kept[r]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        sums[r] = sum_of(kept[r]);
}

static void vector_i8(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    vector_int(m, g, x, sums, 0);
}

static void vector_i4(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    vector_int(m, g, x, sums, 1);
}

#define EXPAND(type, eight)                                                                        \
    do {                                                                                           \
        const type *at = p;                                                                        \
        for (int64_t w = 0; w < words; w++)                                                        \
            for (int r = 0; r < ROWS; r++) {                                                       \
                float *to = tile + r * TILE + w * WORD;                                            \
                uint32_t bits = *masks++;                                                          \
                for (int i = 0; i < WORD; i += 8, bits >>= 8) {                                    \
                    _mm256_storeu_ps(to + i, eight(at, bits & 0xff));                              \
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

#define VECTOR 32
#include "batch.h"

static int runs(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

const Kernels prunus_avx2 = {
    "avx2", runs, {vector_f32, vector_bf16, vector_f16, vector_i8, vector_i4}, batch, expand};
#endif
