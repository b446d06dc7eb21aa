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
 * Every operation rounds by itself, in vectors of two numbers, which every processor has: the bytes are
 * the same for every instruction set.
 */
#include <math.h>
#include <string.h>

#include "dispatch.h"
#include "internal.h"
#include "pool.h"

/* Elements of the rows of a piece, which a cache holds with their quotients, errors and softmax. */
enum { PIECE = 16384 };
/* The shortest rows whose maxima are found in vectors. */
enum { LONG = 16 };

typedef double pair __attribute__((vector_size(16)));
typedef int64_t pair_bits __attribute__((vector_size(16)));
typedef float floats __attribute__((vector_size(8)));

static inline pair load(const double *x) {
    pair v;
    memcpy(&v, x, sizeof v);
    return v;
}
static inline void store(double *x, pair v) { memcpy(x, &v, sizeof v); }
static inline pair both(double x) { return (pair){x, x}; }
static inline pair only(pair v, pair_bits mask) { return (pair)((pair_bits)v & mask); }
static inline pair larger(pair a, pair b) {
    const pair_bits mask = a > b;
    return (pair)(((pair_bits)a & mask) | ((pair_bits)b & ~mask));
}
/* The error of s = a + b. */
static inline pair error_of(pair a, pair b, pair s) {
    const pair t = s - a;
    return (a - (s - t)) + (b - t);
}
/* The leading 26 bits; the products of two such parts, and of the rests, are exact. */
static inline pair leading(pair v) { return (pair)((pair_bits)v & -((int64_t)1 << 27)); }

/* -- quotients --------------------------------------------------------------------------------------- */

typedef struct {
    double before;        /* a power of two that double logits are multiplied by */
    double first, second; /* powers of two that differences are multiplied by */
    double divisor, inverse;
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
    return d;
}

/* A row as contiguous doubles. */
static const double *widened(const void *data, int dtype, int64_t n, int64_t stride, double *to) {
    int64_t c = 0;
    if (dtype == PYCE_FLOAT64 && stride == 1) return data;
    if (dtype == PYCE_FLOAT32 && stride == 1) {
        for (; c + 2 <= n; c += 2) {
            floats v;
            memcpy(&v, (const float *)data + c, sizeof v);
            store(to + c, __builtin_convertvector(v, pair));
        }
    }
    for (; c < n; c++) to[c] = pyce_number_at(data, dtype, c * stride);
    return to;
}

/* The largest number, whatever it is if there is a NaN. */
static double maximum(const double *x, int64_t n) {
    double most = x[0];
    int64_t c = 1;
    if (n >= LONG) {
        pair m0 = load(x), m1 = load(x + 2), m2 = load(x + 4), m3 = load(x + 6);
        for (c = 8; c + 8 <= n; c += 8) {
            m0 = larger(load(x + c), m0);
            m1 = larger(load(x + c + 2), m1);
            m2 = larger(load(x + c + 4), m2);
            m3 = larger(load(x + c + 6), m3);
        }
        m0 = larger(larger(m0, m1), larger(m2, m3));
        most = m0[0] > m0[1] ? m0[0] : m0[1];
    }
    for (; c < n; c++) most = x[c] > most ? x[c] : most;
    return most;
}

static inline pair quotient(pair x, pair m, const division *d, int with_error, pair *error) {
    if (!with_error) return (x - m) * both(d->first) * both(d->second) * both(d->inverse);
    x *= both(d->before);
    const pair distance = x - m;
    const pair scaled = distance * both(d->first) * both(d->second);
    const pair rest = error_of(x, -m, distance) * both(d->first) * both(d->second);
    const pair q = scaled * both(d->inverse);
    /* The remainder scaled − q·divisor: of products of parts, which are exact. */
    const pair q1 = leading(q), q2 = q - q1;
    const pair d1 = leading(both(d->divisor)), d2 = both(d->divisor) - d1;
    const pair remainder = (((scaled - q1 * d1) - q1 * d2) - q2 * d1) - q2 * d2;
    const pair e = (remainder + rest) * both(d->inverse);
    *error = only(e, e - e == both(0));
    return q;
}

/* The quotients of a row, and with_error their errors. q may be x. */
static inline void divide(const double *x, int64_t n, const division *d, int with_error, double *q,
                          double *e) {
    const pair m = both(maximum(x, n) * (with_error ? d->before : 1));
    int64_t c = 0;
    pair error;
    for (; c + 2 <= n; c += 2) {
        store(q + c, quotient(load(x + c), m, d, with_error, &error));
        if (with_error) store(e + c, error);
    }
    if (c < n) {
        q[c] = quotient(both(x[c]), m, d, with_error, &error)[0];
        if (with_error) e[c] = error[0];
    }
}

/* The first class with the quotient 0, or class 0 if there is none. */
static int64_t top_of(const double *q, int64_t n) {
    int64_t c = 0;
    const pair zero = both(0);
    for (; c + 8 <= n; c += 8) {
        const pair_bits found = (load(q + c) == zero) | (load(q + c + 2) == zero) |
                                (load(q + c + 4) == zero) | (load(q + c + 6) == zero);
        if (found[0] | found[1]) break;
    }
    for (; c < n; c++) {
        if (q[c] == 0) return c;
    }
    return 0;
}

/* -- results ----------------------------------------------------------------------------------------- */

