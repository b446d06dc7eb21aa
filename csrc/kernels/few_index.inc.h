/* Few classes of float logits with index targets and without weights: whole lane blocks, some
 * together.
 *
 * The formulas are those of finalize.inc.h, whose factors of a row are 1 here, and each number is
 * computed by the same operations, so that a row has the same bytes whether it comes here or not. A
 * lane block with a row whose loss or gradient may be NaN, or whose factor is too small, is left to
 * general_batch. Steps pass as little as possible through memory, and each is done for all lane
 * blocks before the next: see finalize_rows.
 */

/* A lane block between the steps. */
typedef struct {
    real max[LANES], pivot_x[LANES], pivot_e[LANES], factor[LANES], pivot_grad[LANES];
    double quotient[LANES], exact_e[LANES];
    real max_e[LANES];
    int label[LANES]; /* −1 where the row is ignored */
    normaliser norm;
    lane_rows rows;
    real *x;
} ALIGNED index_block;

/* Whether a job is of this kind. */
INLINE int is_index_job(const pyce_job *job) {
    const pyce_problem *p = job->p;
    if (job->pivot != PIVOT_LABEL || job->soft || !job->unweighted) return 0;
    if (p->operation > PYCE_BACKWARD || p->classes > PYCE_FEW) return 0;
    return p->inner > 1 || (fits_fours(&p->logits, p->classes) &&
                            (!pyce_has_result(p) || fits_fours(&p->result, p->classes)));
}

/* Loads the classes; their maxima. */
INLINE vreal index_load(const pyce_job *job, index_block *u, int n) {
    const pyce_operand *a = &job->p->logits;
    const lane_rows *rows = &u->rows;
    vreal max = v_set1((real)-INFINITE);
    if (rows->separate && rows->all_valid) return load_by_fours(a, rows, 0, n, u->x);
    if (rows->separate) {
        load_by_fours(a, rows, 0, n, u->x);
    } else {
        const element *x = (const element *)a->data + offset_of(a, rows->outer) + rows->inner;
        for (int c = 0; c < n; c++) {
            const vreal v = m_load(x + c * a->class_stride);
            v_store(u->x + c * LANES, v);
            max = v_max(v, max);
        }
        if (rows->all_valid) return max;
        max = v_set1((real)-INFINITE);
    }
    /* The logits of an ignored row must not matter. */
    const vmask ignored = v_eq(rows->label, v_set1(-1));
    for (int c = 0; c < n; c++) {
        const vreal v = v_drop(ignored, v_load(u->x + c * LANES));
        v_store(u->x + c * LANES, v);
        max = v_max(v, max);
    }
    return max;
}

/* The labels, x, the maxima, and x of the pivots, which above COMPARED_CLASSES are found one by one. */
INLINE void index_begin(const pyce_job *job, index_block *u, int n) {
    const pyce_problem *p = job->p;
    lane_rows *rows = &u->rows;
    const int64_t row = rows->row, ignore = p->ignore_index;
    const int wide = p->target == PYCE_INDEX64;
    const int64_t *from = (const int64_t *)p->labels + row;
    const int32_t *from32 = (const int32_t *)p->labels + row;
    rows->all_valid = job->all_valid;
    if (n <= COMPARED_CLASSES || !job->all_valid || !rows->separate) {
        rows->label = wide
                          ? vf_narrow(vd_labels64(from, ignore), vd_labels64(from + 8, ignore))
                          : vf_narrow(vd_labels32(from32, ignore), vd_labels32(from32 + 8, ignore));
        if (!job->all_valid) rows->all_valid = v_first(v_eq(rows->label, v_set1(-1))) < 0;
    }
    prefetch_rows(job, rows, n);
    v_store(u->max, index_load(job, u, n));
    if (n <= COMPARED_CLASSES) return;
    if (!rows->all_valid) {
        /* x and e of ignored rows are in front of the lane block. */
        v_store(u->x - LANES, v_set1(0));
        real label[LANES];
        v_store(label, rows->label);
        for (int i = 0; i < LANES; i++) u->label[i] = (int)label[i];
    } else if (wide) {
        UNROLL
        for (int i = 0; i < LANES; i++) u->label[i] = (int)from[i];
    } else {
        UNROLL
        for (int i = 0; i < LANES; i++) u->label[i] = from32[i];
    }
    UNROLL
    for (int i = 0; i < LANES; i++) u->pivot_x[i] = u->x[u->label[i] * LANES + i];
}

