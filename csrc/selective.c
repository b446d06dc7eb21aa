/* Log-probabilities of chosen classes, entropy and softmax of rows x/T with a temperature T.
 *
 * A piece of rows is copied as the quotients q = (x − m)/T in double, where m is the maximum of the row,
 * and the kernels compute its loss L for a class with q = 0, and p, from the gradient. For float64 logits,
 * e is what rounding left out of q: without it, log p would lose the digits of a large x/T. With
 *
 *     B = Σ p·e,    S = −Σ p·q,    D = Σ p·q·e,
 *
 * to first order in e, whose square is below every rounding,
 *
 *     log p_y = q_y − L + (e_y − B),    H = L + S − (D + S·B),
 *
 * where the terms q_y and −L, and the terms L and S, have the same sign.
 *
 * T is divisor·2^exponent with a divisor in [1/2, 1). Where the exponent is positive, double logits are
 * scaled first, since their difference may overflow. The quotient is multiplied by the rounded inverse
 * of the divisor, which e corrects.
 *
 * Every operation rounds by itself, and sums have the same parts: the bytes are the same for every
 * instruction set.
 */
#include <math.h>
#include <string.h>

#include "dispatch.h"
#include "internal.h"
#include "pool.h"

/* Elements of the rows of a piece, which a cache holds with their quotients, errors and softmax. */
enum { PIECE = 16384 };

/* Four numbers, which the compiler cuts into vectors of the processor. Macros and pointers take the place of
   functions of vectors, since how these are passed depends on the processor. */
enum { LANES = 4 };
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
#ifndef INLINE /* the sanitizers' builds define it */
#define INLINE static inline __attribute__((always_inline))
#endif

#define LOAD(x) ((vec) * (const unaligned_vec *)(x))
#define STORE(x, v) (*(unaligned_vec *)(x) = (v))
#define LARGER_FLOATS(a, b, m)                                                                     \
    ((m) = (a) > (b), (quad)(((quad_mask)(a) & (m)) | ((quad_mask)(b) & ~(m))))
#define LOAD_FLOATS(x) ((quad) * (const unaligned_floats *)(x))
#define LOAD_PAIR(x) ((pair) * (const unaligned_pair *)(x))
/* v, and 0 where it is not finite: the largest exponent carries into the sign. */
#define EXPONENT ((int64_t)0x7ff << 52)
#define FINITE(v)                                                                                  \
    ((vec)((bits)(v) & ((bits)((ubits)(((bits)(v) & EXPONENT) + ((int64_t)1 << 52)) >> 63) - 1)))
#define LARGER(a, b, m) ((m) = (a) > (b), (pair)(((mask)(a) & (m)) | ((mask)(b) & ~(m))))
/* The error of s = a + b. */
#define ERROR_OF_SUM(a, b, s) (((a) - ((s) - ((s) - (a)))) + ((b) - ((s) - (a))))
/* The leading 26 bits; the products of two such parts, and of the rests, are exact. */
#define LEADING(v) ((vec)((bits)(v) & -((int64_t)1 << 27)))

/* -- quotients --------------------------------------------------------------------------------------- */

typedef struct {
    double before;        /* a power of two that double logits are multiplied by */
    double first, second; /* powers of two that differences are multiplied by */
    double divisor, inverse;
    double leading, trailing; /* the divisor, of which the products with such parts are exact */
    double second_inverse;    /* second · inverse */
} division;

static division division_by(double temperature, int dtype) {
    int exponent;
    division d = {.before = 1, .first = 1, .second = 1};
    d.divisor = frexp(temperature, &exponent);
    d.inverse = 1 / d.divisor;
    if (dtype == PYCE_FLOAT64 && exponent > 0) {
        d.before = ldexp(1, -exponent);
    } else {
        d.first = ldexp(1, -(exponent / 2));
        d.second = ldexp(1, -(exponent - exponent / 2));
    }
    int64_t number;
    memcpy(&number, &d.divisor, sizeof number);
    number &= -((int64_t)1 << 27);
    memcpy(&d.leading, &number, sizeof number);
    d.trailing = d.divisor - d.leading;
    d.second_inverse = d.second * d.inverse;
    return d;
}

