/* What Python calls: a product with one to sixteen inputs, and rows as dense tiles. A matrix is trusted:
 * maths/packed.py has checked what came from a file. Threads are those of torch: Python hands over its
 * pool's entry point. */
#include "packed.h"

#include <math.h>
#include <stdlib.h>

#define EXPORTED __attribute__((visibility("default")))
enum { INTERFACE = 1 }; /* library.py checks that it knows this one */

uint8_t prunus_bytes[256][8] __attribute__((aligned(64)));
uint8_t prunus_bytes_high[256][8] __attribute__((aligned(64)));
uint8_t prunus_pairs[256][16] __attribute__((aligned(64)));
uint8_t prunus_upper[256][32] __attribute__((aligned(64)));
uint8_t prunus_fours[16][16] __attribute__((aligned(64)));

static const Kernels *const ALL[] = {
#ifdef WITH_AVX512
    &prunus_avx512,
#endif
#ifdef WITH_AVX2
    &prunus_avx2,
#endif
#ifdef WITH_NEON
    &prunus_neon,
#endif
    &prunus_portable,
};
enum { MANY = sizeof ALL / sizeof *ALL };

static const Kernels *chosen;

/* As GOMP_parallel: runs function(data) on so many threads, this one among them. */
typedef void (*Pool)(void (*function)(void *), void *data, unsigned threads, unsigned flags);
typedef int (*Number)(void);
static Pool pool;
static Number number, members;

static void fill_tables(void)
{
    for (int byte = 0; byte < 256; byte++)
        for (int bit = 0, rank = 0; bit < 8; bit++) {
            const int kept = byte >> bit & 1;
            prunus_bytes[byte][bit] = kept ? (uint8_t)rank : 0x80;
            prunus_bytes_high[byte][bit] = kept ? (uint8_t)(rank + 8) : 0x80;
            for (int i = 0; i < 4 && byte < 16 && bit < 4; i++)
                prunus_fours[byte][4 * bit + i] = kept ? (uint8_t)(4 * rank + i) : 0x80;
            for (int i = 0; i < 2; i++) {
                prunus_pairs[byte][2 * bit + i] = kept ? (uint8_t)(2 * rank + i) : 0x80;
                prunus_upper[byte][4 * bit + i] = 0x80;
                prunus_upper[byte][4 * bit + 2 + i] = kept ? (uint8_t)(2 * rank + i) : 0x80;
            }
            rank += kept;
        }
}

EXPORTED int prunus_interface(void) { return INTERFACE; }

/* Chooses kernels by name, or the best for NULL; returns the name, NULL if they do not run here. */
EXPORTED const char *prunus_choose(const char *name)
{
    fill_tables();
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    for (int i = 0; i < MANY; i++)
        if ((name == NULL || strcmp(name, ALL[i]->name) == 0) && ALL[i]->runs()) {
            chosen = ALL[i];
            return chosen->name;
        }
    return NULL;
}

/* The i-th kernels that this library was built with, whether they run here or not; NULL at last. */
EXPORTED const char *prunus_built(int i) { return i < MANY ? ALL[i]->name : NULL; }

EXPORTED void prunus_threads(Pool start, Number own, Number all)
{
    pool = start;
    number = own;
    members = all;
}

INLINE uint16_t to_bfloat16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (f != f)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t to_float16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    memcpy(&f, &bits, sizeof f);
    if (f != f)
        return sign | 0x7e00;
    if (f >= 65520.0f)
        return sign | 0x7c00;
    if (f < 0x1p-14f) /* subnormal: adding 0.5 rounds to steps of 2^-24 */
    {
        f += 0.5f;
        memcpy(&bits, &f, sizeof bits);
        return sign | (uint16_t)(bits - 0x3f000000);
    }
    bits += 0xfff + (bits >> 13 & 1); /* to nearest, ties to even */
    return sign | (uint16_t)((bits - (112u << 23)) >> 13);
}

static void narrow(const float *from, int64_t n, int dtype, void *to)
{
    if (dtype == F32)
        memcpy(to, from, (size_t)n * sizeof *from);
    else if (dtype == BF16)
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)to)[i] = to_bfloat16(from[i]);
    else
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)to)[i] = to_float16(from[i]);
}

static void widen(const void *from, int64_t n, int dtype, float *to)
{
    if (dtype == F32)
        memcpy(to, from, (size_t)n * sizeof *to);
    else if (dtype == BF16)
        for (int64_t i = 0; i < n; i++)
            to[i] = from_bfloat16(((const uint16_t *)from)[i]);
    else
        for (int64_t i = 0; i < n; i++)
            to[i] = from_float16(((const uint16_t *)from)[i]);
}

/* Each span of x as 16-bit integers and a scale: the step is 1/32767 of its largest value. A span
 * that is not finite makes the result not a number: some weight is pruned, and zero times infinity is
 * that. */