typedef struct {
    double b, s, s_error, d; /* −S has the error s_error */
} row_sums;

/* Four pairs of partial sums each, so that additions need not wait for each other. `g` is p, minus 1 at
   the class with q = e = 0. e is NULL for errors of 0. */
static row_sums sums_of(const double *g, const double *q, const double *e, int64_t n,
                        int with_entropy) {
    enum { COUNT = 4 };
    pair b[COUNT], s[COUNT], s_error[COUNT], d[COUNT];
    const pair zero = both(0);
    for (int i = 0; i < COUNT; i++) b[i] = s[i] = s_error[i] = d[i] = zero;
    for (int64_t c = 0; c < n; c += 2 * COUNT) {
        double rest[3][2 * COUNT] = {{0}};
        const double *at[3] = {g + c, q + c, e ? e + c : rest[2]};
        if (n - c < 2 * COUNT) {
            const size_t size = (size_t)(n - c) * sizeof(double);
            for (int k = 0; k < 3; k++) {
                if (at[k] != rest[k]) memcpy(rest[k], at[k], size);
                at[k] = rest[k];
            }
        }
        for (int i = 0; i < COUNT; i++) {
            const pair p = load(at[0] + 2 * i), error = load(at[2] + 2 * i);
            const pair pe = p * error;
            b[i] += pe;
            if (!with_entropy) continue;
            /* 0·inf = 0 */
            const pair below = only(load(at[1] + 2 * i), p != zero);
            const pair product = p * below, sum = s[i] + product;
            s_error[i] += error_of(s[i], product, sum);
            s[i] = sum;
            d[i] += pe * below;
        }
    }
    row_sums r = {0, 0, 0, 0};
    for (int i = 0; i < COUNT; i++) {
        for (int k = 0; k < 2; k++) {
            const double sum = r.s + s[i][k];
            r.s_error += s_error[i][k] + error_of(both(r.s), both(s[i][k]), both(sum))[0];
            r.s = sum;
            r.b += b[i][k];
            r.d += d[i][k];
        }
    }
    return r;
}

/* q − loss + rest, where q may be −inf. */
static inline double log_p(double q, double loss, double rest) {
    const double sum = q - loss;
    if (sum - sum != 0) return sum;
    return sum + (error_of(both(q), both(-loss), both(sum))[0] + rest);
}

static inline double without_nan(double e) { return e == e ? e : 0; }

static void write_row(const pyce_selective *s, int64_t row, int64_t top, double loss,
                      const double *g, const double *q, const double *e) {
    const int64_t n = s->classes;
    const int to = s->dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    row_sums r = {0, 0, 0, 0};
    if (g && (e || s->entropy)) r = sums_of(g, q, e, n, s->entropy != NULL);
    /* NaN where the loss is. */
    const double b = without_nan(r.b);
    for (int64_t k = 0; k < s->chosen; k++) {
        const int64_t y = s->index[row * s->chosen + k];
        pyce_set_number(s->log_probs, to, row * s->chosen + k,
                        log_p(q[y], loss, (e ? e[y] : 0) - b));
    }
    if (s->entropy) {
        const double mean = -r.s; /* S */
        const double h = loss + mean;
        const double error = error_of(both(loss), both(mean), both(h))[0];
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

static void run_piece(const piece_work *w, int64_t first, int64_t count, double *memory) {
    const pyce_selective *s = w->s;
    const int64_t n = s->classes, size = w->rows * n;
    double *q = memory, *losses = q + size, *top = losses + w->rows, *next = top + w->rows;
    int64_t *labels = (int64_t *)top;
    pyce_problem p = w->problem;
    double *e = NULL, *g = NULL;
    if (s->dtype == PYCE_FLOAT64) e = next, next += size;
    if (pyce_has_result(&p)) g = next, next += size;
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = first + i, outer = row / s->inner;
        const pyce_operand *x = &s->logits;
        const int64_t at = (x->offsets ? x->offsets[outer] : outer * x->outer_stride) +
                           row % s->inner;
        const char *data = (const char *)x->data + at * (int64_t)pyce_item_size(s->dtype);
        double *of_row = q + i * n;
        const double *wide = widened(data, s->dtype, n, x->class_stride, of_row);
        if (e) {
            divide(wide, n, &w->by, 1, of_row, e + i * n);
        } else {
            divide(wide, n, &w->by, 0, of_row, NULL);
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

static void run_pieces(void *context, int64_t begin, int64_t end, void *scratch) {
    const piece_work *w = context;
    const int64_t rows = w->s->outer * w->s->inner;
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = i * w->rows;
        run_piece(w, first, rows - first < w->rows ? rows - first : w->rows, scratch);
    }
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
    const size_t own = ((size_t)context.rows * (arrays * (size_t)n + 2) + 7) / 8 * 64;
    const int64_t pieces = (rows + context.rows - 1) / context.rows;
    const int threads = pyce_threads_for(rows * n + PYCE_ROW_OVERHEAD * rows, s->threads);
    const pyce_work work = {.work = run_pieces,
                            .context = &context,
                            .pieces = pieces,
                            .grain = pyce_grain(pieces, threads),
                            .scratch = own + context.kernels->scratch(&context.job)};
    return pyce_pool_run(&work, threads) ? PYCE_NO_MEMORY : PYCE_OK;
}
