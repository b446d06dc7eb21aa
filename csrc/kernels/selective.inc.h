/* The quotients of rows and a temperature, and sums over their classes (../selective.c has the formulas).
 *
 * The vectors are the compiler's: every target has the same bytes, whatever the width of its vectors.
 */

/* Four numbers, which the compiler cuts into vectors of the processor. Macros and pointers take the place of
   functions of vectors, since how these are passed depends on the processor. */
enum { QUAD = 4 };
typedef double vec __attribute__((vector_size(32)));
typedef int64_t bits __attribute__((vector_size(32)));
typedef uint64_t ubits __attribute__((vector_size(32)));
/* Two, for comparisons: GCC 12 fails to compile those of vectors that not every processor has. */
typedef double pair __attribute__((vector_size(16)));
typedef int64_t mask __attribute__((vector_size(16)));
typedef double unaligned_pair __attribute__((vector_size(16), aligned(8), may_alias));
typedef float quad __attribute__((vector_size(16)));
typedef int32_t quad_mask __attribute__((vector_size(16)));
typedef double unaligned_vec __attribute__((vector_size(32), aligned(8), may_alias));
typedef float unaligned_floats __attribute__((vector_size(16), aligned(4), may_alias));

#define LOAD(x) ((vec) * (const unaligned_vec *)(x))
#define STORE(x, v) (*(unaligned_vec *)(x) = (v))
#define LARGER_FLOATS(a, b, m)                                                                     \
    ((m) = (a) > (b), (quad)(((quad_mask)(a) & (m)) | ((quad_mask)(b) & ~(m))))
#define LOAD_FLOATS(x) ((quad) * (const unaligned_floats *)(x))
#define LOAD_PAIR(x) ((pair) * (const unaligned_pair *)(x))
/* v, and 0 where it is not finite: the largest exponent carries into the sign. */
#define EXPONENT ((int64_t)0x7ff << 52)
#define FINITE(v)                                                                                  \
    ((vec)((bits)(v) & ((bits)(((ubits)((bits)(v) & EXPONENT) + ((uint64_t)1 << 52)) >> 63) - 1)))
#define LARGER(a, b, m) ((m) = (a) > (b), (pair)(((mask)(a) & (m)) | ((mask)(b) & ~(m))))
/* The error of s = a + b. */
#define ERROR_OF_SUM(a, b, s) (((a) - ((s) - ((s) - (a)))) + ((b) - ((s) - (a))))
/* The leading 26 bits; the products of two such parts, and of the rests, are exact. */
#define LEADING(v) ((vec)((bits)(v) & -((int64_t)1 << 27)))

/* Numbers c to c + QUAD − 1 of a contiguous row of floats or doubles. */
#define LOAD_OF(x, is_double, c)                                                                   \
    ((is_double)                                                                                   \
         ? LOAD((const double *)(x) + (c))                                                         \
         : __builtin_convertvector(*(const unaligned_floats *)((const float *)(x) + (c)), vec))

/* The largest of some numbers, whatever it is if there is a NaN. The last vector may overlap the one
   before. */
INLINE double maximum(const double *x, int64_t n) {
    enum { COUNT = 8, WIDTH = 2 };
    pair most[COUNT];
    mask m;
    int64_t c = 0;
    if (n < WIDTH) return x[0];
    for (int i = 0; i < COUNT; i++) most[i] = LOAD_PAIR(x + n - WIDTH);
    for (; c + COUNT * WIDTH <= n; c += COUNT * WIDTH) {
        UNROLL
        for (int i = 0; i < COUNT; i++) {
            const pair v = LOAD_PAIR(x + c + i * WIDTH);
            most[i] = LARGER(v, most[i], m);
        }
    }
    for (; c + WIDTH <= n; c += WIDTH) {
        const pair v = LOAD_PAIR(x + c);
        most[0] = LARGER(v, most[0], m);
    }
    for (int k = COUNT / 2; k > 0 && n >= COUNT * WIDTH; k /= 2) {
        for (int i = 0; i < k; i++) most[i] = LARGER(most[i], most[i + k], m);
    }
    return most[0][0] > most[0][1] ? most[0][0] : most[0][1];
}

