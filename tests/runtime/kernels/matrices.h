/* Random matrices in buffers of exactly their size, and what they mean, in double precision. Nothing
 * here shares code with the kernels but the layout of Matrix. */
#include "packed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PADDING = 64 };
enum { TAME, STRAY, SPECIAL, WILD, EXTREME, SORTS }; /* see Case */

typedef struct {
    int kind, whole;
    int64_t span, outputs, inputs;
    double share; /* of kept weights */
    int sort;     /* STRAY: bits beyond the last row and input are set too; SPECIAL: infinite, NaN;
                   * WILD: any bits; EXTREME: the largest integers */
    int shift;    /* elements by which each buffer is off the alignment of malloc */
} Case;

typedef struct {
    Matrix m;
    double *dense;  /* (outputs, inputs) */
    int64_t values; /* without the padding; bytes for I4 */
    void *blocks[5];
} Built;

static uint64_t state = 1;

static uint64_t any(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull >> 16;
}

static int64_t below(int64_t n) { return (int64_t)(any() % (uint64_t)n); }
static int chance(double share) { return (double)below(1 << 20) < share * (1 << 20); }

/* `bytes` bytes of ones, `shift` bytes into a block of the heap that ends with them. */
static void *exact(size_t bytes, size_t shift, void **block)
{
    *block = malloc(bytes + shift);
    if (*block == NULL && bytes + shift)
        exit(2);
    memset(*block, 0xff, bytes + shift);
    return (char *)*block + shift;
}

/* ---- numbers ---- */

/* A floating number by the bits of its fraction and exponent. */
static double number(uint32_t code, int fraction, int exponents)
{
    const int last = (1 << exponents) - 1, bias = last / 2;
    const int exponent = (int)(code >> fraction) & last;
    const double rest = code & ((1u << fraction) - 1);
    const double sign = code >> (fraction + exponents) & 1 ? -1 : 1;
    if (exponent == last)
        return rest != 0 ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexp(rest, 1 - bias - fraction);
    return sign * ldexp(rest + (1u << fraction), exponent - bias - fraction);
}

static double value_of(int kind, uint32_t code)
{
    switch (kind) {
    case F32: return number(code, 23, 8);
    case BF16: return number(code, 7, 8);
    case F16: return number(code, 10, 5);
    case I8: return (double)((int)(code & 0xff) - (code & 0x80 ? 256 : 0));
    default: return NAN; /* nibbles stand for levels */
    }
}

/* The nearest number of a dtype, ties to even. */
static double rounded(double v, int dtype)
{
    const int bits[] = {24, 8, 11}, least[] = {-126, -126, -14}, most[] = {127, 127, 15};
    int exponent;
    if (v == 0 || !isfinite(v))
        return v;
    frexp(v, &exponent);
    if (exponent < least[dtype] + 1)
        exponent = least[dtype] + 1;
    const double near = ldexp(rint(ldexp(v, bits[dtype] - exponent)), exponent - bits[dtype]);
    return fabs(near) < ldexp(1, most[dtype] + 1) ? near : copysign(INFINITY, v);
}

static uint32_t load(const void *from, int64_t i, int kind)
{
    if (kind == F32)
        return ((const uint32_t *)from)[i];
    return kind < I8 ? ((const uint16_t *)from)[i] : ((const uint8_t *)from)[i];
}

static void save(void *to, int64_t i, int kind, uint32_t code)
{
    if (kind == F32)
        ((uint32_t *)to)[i] = code;
    else if (kind < I8)
        ((uint16_t *)to)[i] = (uint16_t)code;
    else
        ((uint8_t *)to)[i] = (uint8_t)code;
}

/* A number of either sign, of size 1/16 to 2. */
static uint32_t tame(int dtype)
{
    const uint32_t exponent = (uint32_t)(dtype == F16 ? 11 : 123) + (uint32_t)below(5);
    const uint32_t sign = (uint32_t)below(2), rest = (uint32_t)below(1 << 23);
    if (dtype == F16)
        return sign << 15 | exponent << 10 | rest >> 13;
    return (sign << 31 | exponent << 23 | rest) >> (dtype == F32 ? 0 : 16);
}

static uint32_t special(int dtype)
{
    const int fraction = dtype == F32 ? 23 : dtype == BF16 ? 7 : 10, bits = dtype == F32 ? 31 : 15;
    const uint32_t infinite = ((1u << bits) - 1) & ~((1u << fraction) - 1);
    const uint32_t nan = below(2) ? 1u << (fraction - 1) | 1 : 0;
    return (uint32_t)below(2) << bits | infinite | nan;
}

static uint32_t weight(const Case *c)
{
    if (c->kind >= I8)
        return c->sort == EXTREME && c->kind == I8 ? 0x80 : (uint32_t)any();
    if (c->sort == WILD)
        return (uint32_t)any();
    return c->sort == SPECIAL && chance(0.004) ? special(c->kind) : tame(c->kind);
}