static void quantise(const float *x, int64_t words, int64_t span, int16_t *q, float *scales)
{
    for (int64_t w = 0; w < words; w += span) {
        const int64_t from = w * WORD, to = (w + span < words ? w + span : words) * WORD;
        float top = 0, bad = 0;
        for (int64_t i = from; i < to; i++) {
            const float size = fabsf(x[i]);
            top = size > top ? size : top;
            bad += x[i] - x[i];
        }
        const float per = top > 1e-30f && bad == 0 ? 32767.0f / top : 0; /* else it overflows */
        for (int64_t i = from; i < to; i++) {
            const float near = (per != 0 ? x[i] * per : 0) + 12582912.0f; /* the last bits: an integer */
            int32_t bits;
            memcpy(&bits, &near, sizeof bits);
            q[i] = (int16_t)(bits - 0x4b400000);
        }
        scales[w / span] = bad == 0 ? top / 32767.0f : NAN;
    }
}

typedef struct {
    const Matrix *m;
    Inputs x;
    const void *bias;
    void *y;
    int dtype;
    int64_t first, groups; /* which groups of rows */
    int alone;             /* one thread */
} Job;

static void slice(const Job *job, int64_t *from, int64_t *to)
{
    const int64_t n = job->alone ? 1 : members(), i = job->alone ? 0 : number();
    *from = job->first + job->groups * i / n;
    *to = job->first + job->groups * (i + 1) / n;
}

static void multiply(void *data)
{
    const Job *job = data;
    const Matrix *m = job->m;
    int64_t from, to;
    slice(job, &from, &to);
    for (int64_t g = from; g < to; g++) {
        float sums[BATCH * ROWS], bias = 0;
        if (job->x.batch == 1)
            chosen->vector[m->kind](m, g, &job->x, sums);
        else
            chosen->batch(m, g, &job->x, sums);
        for (int64_t r = 0; r < ROWS && g * ROWS + r < m->outputs; r++) {
            const int64_t o = g * ROWS + r;
            if (job->bias)
                widen((const char *)job->bias + (size_t)o * size_of(job->dtype), 1, job->dtype, &bias);
            for (int64_t b = 0; b < job->x.batch; b++) {
                const float sum = sums[b * ROWS + r] + bias;
                char *to = (char *)job->y + (size_t)(b * m->outputs + o) * size_of(job->dtype);
                narrow(&sum, 1, job->dtype, to);
            }
        }
    }
}

static void expand(void *data)
{
    const Job *job = data;
    const Matrix *m = job->m;
    float tile[ROWS * TILE] __attribute__((aligned(64)));
    int64_t from, to;
    slice(job, &from, &to);
    for (int64_t g = from; g < to; g++) {
        const void *p = stream(m, g);
        for (int64_t w = 0, step; w < m->words; w += step) {
            step = step_of(m, w);
            p = chosen->expand(m, g, w, step, p, tile);
            const int64_t left = m->inputs - w * WORD, width = left < step * WORD ? left : step * WORD;
            for (int64_t r = 0; r < ROWS && g * ROWS + r < m->outputs; r++) {
                const int64_t at = ((g - job->first) * ROWS + r) * m->inputs + w * WORD;
                char *to = (char *)job->y + (size_t)at * size_of(job->dtype);
                narrow(tile + r * TILE, width, job->dtype, to);
            }
        }
    }
}

static void run(void (*function)(void *), Job *job, int threads)
{
    const int64_t small = 1 << 12; /* words of a mask: below, threads cost more than they save */
    job->alone = !pool || threads < 2 || job->groups * job->m->words * ROWS < small;
    if (job->alone)
        function(job);
    else
        pool(function, job, (unsigned)threads, 0);
}

/* y (batch, outputs) = x (batch, inputs) times the transpose, plus the bias unless it is NULL; all
 * three of one dtype (F32, BF16 or F16). Returns 0, or 1 for want of memory. */
EXPORTED int prunus_multiply(const Matrix *m, const void *x, int64_t batch, const void *bias,
                             void *y, int dtype, int threads)
{
    const int64_t padded = m->words * WORD, spans = (m->words + m->span - 1) / m->span;
    const size_t floats = (size_t)(batch * (padded + spans)) * sizeof(float);
    float *f = malloc(floats + (size_t)(batch * padded) * sizeof(int16_t));
    if (f == NULL)
        return 1;
    float *q_scales = f + batch * padded;
    int16_t *q = (int16_t *)(q_scales + batch * spans);
    for (int64_t b = 0; b < batch; b++) {
        widen((const char *)x + (size_t)(b * m->inputs) * size_of(dtype), m->inputs, dtype, f + b * padded);
        memset(f + b * padded + m->inputs, 0, (size_t)(padded - m->inputs) * sizeof *f);
    }
    Job job = {m, {f, q, q_scales, batch}, bias, y, dtype, 0, (m->outputs + ROWS - 1) / ROWS, 1};
    for (int64_t b = 0; b < batch && m->kind >= I8; b++)
        quantise(f + b * padded, m->words, m->span, q + b * padded, q_scales + b * spans);
    run(multiply, &job, threads);
    free(f);
    return 0;
}

/* to (rows, inputs) = the dense rows of `groups` groups from `first` on. */
EXPORTED void prunus_expand(const Matrix *m, int64_t first, int64_t groups, void *to, int dtype,
                            int threads)
{
    Job job = {m, {0}, NULL, to, dtype, first, groups, 1};
    run(expand, &job, threads);
}