INLINE double maximum_of_floats(const float *x, int64_t n) {
    enum { COUNT = 4, WIDTH = 4 };
    quad most[COUNT];
    quad_mask m;
    int64_t c = 0;
    for (int i = 0; i < COUNT; i++) most[i] = LOAD_FLOATS(x + n - WIDTH);
    for (; c + COUNT * WIDTH <= n; c += COUNT * WIDTH) {
        UNROLL
        for (int i = 0; i < COUNT; i++) {
            const quad v = LOAD_FLOATS(x + c + i * WIDTH);
            most[i] = LARGER_FLOATS(v, most[i], m);
        }
    }
    for (; c + WIDTH <= n; c += WIDTH) {
        const quad v = LOAD_FLOATS(x + c);
        most[0] = LARGER_FLOATS(v, most[0], m);
    }
    for (int k = COUNT / 2; k > 0 && n >= COUNT * WIDTH; k /= 2) {
        for (int i = 0; i < k; i++) most[i] = LARGER_FLOATS(most[i], most[i + k], m);
    }
    const quad v = most[0];
    const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
}

/* Quotients, and for with_error their errors. */
INLINE void quotients(const vec *given, double m, const pyce_division *d, int with_error,
                      vec *quotient, vec *error) {
    if (!with_error) {
        *quotient = (*given - m) * d->first * d->second_inverse;
        return;
    }
    const vec x = *given * d->before, distance = x - m;
    const vec scaled = distance * d->first * d->second;
    const vec rest = ERROR_OF_SUM(x, -m, distance) * d->first * d->second;
    const vec q = scaled * d->inverse;
    /* The remainder scaled − q·divisor: of products of parts, which are exact. */
    const vec q1 = LEADING(q), q2 = q - q1;
    const vec remainder =
        (((scaled - q1 * d->leading) - q1 * d->trailing) - q2 * d->leading) - q2 * d->trailing;
    const vec e = (remainder + rest) * d->inverse;
    *quotient = q;
    *error = FINITE(e);
}

/* The quotients of a contiguous row, and with_error their errors. */
INLINE void divide(const void *x, int is_double, int64_t n, const pyce_division *given,
                   int with_error, double *q, double *e) {
    const pyce_division d = *given;
    vec quotient, error;
    if (n < QUAD) {
        double few[QUAD], of_few[QUAD];
        for (int c = 0; c < QUAD; c++) {
            const int at = c < n ? c : 0;
            few[c] = is_double ? ((const double *)x)[at] : (double)((const float *)x)[at];
        }
        const vec v = LOAD(few);
        quotients(&v, maximum(few, QUAD) * d.before, &d, with_error, &quotient, &error);
        STORE(few, quotient);
        if (with_error) STORE(of_few, error);
        for (int64_t c = 0; c < n; c++) {
            q[c] = few[c];
            if (with_error) e[c] = of_few[c];
        }
        return;
    }
    const double m = (is_double ? maximum(x, n) : maximum_of_floats(x, n)) * d.before;
    for (int64_t c = 0; c < n; c += QUAD) {
        const int64_t at = c + QUAD <= n ? c : n - QUAD;
        const vec v = LOAD_OF(x, is_double, at);
        quotients(&v, m, &d, with_error, &quotient, &error);
        STORE(q + at, quotient);
        if (with_error) STORE(e + at, error);
    }
}

/* The first class with the quotient 0, or class 0 if there is none. */
INLINE int64_t top_of(const double *q, int64_t n) {
    enum { COUNT = 16 };
    int64_t c = 0;
    for (; c + COUNT <= n; c += COUNT) {
        mask found = LOAD_PAIR(q + c) == 0.0;
        UNROLL
        for (int i = 2; i < COUNT; i += 2) found |= LOAD_PAIR(q + c + i) == 0.0;
        if (found[0] | found[1]) break;
    }
    const int64_t end = c + COUNT < n ? c + COUNT : n;
    int64_t top = 0;
    for (int64_t i = end - 1; i >= c; i--) top = q[i] == 0 ? i : top;
    return top;
}

