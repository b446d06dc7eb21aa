/* Results along the class axis: out_c = factor·e_c − soft_factor·b_c, except at two special
 * classes, the pivot and the label, whose gradients finalize.inc.h computes.
 *
 * Softmax is e_c/S, rounded once: the error of the factor 1/S counts. So no probability is above 1,
 * as S is at least e_c, and the error of a row's sum is that of rounding its probabilities.
 */

/* -- factors too small for the compute type ----------------------------------------------------------- */

/* A product e·factor must be rounded once. Where a factor is smaller than LEAST_FACTOR, BIAS_FACTOR
   moves from e (at most about BIAS_FACTOR) into the factor. */
INLINE int is_too_small(double factor) {
    return __builtin_fabs(factor) < LEAST_FACTOR && factor != 0;
}
INLINE int is_softmax(const pyce_job *job) { return job->p->operation == PYCE_SOFTMAX; }

/* factor·scale/BIAS_FACTOR with its error in *error (in: of factor), or factor·scale if e must be multiplied
   by 1/BIAS_FACTOR; *lift is what e must be multiplied by. */
INLINE double lifted_factor(const pyce_job *job, double factor, double scale, double *error,
                            real *lift) {
    const double product = factor * scale, unbias = 1 / BIAS_FACTOR;
    *error *= scale;
    if (is_softmax(job)) *error += __builtin_fma(factor, scale, -product);
    *lift = 1;
    if (__builtin_fabs(product) < LEAST_FACTOR * BIAS_FACTOR && product != 0) {
        *lift = (real)unbias;
        return product;
    }
    *error *= unbias;
    return product * unbias;
}

/* x as a number of the compute type; *error is the rounding error plus x_error, or 0 if the result is
   not finite. */
INLINE real round_to_real(double x, double x_error, real *error) {
    const real value = (real)x;
    *error = value - value == 0 ? (real)(x - (double)value + x_error) : 0;
    return value;
}

/* -- one block ----------------------------------------------------------------------------------------- */

/* A block of a result that is being written. */
typedef struct {
    const pyce_job *job;
    const real *e, *b;
    const double *weights; /* see `blended` */
    element *out;
    real factor, factor_error, soft_factor, soft_factor_error;
    int n, at;
    int streaming;
    int pivot, label; /* within the block, or −1 */
    real pivot_grad, label_grad;
} writer;

/* The writer of one block of a finalized row. `e` is changed where the factor is too small. */
INLINE writer writer_of(const pyce_job *job, const row_state *s, int lane, const pyce_block *block,
                        int64_t first, int n, real *e, const real *b, element *out) {
    double error = COMPENSATED ? s->factor_error[lane] : 0;
    real lift;
    const double factor = lifted_factor(job, s->factor[lane], block->scale, &error, &lift);
    if (lift != 1) {
        for (int c = 0; c < n; c++) e[c] *= lift;
    }
    const int special = job->p->operation != PYCE_SOFTMAX;
    writer w = {
        .job = job,
        .e = e,
        .b = b,
        .weights = class_weights_from(job, first),
        .out = out,
        .n = n,
        .at = 0,
        .streaming = job->streaming,
        .pivot = special ? index_within((int64_t)s->pivot[lane], first, n) : -1,
        .label = special && job->soft ? index_within((int64_t)s->label[lane], first, n) : -1,
        .pivot_grad = (real)s->pivot_grad[lane],
        .label_grad = job->soft ? (real)s->label_grad[lane] : 0,
    };
    w.factor = round_to_real(factor, error, &w.factor_error);
    if (job->soft) {
        const double soft_error = COMPENSATED ? s->soft_factor_error[lane] : 0;
        w.soft_factor = round_to_real(s->soft_factor[lane], soft_error, &w.soft_factor_error);
    }
    return w;
}

/* e·(factor + error), rounded once. */
INLINE vreal quotient_of(vreal e, vreal factor, vreal error) {
    return v_fma(e, factor, v_mul(e, error));
}

/* `softmax`: whether the result is a probability. */
INLINE vreal scaled(const writer *w, vreal e, const int softmax) {
    const vreal factor = v_set1(w->factor), error = v_set1(w->factor_error);
    return softmax ? quotient_of(e, factor, error) : v_scaled(e, factor, error);
}

/* t: n numbers from w->b + at. */
INLINE vreal scaled_soft(const writer *w, vreal e, vreal t, int at, int n) {
    vreal b_error;
    const vreal b = blended(w->job, t, load_weights(w->weights, at, n), &b_error);
    return soft_difference(e, v_set1(w->factor), v_set1(w->factor_error), b, b_error,
                           v_set1(w->soft_factor), v_set1(w->soft_factor_error));
}

