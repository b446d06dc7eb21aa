/* Few classes of float logits with probabilities as targets, used as they are: no weights, no
 * smoothing. Whole lane blocks, some together, as in few_index.inc.h.
 *
 * The formulas are those of finalize.inc.h, whose factors of a row are 1 here, and each number is
 * computed by the same operations, so that a row has the same bytes whether it comes here or not. A
 * lane block with a row that has a term which is not finite, or a factor that is too small, is left
 * to general_batch. In the others the pivot is the class of the maximum, and no rule for 0 is
 * needed.
 */

/* A lane block between the steps. */
typedef struct {
    real max[LANES], pivot[LANES], pivot_b[LANES], factor[LANES], pivot_grad[LANES];
    double factors[LANES]; /* before they are rounded */
    double soft_sum[LANES], soft_loss[LANES], quotient[LANES], exact_e[LANES];
    int place[LANES]; /* the pivot, above COMPARED_CLASSES */
    int is_finite;
    normaliser norm;
    lane_rows rows;
    real *x, *b;
} ALIGNED soft_lanes;

/* Whether a job is of this kind. */
INLINE int is_soft_job(const pyce_job *job) {
    const pyce_problem *p = job->p;
    if (job->soft != SOFT_PROBS || job->blended || !job->unweighted) return 0;
    if (p->probs_dtype != p->dtype || p->operation > PYCE_FORWARD_BACKWARD) return 0;
    if (p->classes > PYCE_FEW) return 0;
    return p->inner > 1 ||
           (fits_fours(&p->logits, p->classes) && fits_fours(&p->probs, p->classes) &&
            (!pyce_has_result(p) || fits_fours(&p->result, p->classes)));
}

/* The classes and their maxima. */
INLINE void soft_begin(const pyce_job *job, soft_lanes *u, int n) {
    u->rows.all_valid = 1;
    prefetch_rows(job, &u->rows, n);
    v_store(u->max, load_and_max(job, &u->rows, 0, n, u->x));
    load_lane_block(&job->p->probs, &u->rows, 0, n, u->b);
}

/* Sums of the soft-target term, and the pivots. */
INLINE void soft_sums(soft_lanes *u, int n) {
    const vreal max = v_load(u->max);
    u->is_finite = finite_lane_sums(u->x, u->b, LANES, n, max, u->soft_sum, u->soft_loss);
    vreal pivot = v_set1(0), pivot_b = pivot;
    for (int c = n - 1; c >= 0; c--) {
        const vmask at_max = v_eq(v_load(u->x + c * LANES), max);
        pivot = v_select(at_max, v_set1((real)c), pivot);
        pivot_b = v_select(at_max, v_load(u->b + c * LANES), pivot_b);
    }
    v_store(u->pivot, pivot);
    v_store(u->pivot_b, pivot_b);
    if (n <= COMPARED_CLASSES) return;
    UNROLL
    for (int i = 0; i < LANES; i++) u->place[i] = (int)u->pivot[i];
}

/* The normaliser, and e of the maxima. */
INLINE void soft_normalise(soft_lanes *u) {
    const vreal max = v_load(u->max);
    vd exact_e[2];
    vreal max_e;
    u->norm = normalise(max);
    exp_max(max, u->norm, exact_e, &max_e);
    vd_store(u->exact_e, exact_e[0]);
    vd_store(u->exact_e + 8, exact_e[1]);
}

/* x becomes e, that of the pivots 0. */
INLINE void soft_exponentials(soft_lanes *u, int n) {
    real *x = u->x;
    const normaliser norm = u->norm;
    if (n <= COMPARED_CLASSES) {
        const vreal pivot = v_load(u->pivot);
        for (int c = 0; c < n; c++) {
            const vreal e = exp1(v_load(x + c * LANES), norm);
            v_store(x + c * LANES, v_drop(v_eq(pivot, v_set1((real)c)), e));
        }
        return;
    }
    exp_all_lanes(x, n, norm);
    UNROLL
    for (int i = 0; i < LANES; i++) x[u->place[i] * LANES + i] = 0;
}

/* The sums, and from them the factors of the gradient and the argument of log1p. */
INLINE void soft_factors(const pyce_job *job, soft_lanes *u, int n) {
    vsum sum = sum_zero();
    for (int c = 0; c < n; c++) sum_add_from(&sum, u->x + c * LANES);
    vd factor[2], pivot_grad[2];
    const vd zero = vd_set1(0);
    /* Without a gradient, the factor only tells whether the sum is finite. */
    const vd scale = vd_set1(pyce_has_result(job->p) ? job->grad_scale : 1.0);
    UNROLL
    for (int i = 0; i < 2; i++) {
        const vd m = vd_widen(u->max + 8 * i), exact_e = vd_load(u->exact_e + 8 * i);
        const row_quotients r = quotients_of(m, m, i ? sum.hi : sum.lo, exact_e, zero, zero);
        const vd all = vd_load(u->soft_sum + 8 * i), at_pivot = vd_widen(u->pivot_b + 8 * i);
        vd_store(u->quotient + 8 * i, r.quotient);
        factor[i] = vd_mul(vd_mul(scale, all), r.inverse);
        vd_store(u->factors + 8 * i, factor[i]);
        const vd ratio = vd_mul(r.without_pivot, r.inverse), p = vd_mul(exact_e, r.inverse);
        const vd grad = vd_select(vd_nlt(ratio, vd_set1(0.5)), vd_sub(vd_mul(all, p), at_pivot),
                                  vd_sub(vd_sub(all, at_pivot), vd_mul(all, ratio)));
        pivot_grad[i] = vd_mul(scale, grad);
    }
    v_store(u->factor, vf_narrow(factor[0], factor[1]));
    v_store(u->pivot_grad, vf_narrow(pivot_grad[0], pivot_grad[1]));
}

