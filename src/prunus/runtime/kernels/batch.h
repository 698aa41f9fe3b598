/* Two to sixteen inputs at once, for any width of vectors: included by each instruction set, which
 * defines VECTOR (bytes), expand() and reduces nothing itself. Weights are expanded once into a tile
 * of eight rows that stays in the first cache, and multiplied there. */

enum { LANES = VECTOR / 4 };
typedef float vec __attribute__((vector_size(VECTOR)));
typedef float vec_at __attribute__((vector_size(VECTOR), aligned(4), may_alias));

/* sums of `rows` rows of the tile and `inputs` inputs, along `width` */
static inline __attribute__((always_inline)) void block(const float *tile, const float *x,
                                                        int64_t apart, int64_t width, vec *sums,
                                                        const int rows, const int inputs)
{
    vec kept[4][3];
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < inputs; b++)
            kept[r][b] = sums[b * ROWS + r];
    for (int64_t i = 0; i < width; i += LANES) {
        vec at[3];
        for (int b = 0; b < inputs; b++)
            at[b] = *(const vec_at *)(x + b * apart + i);
        for (int r = 0; r < rows; r++) {
            vec w = *(const vec_at *)(tile + r * TILE + i);
            for (int b = 0; b < inputs; b++)
                kept[r][b] += w * at[b];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < inputs; b++)
            sums[b * ROWS + r] = kept[r][b];
}

static void batch(const Matrix *m, int64_t g, const Inputs *x, float *sums)
{
    float tile[ROWS * TILE] __attribute__((aligned(64)));
    vec kept[BATCH * ROWS];
    memset(kept, 0, sizeof(vec) * (size_t)x->batch * ROWS);
    const int64_t apart = m->words * WORD;
    const void *p = stream(m, g);
    for (int64_t w = 0, step; w < m->words; w += step) {
        step = step_of(m, w);
        p = expand(m, g, w, step, p, tile);
        for (int r = 0; r < ROWS; r += 4) {
            const float *rows = tile + r * TILE;
            int64_t b = 0;
            for (; b + 3 <= x->batch; b += 3)
                block(rows, x->f + b * apart + w * WORD, apart, step * WORD, kept + b * ROWS + r, 4, 3);
            if (x->batch - b == 2)
                block(rows, x->f + b * apart + w * WORD, apart, step * WORD, kept + b * ROWS + r, 4, 2);
            if (x->batch - b == 1)
                block(rows, x->f + b * apart + w * WORD, apart, step * WORD, kept + b * ROWS + r, 4, 1);
        }
    }
    for (int64_t i = 0; i < x->batch * ROWS; i++) {
        sums[i] = 0;
        for (int lane = 0; lane < LANES; lane++)
            sums[i] += kept[i][lane];
    }
}
