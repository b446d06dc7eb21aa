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
#include "reduce.h"

/* Elements of the rows of a piece, which a cache holds with their quotients, errors and softmax. */
enum { PIECE = 16384 };

static pyce_division division_by(double temperature, int dtype) {
    int exponent;
    pyce_division d = {.before = 1, .first = 1, .second = 1};
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

/* q − loss + rest, where q may be −inf. */
static double log_p(double q, double loss, double rest) {
    double error;
    const double sum = two_sum(q, -loss, &error);
    return sum - sum == 0 ? sum + (error + rest) : sum;
}

static double without_nan(double e) { return e == e ? e : 0; }

static void write_row(const pyce_kernels *kernels, const pyce_selective *s, int64_t row,
                      int64_t top, double loss, const double *g, const double *q, const double *e) {
    const int64_t n = s->classes;
    const int to = s->dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    pyce_selective_sums r = {0, 0, 0, 0};
    if (e || s->entropy) r = kernels->selective_sums(g, q, e, n, s->entropy != NULL);
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
        double error;
        const double h = two_sum(loss, mean, &error);
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
    const pyce_kernels *kernels;
    const pyce_row_kernels *of_quotients;
    const pyce_selective *s;
    pyce_problem problem; /* of the quotients of a piece */
    pyce_job job;
    pyce_division by;
    int64_t rows; /* of a piece */
} piece_work;

static void run_piece(const piece_work *w, int64_t first, int64_t count, double *memory) {
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
        const int whole = s->dtype == PYCE_FLOAT32 || s->dtype == PYCE_FLOAT64;
        const void *row_data = data;
        if (!whole || x->class_stride != 1) {
            for (int64_t k = 0; k < n; k++) {
                copy[k] = pyce_number_at(data, s->dtype, k * x->class_stride);
            }
            row_data = copy;
        }
        const int is_double = row_data == copy || s->dtype == PYCE_FLOAT64;
        labels[i] = w->kernels->selective_quotients(row_data, is_double, n, &w->by, of_row,
                                                    e ? e + i * n : NULL);
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
    w->of_quotients->run(&job, 0, count, memory + used, NULL);
    for (int64_t i = 0; i < count; i++) {
        write_row(w->kernels, s, first + i, labels[i], losses[i], g ? g + i * n : NULL, q + i * n,
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
    const pyce_kernels *kernels = pyce_dispatch();
    piece_work context = {.kernels = kernels,
                          .of_quotients = kernels->rows[PYCE_FLOAT64],
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
    const pyce_work work = {.work = run_pieces,
                            .context = &context,
                            .pieces = pieces,
                            .grain = pyce_grain(pieces, threads),
                            .scratch = own + context.of_quotients->scratch(&context.job)};
    return pyce_pool_run(&work, threads) ? PYCE_NO_MEMORY : PYCE_OK;
}