/* The losses, and lse where it is requested. */
INLINE void soft_losses(const pyce_job *job, const soft_lanes *u, double *losses) {
    const pyce_problem *p = job->p;
    const vreal max = v_load(u->max);
    UNROLL
    for (int i = 0; i < LANES; i += 8) {
        vd error;
        const vd log = vd_log1p(vd_load(u->quotient + i), 0, &error);
        const vd loss = vd_mul(vd_load(u->soft_sum + i), log);
        vd_store(losses + i, vd_add(loss, vd_load(u->soft_loss + i)));
        if (p->lse) vd_store(p->lse + u->rows.row + i, vd_add(v_eight(max, i), log));
    }
}

/* Whether all rows have finite terms and no factor is too small. */
INLINE int soft_is_regular(const soft_lanes *u) {
    const vreal factor = v_load(u->factor);
    const vreal size = v_max(factor, v_sub(v_set1(0), factor));
    return u->is_finite && v_first(v_nlt(v_set1((real)LEAST_FACTOR), size)) < 0;
}

/* The gradient. */
INLINE void soft_write(const pyce_job *job, const soft_lanes *u, int n) {
    const lane_rows *rows = &u->rows;
    const pyce_operand *g = rows->to;
    const vreal factor = v_load(u->factor), zero = v_set1(0);
    const vreal factor_error = real_errors(u->factors, 0, factor);
    real error;
    const vreal soft_factor = v_set1(round_to_real(job->grad_scale, 0, &error));
    const vreal soft_error = v_set1(error);
    const vreal pivot = v_load(u->pivot), pivot_grad = v_load(u->pivot_grad);
    element *out = (element *)g->data;
    if (!rows->separate) {
        out += offset_of(g, rows->outer) + rows->inner;
        const int stream = job->streaming && streams(g, out);
        for (int c = 0; c < n; c++) {
            vreal v = soft_difference(v_load(u->x + c * LANES), factor, factor_error,
                                      v_load(u->b + c * LANES), zero, soft_factor, soft_error);
            v = v_select(v_eq(pivot, v_set1((real)c)), pivot_grad, v);
            if (stream) {
                m_stream(out + c * g->class_stride, v);
            } else {
                m_store(out + c * g->class_stride, v);
            }
        }
        return;
    }
    out += rows->row * g->outer_stride;
    const int width = n < 4 ? n : 4, compare = n <= COMPARED_CLASSES;
    for (int c = 0;; c = next_four(c, n)) {
        vreal v[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            const int at = c + (j < width ? j : 0);
            v[j] = soft_difference(v_load(u->x + at * LANES), factor, factor_error,
                                   v_load(u->b + at * LANES), zero, soft_factor, soft_error);
            if (compare) v[j] = v_select(v_eq(pivot, v_set1((real)at)), pivot_grad, v[j]);
        }
        m_store_rows(out + c, g->outer_stride, v, width);
        if (c + 4 >= n) break;
    }
    if (compare) return;
    UNROLL
    for (int i = 0; i < LANES; i++) {
        m_storen(out + i * g->outer_stride + u->place[i], 1, v_set1(u->pivot_grad[i]));
    }
}

/* As index_batch. */
static int64_t soft_batch(const pyce_job *job, int64_t row, int64_t end, int batch,
                          const lane_scratch *memory, const pyce_operand *to, double *losses) {
    const int n = (int)job->p->classes;
    soft_lanes blocks[BATCH];
    int count = 0;
    for (; count < batch && row < end; count++) {
        soft_lanes *u = blocks + count;
        u->rows = rows_at(job, row, end);
        if (u->rows.n < LANES) break;
        u->rows.to = to;
        u->x = memory->x + count * n * LANES;
        u->b = memory->b + count * n * LANES;
        soft_begin(job, u, n);
        row += LANES;
    }
    for (int t = 0; t < count; t++) soft_normalise(blocks + t);
    for (int t = 0; t < count; t++) soft_sums(blocks + t, n);
    for (int t = 0; t < count; t++) soft_exponentials(blocks + t, n);
    for (int t = 0; t < count; t++) soft_factors(job, blocks + t, n);
    for (int t = 0; t < count; t++) soft_losses(job, blocks + t, losses + t * LANES);
    for (int t = 0; t < count; t++) {
        const soft_lanes *u = blocks + t;
        if (!soft_is_regular(u)) {
            lane_scratch room = *memory;
            room.x = u->x;
            room.b = u->b;
            general_batch(job, u->rows.row, u->rows.row + LANES, 1, &room, to, losses + t * LANES);
        } else if (pyce_has_result(job->p)) {
            soft_write(job, u, n);
        }
    }
    return count * LANES;
}
