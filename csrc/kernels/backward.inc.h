/* The backward from a saved lse, in one pass: the lse takes the maximum's place in the normaliser. */

/* Whether a row's backward may be computed so. For float results a double holds log S exactly enough up
   to 2^20; for double results it never does, and the row's sum is computed anew. */
INLINE int lse_suffices(const pyce_job *job, int64_t row) {
    const pyce_problem *p = job->p;
    if (!LSE_SUFFICES || p->operation != PYCE_BACKWARD || job->soft) return 0;
    if (p->lse_square_scale != 0) return 0; /* the label's own exponential counts as well */
    if (p->classes <= PYCE_FEW) return 0;   /* there the sum costs next to nothing */
    return p->lse[row] >= -0x1p20 && p->lse[row] <= 0x1p20 && is_valid(p, row);
}

/* Of eight rows: what e, relative to the normaliser of the row's lse, must be multiplied by to be p,
   and s·w_y, which p is multiplied by to be the gradient. */
typedef struct {
    vd to_p, scale;
} lse_factors;

/* `label`: of eight rows, −1 where one is ignored; `count` of them are rows. */
INLINE lse_factors factors_from_lse(const pyce_job *job, int64_t row, int count,
                                    const double *label) {
    const pyce_problem *p = job->p;
    const vdm ignored = vd_eq(vd_load(label), vd_set1(-1.0));
    const vd lse = vd_drop(ignored, vd_loadn(p->lse + row, count, 0));
    double values[LANES] = {0};
    vd_store(values, lse);
    const normaliser norm = normalise(v_from_doubles(values));
    lse_factors f;
    f.to_p = exp_of(vd_sub(v_eight(norm.shift, 0), lse), v_eight(norm.exponent, 0));
    f.scale = vd_set1(job->grad_scale);
    vd coefficient = vd_set1(1.0); /* 0 where w_y or the sample weight is */
    if (p->weight) {
        const vd weight = label_weights(p->weight, label, count);
        f.scale = vd_mul(f.scale, weight);
        coefficient = vd_drop(vd_eq(weight, vd_set1(0)), coefficient);
    }
    if (p->sample_weight) {
        const vd weight = vd_loadn(p->sample_weight + row, count, 0);
        f.scale = vd_mul(f.scale, weight);
        coefficient = vd_drop(vd_eq(weight, vd_set1(0)), coefficient);
    }
    if (p->grad_losses) f.scale = vd_mul(f.scale, vd_loadn(p->grad_losses + row, count, 0));
    f.scale = vd_drop(vd_eq(coefficient, vd_set1(0)), f.scale);
    return f;
}
/* Of one row: the factor of e, and with rest = Σ e without the label, the gradient at the label. */
static double factor_from_lse(const pyce_job *job, int64_t row, double rest, double *label_grad) {
    const double label[8] = {(double)label_of(job->p, row)};
    const lse_factors f = factors_from_lse(job, row, 1, label);
    double to_p[8], scale[8];
    vd_store(to_p, f.to_p);
    vd_store(scale, f.scale);
    *label_grad = 0.0 - scale[0] * (rest * to_p[0]);
    return scale[0] * to_p[0];
}

/* The gradient of blocks first…last except at the label, and their sums without it. */
static void backward_blocks(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                            pyce_block *blocks, block_scratch *room) {
    const pyce_problem *p = job->p;
    const pyce_operand *a = &p->logits, *g = &p->result;
    const element *x = (const element *)a->data + offset_of(a, row);
    element *result = (element *)g->data + offset_of(g, row);
    const int64_t label = label_of(p, row);
    const normaliser norm = normalise(v_set1((real)p->lse[row]));
    row_state s;
    s.factor[0] = factor_from_lse(job, row, 0, s.pivot_grad);
    s.factor_error[0] = s.soft_factor[0] = s.label_grad[0] = 0;
    s.pivot[0] = s.label[0] = -1;
    const pyce_block unit = {.scale = BIAS_FACTOR};
    writer w, *before = 0;
    next_block none = {0, 0, 0};
    unsummed last_block = {0};
    for (int64_t k = first; k < last; k++) {
        const int n = block_size(job, k);
        const int64_t at = k * PYCE_BLOCK;
        const element *block = gather(x + at * a->class_stride, a->class_stride, n, room->in);
        real *e = room->e[k & 1];
        exp_block(block, n, &norm, e, before, &none, &last_block);
        last_block = unsummed_block(blocks + k, index_within(label, at, n), e, n, 0);
        /* A writer changes e where the factor is too small. */
        if (is_too_small(s.factor[0])) sum_block(&last_block);
        element *out = g->class_stride == 1 ? result + at : room->out;
        w = writer_of(job, &s, 0, &unit, at, n, e, 0, out);
        before = &w;
        if (g->class_stride != 1) {
            write_all(&w);
            scatter(out, n, result + at * g->class_stride, g->class_stride);
            before = 0;
        }
    }
    sum_block(&last_block);
    if (before) write_all(before);
}

/* The gradient at the label, from the sums of all blocks of the row. */
static void backward_label(const pyce_job *job, int64_t row, const pyce_block *blocks) {
    const pyce_problem *p = job->p;
    const int64_t outer = row / p->inner, inner = row % p->inner;
    double rest = 0, error = 0, grad;
    for (int64_t k = 0; k < job->blocks; k++) compensated_add(&rest, blocks[k].sum, &error);
    factor_from_lse(job, row, rest + error, &grad);
    element *result = (element *)p->result.data + offset_of(&p->result, outer) + inner;
    const int64_t at = label_of(p, row) * p->result.class_stride;
    if (job->streaming) memory_fence();
    m_storen(result + at, 1, v_set1((real)grad));
}
