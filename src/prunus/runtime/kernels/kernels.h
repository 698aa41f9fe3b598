/* The kernels, for any width of vectors. An instruction set defines VECTOR (bytes) and AHEAD (how far
 * to fetch ahead, in bytes) and includes vectors.h; then it says
 *
 *   word_f32, word_bf16, word_f16, word_i8 (p, mask, v)   the 32 weights of a mask word, as floats
 *   span (masks, words, p, q, sums)       adds up integer products of a span; returns where p ends
 *   shorts (p, mask, to)                  the 32 weights of a mask word, as 16-bit integers
 *   pairs (sums, a, b)                    adds the products of as many of them as a vector holds, each
 *                                         lane of sums two of them
 *   unpack (p, values, levels, to)        nibbles as levels; returns the whole byte behind them
 *   nibbles (masks, words, p, levels, q, sums)   as span, of nibbles; only with OWN_NIBBLES
 *
 * and includes this. Pruned weights are zeros that are multiplied too, as in a dense product: zero
 * times infinity is not a number. */

#define UNROLL _Pragma("GCC unroll 8")

INLINE float total(vec v)
{
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += v[lane];
    return sum;
}

/* One input and floating weights. */
#define VECTOR_OF(name, type)                                                                      \
    static void vector_##name(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])       \
    {                                                                                              \
        const uint32_t *masks = masks_of(m, g, 0);                                                 \
        const type *p = stream(m, g);                                                              \
        vec kept[ROWS];                                                                            \
        UNROLL for (int r = 0; r < ROWS; r++)                                                      \
            kept[r] = (vec){0};                                                                    \
        for (int64_t w = 0; w < m->words; w++, masks += ROWS) {                                    \
            vec at[PARTS];                                                                         \
            for (int i = 0; i < PARTS; i++)                                                        \
                at[i] = *(const vec_at *)(x->f + w * WORD + i * LANES);                            \
            for (int i = 0; i < ROWS * WORD / 2; i += 64 / (int)sizeof(type))                      \
                __builtin_prefetch((const char *)(p + i) + AHEAD);                                 \
            UNROLL for (int r = 0; r < ROWS; r++)                                                  \
            {                                                                                      \
                vec v[PARTS];                                                                      \
                word_##name(p, masks + r, v);                                                      \
                for (int i = 0; i < PARTS; i++)                                                    \
                    kept[r] += v[i] * at[i];                                                       \
                p += ones(masks[r]);                                                               \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int r = 0; r < ROWS; r++)                                                      \
            sums[r] = total(kept[r]);                                                              \
    }
VECTOR_OF(f32, float)
VECTOR_OF(bf16, uint16_t)
VECTOR_OF(f16, uint16_t)

#ifndef OWN_NIBBLES
INLINE const uint8_t *nibbles(const uint32_t *masks, int64_t words, const uint8_t *p,
                              const int8_t *levels, const int16_t *q, ivec sums[ROWS])
{
    int8_t unpacked[UNPACKED];
    p = unpack(p, count(masks, words), levels, unpacked);
    span(masks, words, unpacked, q, sums);
    return p;
}
#endif

/* One input and integer weights: products are summed as integers within a span. */
INLINE void integers(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS], int kind)
{
    const uint32_t *masks = masks_of(m, g, 0);
    const uint16_t *scales = scales_of(m, g, 0);
    const float *of_inputs = x->q_scales;
    const void *p = stream(m, g);
    vec kept[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++)
        kept[r] = (vec){0};
    for (int64_t w = 0, step; w < m->words; w += step, of_inputs++) {
        step = step_of(m, w);
        ivec whole[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++)
            whole[r] = (ivec){0};
        if (kind == I4)
            p = nibbles(masks, step, p, m->levels, x->q + w * WORD, whole);
        else
            p = span(masks, step, p, x->q + w * WORD, whole);
        UNROLL for (int r = 0; r < ROWS; r++)
        {
            const float scale = from_bfloat16(scales[r]) * *of_inputs;
            kept[r] += __builtin_convertvector(whole[r], vec) * scale;
        }
        masks += step * ROWS;
        scales += m->whole ? 0 : ROWS;
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        sums[r] = total(kept[r]);
}

static void vector_i8(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    integers(m, g, x, sums, I8);
}

static void vector_i4(const Matrix *m, int64_t g, const Inputs *x, float sums[ROWS])
{
    integers(m, g, x, sums, I4);
}

/* A tile of dense weights, (ROWS, TILE). */
#define EXPAND(name, type)                                                                         \
    INLINE const void *expand_##name(const uint32_t *masks, int64_t words, const type *p,          \
                                     float *tile)                                                  \
    {                                                                                              \
        for (int64_t w = 0; w < words; w++)                                                        \
            for (int r = 0; r < ROWS; r++, masks++) {                                              \
                vec v[PARTS];                                                                      \
                word_##name(p, masks, v);                                                          \
                memcpy(tile + r * TILE + w * WORD, v, sizeof v);                                   \
                p += ones(*masks);                                                                 \
            }                                                                                      \
        return p;                                                                                  \
    }
EXPAND(f32, float)
EXPAND(bf16, uint16_t)
EXPAND(f16, uint16_t)
EXPAND(i8, int8_t)

static const void *expand(const Matrix *m, int64_t g, int64_t word, int64_t words, const void *p,
                          float *tile)
{
    const uint32_t *masks = masks_of(m, g, word);
    if (m->kind == F32)
        return expand_f32(masks, words, p, tile);
    if (m->kind == BF16)
        return expand_bf16(masks, words, p, tile);
    if (m->kind == F16)
        return expand_f16(masks, words, p, tile);
    if (m->kind == I8)
        p = expand_i8(masks, words, p, tile);
    else {
        int8_t unpacked[UNPACKED];
        p = unpack(p, count(masks, words), m->levels, unpacked);
        expand_i8(masks, words, unpacked, tile);
    }
    const uint16_t *scales = scales_of(m, g, word);
    for (int r = 0; r < ROWS; r++) {
        const float scale = from_bfloat16(scales[r]);
        for (int64_t i = 0; i < words * WORD; i++)
            tile[r * TILE + i] *= scale;
    }
    return p;
}