/* Numbers c to c + LANES − 1 of a contiguous row of floats or doubles. */
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
INLINE void quotients(const vec *given, double m, const division *d, int with_error, vec *quotient,
                      vec *error) {
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
INLINE void divide(const void *x, int is_double, int64_t n, const division *given, int with_error,
                   double *q, double *e) {
    const division d = *given;
    vec quotient, error;
    if (n < LANES) {
        double few[LANES], of_few[LANES];
        for (int c = 0; c < LANES; c++) {
            const int at = c < n ? c : 0;
            few[c] = is_double ? ((const double *)x)[at] : (double)((const float *)x)[at];
        }
        const vec v = LOAD(few);
        quotients(&v, maximum(few, LANES) * d.before, &d, with_error, &quotient, &error);
        STORE(few, quotient);
        if (with_error) STORE(of_few, error);
        for (int64_t c = 0; c < n; c++) {
            q[c] = few[c];
            if (with_error) e[c] = of_few[c];
        }
        return;
    }
    const double m = (is_double ? maximum(x, n) : maximum_of_floats(x, n)) * d.before;
    for (int64_t c = 0; c < n; c += LANES) {
        const int64_t at = c + LANES <= n ? c : n - LANES;
        const vec v = LOAD_OF(x, is_double, at);
        quotients(&v, m, &d, with_error, &quotient, &error);
        STORE(q + at, quotient);
        if (with_error) STORE(e + at, error);
    }
}

/* The first class with the quotient 0, or class 0 if there is none. */
INLINE int64_t top_of(const double *q, int64_t n) {
    enum { STEP = 16 };
    int64_t c = 0;
    for (; c + STEP <= n; c += STEP) {
        mask found = LOAD_PAIR(q + c) == 0.0;
        UNROLL
        for (int i = 2; i < STEP; i += 2) found |= LOAD_PAIR(q + c + i) == 0.0;
        if (found[0] | found[1]) break;
    }
    const int64_t end = c + STEP < n ? c + STEP : n;
    int64_t top = 0;
    for (int64_t i = end - 1; i >= c; i--) top = q[i] == 0 ? i : top;
    return top;
}

/* -- results ----------------------------------------------------------------------------------------- */

typedef struct {
    double b, s, s_error, d; /* −S has the error s_error */
} row_sums;

/* Four vectors of partial sums each, so that additions need not wait for each other. `g` is p, minus 1 at
   the class with q = e = 0. */
INLINE row_sums sums_of(const double *g, const double *q, const double *e, int64_t n,
                        int with_error, int with_entropy) {
    enum { COUNT = 4 };
    vec b[COUNT] = {{0}}, s[COUNT] = {{0}}, s_error[COUNT] = {{0}}, d[COUNT] = {{0}};
    for (int64_t c = 0; c < n; c += COUNT * LANES) {
        double rest[3][COUNT * LANES];
        const double *of_g = g + c, *of_q = q + c, *of_e = e + c;
        if (n - c < COUNT * LANES) {
            for (int64_t i = 0; i < COUNT * LANES; i++) {
                rest[0][i] = i < n - c ? of_g[i] : 0;
                rest[1][i] = i < n - c ? of_q[i] : 0;
                rest[2][i] = with_error && i < n - c ? of_e[i] : 0;
            }
            of_g = rest[0], of_q = rest[1], of_e = rest[2];
        }
        for (int i = 0; i < COUNT; i++) {
            const vec p = LOAD(of_g + i * LANES);
            vec pe = {0};
            if (with_error) pe = p * LOAD(of_e + i * LANES), b[i] += pe;
            if (!with_entropy) continue;
            /* 0·inf = 0 */
            const vec below = FINITE(LOAD(of_q + i * LANES));
            const vec product = p * below, sum = s[i] + product;
            s_error[i] += ERROR_OF_SUM(s[i], product, sum);
            s[i] = sum;
            if (with_error) d[i] += pe * below;
        }
    }
    row_sums r = {0, 0, 0, 0};
    for (int i = 0; i < COUNT; i++) {
        for (int k = 0; k < LANES; k++) {
            const double part = s[i][k], sum = r.s + part;
            r.s_error += s_error[i][k] + ERROR_OF_SUM(r.s, part, sum);
            r.s = sum;
            r.b += b[i][k];
            r.d += d[i][k];
        }
    }
    return r;
}

/* q − loss + rest, where q may be −inf. */
INLINE double log_p(double q, double loss, double rest) {
    const double sum = q - loss;
    if (sum - sum != 0) return sum;
    return sum + (ERROR_OF_SUM(q, -loss, sum) + rest);
}

INLINE double without_nan(double e) { return e == e ? e : 0; }

INLINE void write_row(const pyce_selective *s, int64_t row, int64_t top, double loss,
                      const double *g, const double *q, const double *e) {
    const int64_t n = s->classes;
    const int to = s->dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    row_sums r = {0, 0, 0, 0};
    if (e && s->entropy) r = sums_of(g, q, e, n, 1, 1);
    if (e && !s->entropy) r = sums_of(g, q, e, n, 1, 0);
    if (!e && s->entropy) r = sums_of(g, q, e, n, 0, 1);
    /* NaN where the loss is. */
    const double b = without_nan(r.b);
    for (int64_t k = 0; k < s->chosen; k++) {
        /* Another thread of the program may change the array after it has been checked. */
        const int64_t given = *(const volatile int64_t *)(s->index + row * s->chosen + k);
        const int64_t y = given >= 0 && given < n ? given : 0;
        pyce_set_number(s->log_probs, to, row * s->chosen + k,
                        log_p(q[y], loss, (e ? e[y] : 0) - b));
    }
    if (s->entropy) {
        const double mean = -r.s; /* S */
        const double h = loss + mean;
        const double error = ERROR_OF_SUM(loss, mean, h);
        pyce_set_number(s->entropy, to, row, h + (error - r.s_error - (r.d + mean * b)));
    }
    for (int64_t c = 0; c < n && s->softmax; c++) {
        const double p = c == top ? 1 + g[c] : g[c];
        s->softmax[row * n + c] = p + p * ((e ? e[c] : 0) - b);
    }
    for (int64_t c = 0; c < n && s->log_softmax; c++) {
        s->log_softmax[row * n + c] = log_p(q[c], loss, (e ? e[c] : 0) - b);
    }
}

/* -- pieces ------------------------------------------------------------------------------------------ */

typedef struct {
    const pyce_row_kernels *kernels;
    const pyce_selective *s;
    pyce_problem problem; /* of the quotients of a piece */
    pyce_job job;
    division by;
    int64_t rows; /* of a piece */
} piece_work;

INLINE void run_piece(const piece_work *w, int64_t first, int64_t count, double *memory) {
    const pyce_selective *s = w->s;
    const int64_t n = s->classes, size = w->rows * n;
    double *q = memory, *copy = q + size, *losses = copy + n, *next = losses + 2 * w->rows;
    int64_t *labels = (int64_t *)(losses + w->rows);
    pyce_problem p = w->problem;
    double *e = NULL, *g = NULL;
    if (s->dtype == PYCE_FLOAT64) e = next, next += size;
    if (pyce_has_result(&p)) g = next, next += size;
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = first + i, outer = row / s->inner;
        const pyce_operand *x = &s->logits;
        const int64_t at =
            (x->offsets ? x->offsets[outer] : outer * x->outer_stride) + row % s->inner;
        const char *data = (const char *)x->data + at * (int64_t)pyce_item_size(s->dtype);
        double *of_row = q + i * n;
        if (s->dtype == PYCE_FLOAT32 && x->class_stride == 1) {
            divide(data, 0, n, &w->by, 0, of_row, NULL);
        } else if (s->dtype == PYCE_FLOAT64 && x->class_stride == 1) {
            divide(data, 1, n, &w->by, 1, of_row, e + i * n);
        } else {
            for (int64_t c = 0; c < n; c++) {
                copy[c] = pyce_number_at(data, s->dtype, c * x->class_stride);
            }
            if (e) {
                divide(copy, 1, n, &w->by, 1, of_row, e + i * n);
            } else {
                divide(copy, 1, n, &w->by, 0, of_row, NULL);
            }
        }
        labels[i] = top_of(of_row, n);
    }
    p.outer = count;
    p.logits.data = q;
    p.result.data = g;
    p.labels = labels;
    p.losses = losses;
    pyce_job job = w->job;
    job.p = &p;
    /* The kernels' memory begins a whole number of cache lines after this one. */
    const size_t used = (size_t)(next - memory + 7) / 8 * 8;
    w->kernels->run(&job, 0, count, memory + used, NULL);
    for (int64_t i = 0; i < count; i++) {
        write_row(s, first + i, labels[i], losses[i], g ? g + i * n : NULL, q + i * n,
                  e ? e + i * n : NULL);
    }
}