/* Partial sums, one in each of the four lanes. */
typedef struct {
    vec b, s, s_error, d;
} vector_sums;

/* Adds the terms of four classes. */
INLINE void add_terms(vector_sums *to, const vec *p, const double *q, const double *e,
                      int with_error, int with_entropy) {
    vec pe = {0};
    if (with_error) pe = *p * LOAD(e), to->b += pe;
    if (!with_entropy) return;
    /* 0·inf = 0 */
    const vec below = FINITE(LOAD(q));
    const vec product = *p * below, sum = to->s + product;
    to->s_error += ERROR_OF_SUM(to->s, product, sum);
    to->s = sum;
    if (with_error) to->d += pe * below;
}

/* `g` is p, minus 1 at the class with q = e = 0. Several partial sums, so that additions need not wait for
   each other. The last vector of a row may overlap the one before: it has 0 in place of the p of classes
   that have been added. */
INLINE pyce_selective_sums sums_of(const double *g, const double *q, const double *e, int64_t n,
                                   int with_error, int with_entropy) {
    enum { COUNT = 4 };
    static const int64_t kept[2 * QUAD] = {0, 0, 0, 0, -1, -1, -1, -1};
    vector_sums sums[COUNT] = {{{0}, {0}, {0}, {0}}};
    double few[3][QUAD] = {{0}};
    vec p;
    int64_t c = 0;
    if (n < QUAD) {
        for (; c < n; c++) {
            few[0][c] = g[c], few[1][c] = q[c];
            if (with_error) few[2][c] = e[c];
        }
        p = LOAD(few[0]);
        add_terms(sums, &p, few[1], few[2], with_error, with_entropy);
    }
    for (; c + COUNT * QUAD <= n; c += COUNT * QUAD) {
        UNROLL
        for (int i = 0; i < COUNT; i++) {
            p = LOAD(g + c + i * QUAD);
            add_terms(sums + i, &p, q + c + i * QUAD, with_error ? e + c + i * QUAD : NULL,
                      with_error, with_entropy);
        }
    }
    int i = 0;
    for (; c + QUAD <= n; c += QUAD) {
        p = LOAD(g + c);
        add_terms(sums + i++, &p, q + c, with_error ? e + c : NULL, with_error, with_entropy);
    }
    if (c < n) {
        const int64_t at = n - QUAD;
        p = (vec)((bits)LOAD(g + at) & (bits)LOAD(kept + (n - c)));
        add_terms(sums + i, &p, q + at, with_error ? e + at : NULL, with_error, with_entropy);
    }
    pyce_selective_sums r = {0, 0, 0, 0};
    for (int i = 0; i < COUNT; i++) {
        for (int k = 0; k < QUAD; k++) {
            const double part = sums[i].s[k], sum = r.s + part;
            r.s_error += sums[i].s_error[k] + ERROR_OF_SUM(r.s, part, sum);
            r.s = sum;
            r.b += sums[i].b[k];
            r.d += sums[i].d[k];
        }
    }
    return r;
}

/* The functions of the target's table; the branches are taken out of their loops. */
static int64_t selective_quotients(const void *x, int is_double, int64_t n, const pyce_division *by,
                                   double *q, double *e) {
    if (!is_double) {
        divide(x, 0, n, by, 0, q, NULL);
    } else if (!e) {
        divide(x, 1, n, by, 0, q, NULL);
    } else {
        divide(x, 1, n, by, 1, q, e);
    }
    return top_of(q, n);
}

static pyce_selective_sums selective_sums(const double *g, const double *q, const double *e,
                                          int64_t n, int with_entropy) {
    if (!e) return sums_of(g, q, NULL, n, 0, 1);
    return with_entropy ? sums_of(g, q, e, n, 1, 1) : sums_of(g, q, e, n, 1, 0);
}