/* The normaliser, and e of the maxima. */
INLINE void index_normalise(index_block *u) {
    const vreal max = v_load(u->max);
    vd exact_e[2];
    vreal max_e;
    u->norm = normalise(max);
    exp_max(max, u->norm, exact_e, &max_e);
    vd_store(u->exact_e, exact_e[0]);
    vd_store(u->exact_e + 8, exact_e[1]);
    v_store(u->max_e, max_e);
}

/* x becomes e, that of the pivots 0. */
INLINE void index_exponentials(index_block *u, int n) {
    real *x = u->x;
    const normaliser norm = u->norm;
    if (n <= COMPARED_CLASSES) {
        const vreal label = u->rows.label;
        vreal pivot_x = v_set1(0), pivot_e = pivot_x;
        for (int c = 0; c < n; c++) {
            const vmask at_pivot = v_eq(label, v_set1((real)c));
            const vreal v = v_load(x + c * LANES), e = exp1(v, norm);
            pivot_x = v_select(at_pivot, v, pivot_x);
            pivot_e = v_select(at_pivot, e, pivot_e);
            v_store(x + c * LANES, v_drop(at_pivot, e));
        }
        v_store(u->pivot_x, pivot_x);
        v_store(u->pivot_e, pivot_e);
        return;
    }
    exp_all_lanes(x, n, norm);
    UNROLL
    for (int i = 0; i < LANES; i++) {
        real *at = x + u->label[i] * LANES + i;
        u->pivot_e[i] = *at;
        *at = 0;
    }
}

/* The sums, and from them the factors of the gradient and the argument of log1p. `losses` receive
   m − x_o. */
INLINE void index_factors(const pyce_job *job, index_block *u, int n, double *losses) {
    vsum sum = sum_zero();
    for (int c = 0; c < n; c++) sum_add_from(&sum, u->x + c * LANES);
    vd factor[2], pivot_grad[2];
    /* Without a gradient, the factor only tells whether the sum is finite. */
    const vd scale = vd_set1(pyce_has_result(job->p) ? job->grad_scale : 1.0);
    UNROLL
    for (int i = 0; i < 2; i++) {
        const vd m = vd_widen(u->max + 8 * i), o = vd_widen(u->pivot_x + 8 * i);
        const vdm at_max = vd_eq(m, o);
        const vd max_e = vd_drop(at_max, vd_widen(u->max_e + 8 * i));
        const vd pivot_e = vd_drop(at_max, vd_widen(u->pivot_e + 8 * i));
        const row_quotients r =
            quotients_of(m, o, i ? sum.hi : sum.lo, vd_load(u->exact_e + 8 * i), max_e, pivot_e);
        vd_store(u->quotient + 8 * i, r.quotient);
        vd_store(losses + 8 * i, vd_sub(m, o));
        factor[i] = vd_mul(scale, r.inverse);
        pivot_grad[i] = vd_sub(vd_set1(0), vd_mul(r.without_pivot, factor[i]));
    }
    v_store(u->factor, vf_narrow(factor[0], factor[1]));
    v_store(u->pivot_grad, vf_narrow(pivot_grad[0], pivot_grad[1]));
}

/* The losses, and lse where it is requested. */
INLINE void index_losses(const pyce_job *job, const index_block *u, double *losses) {
    const pyce_problem *p = job->p;
    const vreal max = v_load(u->max);
    UNROLL
    for (int i = 0; i < LANES; i += 8) {
        vd error;
        const vd log = vd_log1p(vd_load(u->quotient + i), 0, &error);
        vd_store(losses + i, vd_add(vd_load(losses + i), log));
        if (p->lse && p->operation != PYCE_BACKWARD) {
            vd_store(p->lse + u->rows.row + i, vd_add(v_eight(max, i), log));
        }
    }
    if (u->rows.all_valid) return;
    real label[LANES];
    v_store(label, u->rows.label);
    for (int i = 0; i < LANES; i++) {
        if (label[i] >= 0) continue;
        losses[i] = 0;
        if (p->lse && p->operation != PYCE_BACKWARD) p->lse[u->rows.row + i] = 0;
    }
}