INLINE void run_pieces(void *context, int64_t begin, int64_t end, void *scratch) {
    const piece_work *w = context;
    const int64_t rows = w->s->outer * w->s->inner;
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = i * w->rows;
        run_piece(w, first, rows - first < w->rows ? rows - first : w->rows, scratch);
    }
}

/* The same code for processors with wider vectors, and for any. */
#define INSTANCE(name)                                                                             \
    static void run_pieces_##name(void *context, int64_t begin, int64_t end, void *scratch) {      \
        run_pieces(context, begin, end, scratch);                                                  \
    }
INSTANCE(any)
#if defined(__x86_64__)
__attribute__((target("avx2"))) INSTANCE(avx2)
#endif

    typedef void run_function(void *context, int64_t begin, int64_t end, void *scratch);

static run_function *instance(void) {
#if defined(__x86_64__)
    const char *isa = pyce_isa_in_use();
    if (strcmp(isa, "avx2") == 0 || strcmp(isa, "avx512") == 0) return run_pieces_avx2;
#endif
    return run_pieces_any;
}

/* Not inlined: see pyce_run_problem. */
__attribute__((noinline)) int pyce_run_selective(const pyce_selective *s) {
    const int64_t rows = s->outer * s->inner, n = s->classes;
    for (int64_t i = 0; i < rows * s->chosen; i++) {
        if (s->index[i] < 0 || s->index[i] >= n) return PYCE_BAD_ARGUMENT;
    }
    if (rows == 0) return PYCE_OK;
    piece_work context = {.kernels = pyce_dispatch()->rows[PYCE_FLOAT64],
                          .s = s,
                          .by = division_by(s->temperature, s->dtype),
                          .rows = n < PIECE ? PIECE / n : 1};
    static const int64_t label = 0; /* the plan depends on whether there are labels */
    const int with_result = s->dtype == PYCE_FLOAT64 || s->entropy || s->softmax;
    context.problem = (pyce_problem){
        .operation = with_result ? PYCE_FORWARD_BACKWARD : PYCE_FORWARD,
        .dtype = PYCE_FLOAT64,
        .target = PYCE_INDEX64,
        .reduction = PYCE_NONE,
        .threads = 1,
        .outer = context.rows,
        .classes = n,
        .inner = 1,
        .logits = {.outer_stride = n, .class_stride = 1},
        .result = {.outer_stride = n, .class_stride = 1},
        .labels = &label,
        .grad_loss = 1,
        .ignore_index = -1,
    };
    pyce_plan(&context.problem, NULL, &context.job);
    context.job.grad_scale = 1;
    context.job.grad_scale_error = 0;
    context.job.all_valid = 1;
    context.job.streaming = 0; /* the gradient is read at once */
    const size_t arrays = (size_t)(1 + (s->dtype == PYCE_FLOAT64) + with_result);
    const size_t own = ((size_t)context.rows * (arrays * (size_t)n + 2) + (size_t)n + 7) / 8 * 64;
    const int64_t pieces = (rows + context.rows - 1) / context.rows;
    const int threads = pyce_threads_for(rows * n + PYCE_ROW_OVERHEAD * rows, s->threads);
    const pyce_work work = {.work = instance(),
                            .context = &context,
                            .pieces = pieces,
                            .grain = pyce_grain(pieces, threads),
                            .scratch = own + context.kernels->scratch(&context.job)};
    return pyce_pool_run(&work, threads) ? PYCE_NO_MEMORY : PYCE_OK;
}
