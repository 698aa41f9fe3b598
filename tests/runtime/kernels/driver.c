/* Runs every instruction set that is linked in on random and adversarial matrices and compares what
 * comes out with loops in double precision. Ends with 1 and a line that says what differed.
 *
 *     driver [ROUNDS [SEED]]
 */
#include "matrices.h"

const char *prunus_choose(const char *);
const char *prunus_built(int);
void prunus_threads(void (*)(void (*)(void *), void *, unsigned, unsigned), int (*)(void), int (*)(void));
int prunus_multiply(const Matrix *, const void *, int64_t, const void *, void *, int, int);
void prunus_expand(const Matrix *, int64_t, int64_t, void *, int, int);

static const char *const KIND[] = {"f32", "bf16", "f16", "i8", "i4"};
static const char *const SORT[] = {"tame", "stray", "special", "wild", "extreme"};
static const char *own; /* the kernels that run */

static void differ(const Case *c, const char *what)
{
    printf("%s: %s differs: %s%s, spans of %d, %d outputs, %d inputs, share %g, %s, shift %d\n", own, what,
           KIND[c->kind], c->whole ? " rows" : "", (int)c->span, (int)c->outputs, (int)c->inputs,
           c->share, SORT[c->sort], c->shift);
    exit(1);
}

/* ---- dense rows ---- */

static void compare_rows(const Case *c, const Built *b, int dtype, int64_t first, int64_t groups, int threads)
{
    const int64_t end = 8 * (first + groups) < c->outputs ? 8 * (first + groups) : c->outputs;
    const int64_t many = (end - 8 * first) * c->inputs;
    const size_t size = dtype == F32 ? 4 : 2;
    void *block, *rows = exact((size_t)many * size, (size_t)c->shift * size, &block);
    prunus_expand(&b->m, first, groups, rows, dtype, threads);
    for (int64_t i = 0; i < many; i++) {
        const double got = value_of(dtype, load(rows, i, dtype));
        const double want = rounded(rounded(b->dense[8 * first * c->inputs + i], F32), dtype);
        if (isnan(want) ? !isnan(got) : !(got == want)) {
            char what[120];
            snprintf(what, sizeof what, "expand to %s, row %d, input %d: %.9g, not %.9g:", KIND[dtype],
                     (int)(8 * first + i / c->inputs), (int)(i % c->inputs), got, want);
            differ(c, what);
        }
    }
    free(block);
}

/* ---- products ---- */

typedef struct {
    double *x;    /* (batch, inputs) */
    double *bias; /* (outputs) */
    void *x_is, *bias_is, *y;
    void *blocks[3];
    int64_t batch;
    int dtype, biased;
} Product;

/* Numbers, their bits at `to`. `tiny`: subnormal in half precision, near 2^-120 and 2^-112 in the others. */
static double *drawn(void *to, int64_t many, const Case *c, int dtype, int tiny)
{
    static const uint32_t ones[] = {0x3f800000, 0x3f80, 0x3c00}, less[] = {120u << 23, 112u << 7, 0};
    double *v = malloc((size_t)many * sizeof *v + 1);
    if (v == NULL)
        exit(2);
    for (int64_t i = 0; i < many; i++) {
        uint32_t code = tame(dtype);
        if (c->sort == EXTREME)
            code = ones[dtype];
        else if (tiny)
            code = dtype == F16 ? code & 0x83ff : code - less[dtype];
        if (c->sort != EXTREME && chance(0.05))
            code = 0;
        if (c->sort == SPECIAL && chance(0.003))
            code = special(dtype);
        save(to, i, dtype, code);
        v[i] = value_of(dtype, code);
    }
    return v;
}

static Product prepare(const Case *c, int64_t batch, int dtype, int biased)
{
    const size_t size = dtype == F32 ? 4 : 2, shift = (size_t)c->shift * size;
    const int tiny = chance(0.2);
    Product p = {.batch = batch, .dtype = dtype, .biased = biased && !tiny};
    p.x_is = exact((size_t)(batch * c->inputs) * size, shift, p.blocks);
    p.bias_is = exact((size_t)c->outputs * size, shift, p.blocks + 1);
    p.y = exact((size_t)(batch * c->outputs) * size, shift, p.blocks + 2);
    p.x = drawn(p.x_is, batch * c->inputs, c, dtype, tiny);
    p.bias = drawn(p.bias_is, c->outputs, c, dtype, 0);
    return p;
}

static void dispose(Product *p)
{
    for (int i = 0; i < 3; i++)
        free(p->blocks[i]);
    free(p->x);
    free(p->bias);
}

/* The product of row o and input b, and how far a kernel may be off before it is stored: one rounding
 * for each sum in a lane, half the smallest subnormal, and half a step of the integers that one input
 * becomes; a span below 1e-30 becomes zeros. */