/* ---- matrices ---- */

static int64_t groups_of(const Matrix *m) { return (m->outputs + 7) / 8; }
static int64_t spans_of(const Matrix *m) { return m->whole ? 1 : (m->words + m->span - 1) / m->span; }

static double scale_at(const Matrix *m, int64_t g, int64_t w, int64_t r)
{
    if (m->kind < I8)
        return 1;
    const int64_t span = m->whole ? 0 : w / m->span;
    return number(m->scales[(g * spans_of(m) + span) * 8 + r], 7, 8);
}

static double weight_of(const Matrix *m, uint32_t code)
{
    return m->kind == I4 ? m->levels[code & 15] : value_of(m->kind, code);
}

static void fill_masks(const Case *c, const Matrix *m, uint32_t *masks)
{
    memset(masks, 0, (size_t)(groups_of(m) * m->words) * 32);
    for (int64_t g = 0; g < groups_of(m); g++)
        for (int64_t w = 0; w < m->words; w++)
            for (int64_t r = 0; r < 8; r++)
                for (int64_t i = 0; i < 32; i++) {
                    const int inside = 8 * g + r < c->outputs && 32 * w + i < c->inputs;
                    if ((inside || c->sort == STRAY) && chance(c->share))
                        masks[(g * m->words + w) * 8 + r] |= 1u << i;
                }
}

/* Draws the values in the order of the stream; a nibble that is left out takes a place too. */
static void draw(const Case *c, Built *b, uint32_t *codes, int64_t *offsets)
{
    const Matrix *m = &b->m;
    const int nibbles = m->kind == I4;
    int64_t at = 0;
    for (int64_t g = 0; g < groups_of(m); g++)
        for (int64_t w = 0; w < m->words; w++) {
            if (nibbles && w % m->span == 0 && at % 2)
                codes[at++] = (uint32_t)any();
            if (w == 0)
                offsets[g] = nibbles ? at / 2 : at;
            for (int64_t r = 0; r < 8; r++)
                for (int64_t i = 0; i < 32; i++)
                    if (m->masks[(g * m->words + w) * 8 + r] >> i & 1) {
                        const uint32_t code = codes[at++] = weight(c);
                        const int64_t o = 8 * g + r, n = 32 * w + i;
                        if (o < c->outputs && n < c->inputs)
                            b->dense[o * c->inputs + n] =
                                weight_of(m, code) * scale_at(m, g, w, r);
                    }
        }
    if (nibbles && at % 2)
        codes[at++] = (uint32_t)any();
    offsets[groups_of(m)] = nibbles ? at / 2 : at;
}

static Built build(const Case *c)
{
    const int64_t words = (c->inputs + 31) / 32, groups = (c->outputs + 7) / 8;
    const size_t shift = (size_t)c->shift, size = c->kind == F32 ? 4 : c->kind < I8 ? 2 : 1;
    Built b = {.m = {.outputs = c->outputs, .inputs = c->inputs, .words = words, .span = c->span,
                     .kind = c->kind, .whole = c->whole}};
    uint32_t *masks = exact((size_t)(groups * words) * 32, 4 * shift, b.blocks);
    int64_t *offsets = exact((size_t)(groups + 1) * 8, 8 * shift, b.blocks + 1);
    fill_masks(c, &b.m, masks);
    b.m.masks = masks;
    b.m.offsets = offsets;
    if (c->kind >= I8) {
        const int64_t many = groups * spans_of(&b.m) * 8;
        uint16_t *scales = exact((size_t)many * 2, 2 * shift, b.blocks + 2);
        for (int64_t i = 0; i < many; i++)
            scales[i] = (uint16_t)tame(BF16);
        b.m.scales = scales;
    }
    if (c->kind == I4) {
        int8_t *levels = exact(16, shift, b.blocks + 4);
        for (int i = 0; i < 16; i++)
            levels[i] = c->sort == EXTREME ? -128 : (int8_t)any();
        b.m.levels = levels;
    }
    b.dense = calloc((size_t)(c->outputs * c->inputs), sizeof *b.dense);
    uint32_t *codes = malloc((size_t)(groups * words) * 257 * sizeof *codes + sizeof *codes);
    if (b.dense == NULL || codes == NULL)
        exit(2);
    draw(c, &b, codes, offsets);
    b.values = offsets[groups];
    uint8_t *values = exact((size_t)b.values * size + PADDING, size * shift, b.blocks + 3);
    for (int64_t i = 0; i < b.values; i++)
        save(values, i, c->kind,
             c->kind == I4 ? (codes[2 * i] & 15) | codes[2 * i + 1] << 4 : codes[i]);
    b.m.values = values;
    free(codes);
    return b;
}

static void release(Built *b)
{
    for (int i = 0; i < 5; i++)
        free(b->blocks[i]);
    free(b->dense);
}