INLINE vreal result_at(const writer *w, vreal e, int at, int n) {
    if (!w->b) return scaled(w, e, is_softmax(w->job));
    const vreal t = n == LANES ? v_load(w->b + at) : v_loadn(w->b + at, n, 0);
    return scaled_soft(w, e, t, at, n);
}

INLINE vreal with_special(const writer *w, vreal v, int at) {
    if (w->label >= at && w->label < at + LANES) {
        v = v_select(v_lane(w->label - at), v_set1(w->label_grad), v);
    }
    if (w->pivot >= at && w->pivot < at + LANES) {
        v = v_select(v_lane(w->pivot - at), v_set1(w->pivot_grad), v);
    }
    return v;
}

INLINE void write_part(writer *w, int n) {
    const vreal v = result_at(w, v_loadn(w->e + w->at, n, 0), w->at, n);
    m_storen(w->out + w->at, n, with_special(w, v, w->at));
    w->at += n;
}

INLINE void write_vector(const writer *w, int at, vreal v) {
    if (w->streaming) {
        m_stream(w->out + at, v);
    } else {
        m_store(w->out + at, v);
    }
}

/* Up to `count` whole vectors. */
INLINE void write_vectors(writer *w, int count) {
    int at = w->at;
    const int left = (w->n - at) / LANES;
    const int end = at + (count > left ? left : count) * LANES;
    const real *e = w->e;
    if (w->b || (w->pivot >= at && w->pivot < end) || (w->label >= at && w->label < end)) {
        for (; at < end; at += LANES) {
            write_vector(w, at, with_special(w, result_at(w, v_load(e + at), at, LANES), at));
        }
    } else if (is_softmax(w->job)) {
        for (; at < end; at += LANES) write_vector(w, at, scaled(w, v_load(e + at), 1));
    } else if (w->streaming) {
        for (; at < end; at += LANES) m_stream(w->out + at, scaled(w, v_load(e + at), 0));
    } else {
        for (; at < end; at += LANES) m_store(w->out + at, scaled(w, v_load(e + at), 0));
    }
    w->at = at;
}

/* Whole vectors from here to the end, or to the first that contains a special class. */
INLINE int vectors_before_special(const writer *w) {
    int end = w->n;
    if (w->pivot >= w->at && w->pivot < end) end = w->pivot;
    if (w->label >= w->at && w->label < end) end = w->label;
    return (end - w->at) / LANES;
}

/* Streaming stores are of whole aligned vectors: writes up to the first. */
INLINE void write_head(writer *w) {
    if (!w->streaming) return;
    const int past = (int)((uintptr_t)w->out % (LANES * sizeof(element)) / sizeof(element));
    const int head = past ? LANES - past : 0;
    if (head) write_part(w, head < w->n ? head : w->n);
}

/* At least to `end`, or all of it. */
INLINE void write_until(writer *w, int end) {
    if (w->at >= end) return;
    write_vectors(w, (end - w->at + LANES - 1) / LANES);
    if (w->at < end && w->at < w->n) write_part(w, w->n - w->at);
}

INLINE void write_rest(writer *w) { write_until(w, w->n); }

static void write_all(writer *w) {
    write_head(w);
    write_rest(w);
}

/* -- other results -------------------------------------------------------------------------------------- */

/* out = (x − max) − log for log-softmax. */
static void write_log_softmax(const element *x, int n, const row_state *s, int lane, element *out) {
    const vreal max = v_set1((real)s->max[lane]), log = v_set1((real)s->log[lane]);
    const vreal error = v_set1(COMPENSATED ? (real)s->log_error[lane] : 0);
    int c = 0;
    for (; c + LANES <= n; c += LANES) {
        m_store(out + c, log_softmax_of(m_load(x + c), max, log, error));
    }
    if (c < n) m_storen(out + c, n - c, log_softmax_of(m_loadn(x + c, n - c, 0), max, log, error));
}

static void zero_row(const pyce_job *job, int64_t row) {
    const pyce_operand *g = &job->p->result;
    element *out = (element *)g->data + offset_of(g, row);
    for (int64_t c = 0; c < job->p->classes; c++) out[c * g->class_stride] = 0;
}

/* n numbers that bypass the caches. `to` may have any alignment; `from` lies at the same distance from
   a multiple of 64 bytes. */
static void stream_out(element *to, const element *from, int64_t n) {
    const int past = (int)((uintptr_t)to % (LANES * sizeof(element)) / sizeof(element));
    int64_t i = past ? LANES - past : 0;
    if (i > n) i = n;
    if (i) m_storen(to, (int)i, m_loadn(from, (int)i, 0));
    for (; i + LANES <= n; i += LANES) m_stream(to + i, m_load(from + i));
    if (i < n) m_storen(to + i, (int)(n - i), m_loadn(from + i, (int)(n - i), 0));
}
