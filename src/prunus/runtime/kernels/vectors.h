/* Vectors of VECTOR bytes, as compilers with GNU extensions have them. */
#include "packed.h"

enum { LANES = VECTOR / 4, SHORTS = VECTOR / 2, PARTS = WORD / LANES };
typedef float vec __attribute__((vector_size(VECTOR)));
typedef int32_t ivec __attribute__((vector_size(VECTOR)));
typedef float vec_at __attribute__((vector_size(VECTOR), aligned(4), may_alias));

/* Room for the levels of a span of nibbles, and for what is written and read beyond them. */
enum { UNPACKED = TILE * ROWS + 64 };