/* Whether all rows have finite maxima, sums and, in the backward, lse, and no factor is too small. */
INLINE int index_is_regular(const pyce_job *job, const index_block *u) {
    const vreal max = v_load(u->max), factor = v_add(v_load(u->factor), v_sub(max, max));
    vreal size = v_max(factor, v_sub(v_set1(0), factor));
    if (!u->rows.all_valid) size = v_select(v_eq(u->rows.label, v_set1(-1)), v_set1(1), size);
    if (v_first(v_nlt(v_set1((real)LEAST_FACTOR), size)) >= 0) return 0;
    if (job->p->operation != PYCE_BACKWARD) return 1;
    const double *lse = job->p->lse + u->rows.row;
    vd bad = vd_set1(0);
    for (int i = 0; i < LANES; i += 8) {
        const vd of = vd_load(lse + i);
        bad = vd_add(bad, vd_sub(of, of));
    }
    return vd_first(vd_nlt(vd_set1(-1.0), bad)) < 0;
}

/* The gradient. */
INLINE void index_write(const pyce_job *job, const index_block *u, int n) {
    const lane_rows *rows = &u->rows;
    vreal factor = v_load(u->factor), pivot_grad = v_load(u->pivot_grad);
    if (!rows->all_valid) {
        const vmask ignored = v_eq(rows->label, v_set1(-1));
        factor = v_drop(ignored, factor);
        pivot_grad = v_drop(ignored, pivot_grad);
    }
    if (rows->separate) {
        write_plain_gradient(rows, n, u->x, factor, rows->label, pivot_grad, u->label);
        return;
    }
    const pyce_operand *g = rows->to;
    element *out = (element *)g->data + offset_of(g, rows->outer) + rows->inner;
    const int stream = job->streaming && streams(g, out);
    for (int c = 0; c < n; c++) {
        vreal v = v_mul(v_load(u->x + c * LANES), factor);
        v = v_select(v_eq(rows->label, v_set1((real)c)), pivot_grad, v);
        if (stream) {
            m_stream(out + c * g->class_stride, v);
        } else {
            m_store(out + c * g->class_stride, v);
        }
    }
}

/* As general_batch, for the next whole lane blocks; 0 if there is none. */
static int64_t index_batch(const pyce_job *job, int64_t row, int64_t end, int batch,
                           const lane_scratch *memory, const pyce_operand *to, double *losses) {
    const int n = (int)job->p->classes;
    index_block blocks[BATCH];
    int count = 0;
    for (; count < batch && row < end; count++) {
        index_block *u = blocks + count;
        u->rows = rows_at(job, row, end);
        if (u->rows.n < LANES) break;
        u->rows.to = to;
        u->x = memory->x + (count * (n + 1) + 1) * LANES;
        index_begin(job, u, n);
        row += LANES;
    }
    for (int t = 0; t < count; t++) index_normalise(blocks + t);
    for (int t = 0; t < count; t++) index_exponentials(blocks + t, n);
    for (int t = 0; t < count; t++) index_factors(job, blocks + t, n, losses + t * LANES);
    for (int t = 0; t < count; t++) index_losses(job, blocks + t, losses + t * LANES);
    for (int t = 0; t < count; t++) {
        const index_block *u = blocks + t;
        if (!index_is_regular(job, u)) {
            lane_scratch room = *memory;
            room.x = u->x;
            general_batch(job, u->rows.row, u->rows.row + LANES, 1, &room, to, losses + t * LANES);
        } else if (pyce_has_result(job->p)) {
            index_write(job, u, n);
        }
    }
    return count * LANES;
}