/* Products of four rows of a tile and up to three inputs, `apart` from each other. */
INLINE void block(const float *tile, const float *x, int64_t apart, int64_t width, vec *sums,
                  int inputs)
{
    vec kept[4][3];
    for (int r = 0; r < 4; r++)
        for (int b = 0; b < inputs; b++)
            kept[r][b] = sums[b * ROWS + r];
    for (int64_t i = 0; i < width; i += LANES) {
        vec at[3];
        for (int b = 0; b < inputs; b++)
            at[b] = *(const vec_at *)(x + b * apart + i);
        for (int r = 0; r < 4; r++) {
            const vec w = *(const vec_at *)(tile + r * TILE + i);
            for (int b = 0; b < inputs; b++)
                kept[r][b] += w * at[b];
        }
    }
    for (int r = 0; r < 4; r++)
        for (int b = 0; b < inputs; b++)
            sums[b * ROWS + r] = kept[r][b];
}

/* The same of integers, which are not scaled yet. */
INLINE void integer_block(const int16_t *tile, const int16_t *q, int64_t apart, int64_t width,
                          ivec *sums, int inputs)
{
    ivec kept[4][3];
    memset(kept, 0, sizeof kept);
    for (int64_t i = 0; i < width; i += SHORTS)
        for (int r = 0; r < 4; r++)
            for (int b = 0; b < inputs; b++)
                kept[r][b] = pairs(kept[r][b], tile + r * TILE + i, q + b * apart + i);
    for (int r = 0; r < 4; r++)
        for (int b = 0; b < inputs; b++)
            sums[b * ROWS + r] = kept[r][b];
}

/* Calls f(row, inputs, …) for four rows and up to three inputs at a time, as constants. */
#define IN_BLOCKS(batch, call)                                                                     \
    for (int r = 0; r < ROWS; r += 4)                                                              \
        for (int64_t b = 0; b < (batch); b += 3) {                                                 \
            if ((batch) - b >= 3)                                                                  \
                call(3);                                                                           \
            else if ((batch) - b == 2)                                                             \
                call(2);                                                                           \
            else                                                                                   \
                call(1);                                                                           \
        }

/* Two inputs and more, and floating weights: a tile of them stays in the first cache while all
 * inputs pass. */
static void float_batch(const Matrix *m, int64_t g, const Inputs *x, float *sums)
{
    float tile[ROWS * TILE] __attribute__((aligned(64)));
    vec kept[BATCH * ROWS];
    memset(kept, 0, sizeof(vec) * (size_t)x->batch * ROWS);
    const int64_t apart = m->words * WORD;
    const void *p = stream(m, g);
    for (int64_t w = 0, step; w < m->words; w += step) {
        step = step_of(m, w);
        p = expand(m, g, w, step, p, tile);
#define CALL(n)                                                                                    \
    block(tile + r * TILE, x->f + b * apart + w * WORD, apart, step * WORD, kept + b * ROWS + r, n)
        IN_BLOCKS(x->batch, CALL)
#undef CALL
    }
    for (int64_t i = 0; i < x->batch * ROWS; i++)
        sums[i] = total(kept[i]);
}

/* The same with integer weights: products are summed as integers within a span. */
static void integer_batch(const Matrix *m, int64_t g, const Inputs *x, float *sums)
{
    int16_t tile[ROWS * TILE] __attribute__((aligned(64)));
    int8_t unpacked[UNPACKED];
    vec kept[BATCH * ROWS];
    memset(kept, 0, sizeof(vec) * (size_t)x->batch * ROWS);
    const int64_t apart = m->words * WORD, spans = (m->words + m->span - 1) / m->span;
    const int8_t *p = stream(m, g);
    for (int64_t w = 0, step; w < m->words; w += step) {
        step = step_of(m, w);
        const uint32_t *masks = masks_of(m, g, w);
        const uint16_t *scales = scales_of(m, g, w);
        const int8_t *from = p;
        if (m->kind == I4) {
            p = (const int8_t *)unpack((const uint8_t *)p, count(masks, step), m->levels, unpacked);
            from = unpacked;
        }
        for (int64_t i = 0; i < step * ROWS; i++, masks++) {
            shorts(from, masks, tile + i % ROWS * TILE + i / ROWS * WORD);
            from += ones(*masks);
        }
        if (m->kind == I8)
            p = from;
        ivec whole[BATCH * ROWS];
#define CALL(n)                                                                                    \
    integer_block(tile + r * TILE, x->q + b * apart + w * WORD, apart, step * WORD,                \
                  whole + b * ROWS + r, n)
        IN_BLOCKS(x->batch, CALL)
#undef CALL
        const float *of_inputs = x->q_scales + w / m->span;
        for (int64_t b = 0; b < x->batch; b++)
            for (int r = 0; r < ROWS; r++) {
                const float scale = from_bfloat16(scales[r]) * of_inputs[b * spans];
                kept[b * ROWS + r] += __builtin_convertvector(whole[b * ROWS + r], vec) * scale;
            }
    }
    for (int64_t i = 0; i < x->batch * ROWS; i++)
        sums[i] = total(kept[i]);
}

static void batch(const Matrix *m, int64_t g, const Inputs *x, float *sums)
{
    (m->kind < I8 ? float_batch : integer_batch)(m, g, x, sums);
}