static double reference(const Case *c, const Built *built, const Product *p, int64_t b, int64_t o,
                        double *apart)
{
    const int integers = c->kind >= I8;
    int finite = 1;
    double sum = p->biased ? p->bias[o] : 0, size = fabs(sum);
    *apart = 0;
    for (int64_t from = 0; from < c->inputs; from += 32 * c->span) {
        double weights = 0, top = 0;
        for (int64_t i = from; i < from + 32 * c->span && i < c->inputs; i++) {
            const double w = built->dense[o * c->inputs + i], x = p->x[b * c->inputs + i];
            finite &= isfinite(x) != 0;
            sum += w * x;
            size += fabs(w * x);
            weights += fabs(w);
            top = fabs(x) > top ? fabs(x) : top;
        }
        *apart += integers ? weights * top * (top > 1e-30 ? 0.51 / 32767 : 1) : 0;
    }
    *apart += ((double)c->inputs / 4 + 16) * 0x1p-24 * size + (double)c->inputs * 0x1p-150;
    return integers && !finite ? NAN : sum; /* some weight is pruned */
}

static void compare_product(const Case *c, const Built *built, const Product *p, int threads)
{
    const size_t bytes = (size_t)(p->batch * c->outputs) * (p->dtype == F32 ? 4 : 2);
    memset(p->y, 0xff, bytes);
    if (prunus_multiply(&built->m, p->x_is, p->batch, p->biased ? p->bias_is : NULL, p->y, p->dtype, threads))
        differ(c, "what multiply returns");
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t o = 0; o < c->outputs; o++) {
            const double got = value_of(p->dtype, load(p->y, b * c->outputs + o, p->dtype));
            double apart;
            const double want = reference(c, built, p, b, o, &apart);
            const int same = isnan(want)   ? isnan(got)
                             : isinf(want) ? got == want
                                           : got >= rounded(want - apart, p->dtype) &&
                                                 got <= rounded(want + apart, p->dtype);
            if (!same) {
                char what[160];
                snprintf(what, sizeof what, "multiply %d inputs of %s%s, input %d, output %d: %.9g, not %.9g:",
                         (int)p->batch, KIND[p->dtype], p->biased ? " and a bias" : "", (int)b, (int)o, got,
                         want);
                differ(c, what);
            }
        }
}

/* ---- threads ---- */

static int member, members, most;
static int number_of(void) { return member; }
static int members_of(void) { return members; }

/* As a pool would, one after the other; it may bring fewer than asked for. */
static void pool(void (*function)(void *), void *data, unsigned threads, unsigned flags)
{
    members = (int)threads < most ? (int)threads : most;
    for (member = members - 1; member >= 0; member--)
        function(data);
    (void)flags;
}

/* ---- all of it ---- */

static int use(int i)
{
    const char *name = prunus_built(i);
    if (name == NULL)
        return 0;
    own = prunus_choose(name); /* NULL if this processor cannot run it */
    return 1;
}

static void run_case(const Case *c, int threads)
{
    Built b = build(c);
    Product p[4];
    for (int i = 0; i < 3; i++)
        p[i] = prepare(c, 1, i, (int)below(2));
    p[3] = prepare(c, 2 + below(15), (int)below(3), (int)below(2));
    const int64_t first = below(groups_of(&b.m)), groups = 1 + below(groups_of(&b.m) - first);
    for (int i = 0; use(i); i++) {
        if (own == NULL)
            continue;
        for (int dtype = 0; dtype < 3; dtype++)
            compare_rows(c, &b, dtype, dtype == F32 ? 0 : first, dtype == F32 ? groups_of(&b.m) : groups, threads);
        for (int n = 0; n < 4 && c->sort != WILD; n++)
            compare_product(c, &b, p + n, threads);
    }
    for (int i = 0; i < 4; i++)
        dispose(p + i);
    release(&b);
}

static Case drawn_case(int form, double share)
{
    static const int kinds[] = {F32, BF16, F16, I8, I8, I8, I8, I4, I4, I4};
    static const int spans[] = {4, 4, 4, 4, 1, 4, 16, 1, 4, 16};
    static const int edges[] = {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1024, 1100};
    Case c = {.kind = kinds[form], .whole = form == 3, .span = spans[form], .share = share};
    c.outputs = 1 + below(17);
    c.inputs = below(2) ? edges[below(16)] : 1 + below(1100);
    c.sort = (int)below(SORTS);
    if (c.sort == (c.kind < I8 ? EXTREME : WILD))
        c.sort = TAME;
    c.shift = (int)below(4);
    return c;
}

int main(int count, char **arguments)
{
    static const double shares[] = {1, 0.5, 0.1, 0};
    const int rounds = count > 1 ? atoi(arguments[1]) : 4;
    state = count > 2 ? strtoull(arguments[2], NULL, 10) * 0x9e3779b97f4a7c15ull | 1 : 1;
    for (int round = 0; round < rounds; round++)
        for (int form = 0; form < 10; form++)
            for (int i = 0; i < 4; i++) {
                const Case c = drawn_case(form, shares[i]);
                run_case(&c, 1);
            }
    prunus_threads(pool, number_of, members_of);
    for (int form = 0; form < 10; form++) {
        Case c = drawn_case(form, 0.5);
        c.outputs = 130 + below(8); /* enough for threads */
        c.inputs = 1100 - below(8);
        most = form % 2 ? 3 : 40;
        run_case(&c, form % 3 ? 20 : 4);
    }
    printf("equal:");
    for (int i = 0; use(i); i++)
        if (own)
            printf(" %s", own);
    printf("\n");
    return 0;
}
