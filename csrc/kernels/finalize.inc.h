/* Loss, lse and the factors of the gradient from a row's statistics.
 *
 * With m the row's maximum, x_o the logit of the pivot o (the label, or the class of the maximum),
 * rest the sum of e over the other classes, and S the sum over all of them:
 *
 *     lse − x_k = (m − x_k) + log1p(others/e_m),   others = S − e_m
 *     p_o − 1   = −(S − e_o)/S
 *
 * Every term is a sum of numbers of one sign, so nothing cancels, however confident the model is.
 * e_m is computed anew in double precision. Where the pivot is the class of the maximum, others is
 * rest. Where it is not, others = rest − e(m) + e_o, with e(m) as the kernels added it; others is
 * then so large compared with e_m that the subtraction does not change the loss.
 *
 * In general a row's loss and gradient are, with the label y (if any), factors b (SOFT_…), and
 * A = label_part·w_y + soft_part·Σ b:
 *
 *     loss   = label_part·w_y·(lse − x_y) + soft_part·(Σ b_c·(m − x_c) + Σ b·(lse − m))
 *     grad_c = s·(A·p_c − soft_part·b_c − label_part·w_y·[c = y])
 *
 * The loss of a row is multiplied by its sample weight, the gradient by s (row_factors).
 *
 * With lse_square_scale λ, and w = w_y or, without a label, 1:
 *
 *     loss  += λ·w·lse²,    grad_c += s·2λ·w·lse·p_c
 *
 * A row whose coefficients are all 0 (its sample weight, or w_y or all b, and λ·w) has the loss and the
 * gradient 0, whatever its logits are: its results are exactly 0, of which the writers make zeros
 * (is_zero_row).
 */

/* The factors of the losses and gradients of eight rows. */
typedef struct {
    vd_pair label;    /* label_part·w_y, 0 where the row is ignored, has no label or weighs 0 */
    vd_pair scale;    /* s: grad_loss·sample weight/denominator, times the row's own grad_loss */
    vd sample_weight; /* 0 where the row is ignored */
    vdm ignored;
} row_factors;

/* w_y of eight rows, 0 where there is no label. */
INLINE vd label_weights(const double *weight, const double *label, int count) {
    double of[8] = {0};
    for (int k = 0; k < count; k++) {
        if (label[k] >= 0) of[k] = weight[(int64_t)label[k]];
    }
    return vd_load(of);
}

/* Of lanes i…i+7. */
INLINE row_factors find_factors(const pyce_job *job, int i, const row_state *s) {
    const pyce_problem *p = job->p;
    const int64_t row = s->row;
    const int left = rows_left(s, i);
    const vd zero = vd_set1(0), label = vd_load(s->label + i);
    row_factors f;
    f.label = pair_of(zero, zero);
    f.sample_weight = vd_set1(1.0);
    f.scale = pair_of(vd_set1(job->grad_scale), vd_set1(job->grad_scale_error));
    f.ignored = vd_eq(zero, f.sample_weight);
    if (p->labels) {
        f.ignored = vd_eq(label, vd_set1(-1.0));
        f.sample_weight = vd_drop(f.ignored, f.sample_weight);
        f.label.value = vd_drop(f.ignored, vd_set1(job->label_part));
        f.label.error = vd_drop(f.ignored, vd_set1(job->label_part_error));
    }
    if (job->unweighted) return f;
    if (p->weight && p->labels) {
        const vd weight = label_weights(p->weight, s->label + i, left);
        const vd part = product_or_0(f.label.value, weight);
        f.label = pair_scale(f.label, weight);
        f.label.value = part;
    }
    if (p->sample_weight) {
        const vd weight = vd_loadn(p->sample_weight + row + i, left, 0);
        f.sample_weight = vd_drop(f.ignored, weight);
        f.scale = pair_scale(f.scale, weight);
        f.label.value = vd_drop(vd_eq(weight, zero), f.label.value);
    }
    if (p->grad_losses) {
        f.scale = pair_scale(f.scale, vd_loadn(p->grad_losses + row + i, left, 0));
    }
    return f;
}

static int has_nan(const pyce_problem *p, int64_t row) {
    const element *x = logits_of(p, row);
    for (int64_t c = 0; c < p->classes; c++) {
        const real value = m_get(x + c * p->logits.class_stride);
        if (value != value) return 1;
    }
    return 0;
}

/* The lse of eight rows where it is requested: 0 for a row that is ignored. Of doubles, the rounding
   errors of log S and of the sum count: near an lse of 0, max and log S are larger than it. */
INLINE void write_lse(const pyce_problem *p, int i, vdm ignored, vd max, vd log,
                      const row_state *s) {
    if (!p->lse || p->operation == PYCE_BACKWARD) return;
    const int64_t row = s->row;
    const int left = rows_left(s, i);
    vd lse = vd_add(max, log);
    if (COMPENSATED) {
        lse = vd_add(lse, vd_add(error_of_sum(max, log, lse), vd_load(s->log_error + i)));
    }
    vd_storen(p->lse + row + i, left, vd_drop(ignored, lse));
    const vd nan = vd_drop(ignored, vd_drop(vd_eq(log, log), vd_set1(1.0)));
    if (vd_first(vd_eq(nan, vd_set1(1.0))) < 0) return;
    double tops[8], bad[8];
    vd_store(tops, max);
    vd_store(bad, nan);
    for (int k = 0; k < left; k++) {
        if (bad[k] == 0) continue;
        /* An infinite maximum is the lse, unless there is NaN in the row as well. */
        const int infinite = tops[k] - tops[k] != 0 && !has_nan(p, row + i + k);
        p->lse[row + i + k] = infinite ? tops[k] : NOT_A_NUMBER;
    }
}

/* NaN where the maximum, the sum or, in the backward, the lse is not finite; 0 elsewhere. */
INLINE vd bad_rows(const pyce_problem *p, int i, vd max, vd others, const row_state *s) {
    vd bad = vd_add(vd_sub(others, others), vd_sub(max, max));
    if (p->operation == PYCE_BACKWARD) {
        const vd lse = vd_loadn(p->lse + s->row + i, rows_left(s, i), 0);
        bad = vd_add(bad, vd_sub(lse, lse));
    }
    return bad;
}

/* coefficient·distance. An infinite coefficient makes it infinite even where the distance, which is
   positive, was rounded to 0. */
INLINE vd times_distance(vd coefficient, vd distance) {
    const vdm finite = vd_eq(vd_sub(coefficient, coefficient), vd_set1(0));
    const vd positive = vd_add(distance, vd_set1(0x1p-1022));
    return vd_mul(coefficient, vd_select(finite, distance, positive));
}

/* By precision: finalize_sums, the first step (others/e_m, S − e_o, 1/S); finalize_soft, what the
   soft-target term adds in the third; log_softmax_of. */
#include FINALIZE_INC

/* λ·w of lanes i…i+7. */
INLINE vd_pair lse_square_scales(const pyce_problem *p, int i, const row_state *s) {
    const vd_pair scale = pair_of(vd_set1(p->lse_square_scale), vd_set1(0));
    if (!p->weight || !p->labels) return scale;
    return pair_scale(scale, label_weights(p->weight, s->label + i, rows_left(s, i)));
}

/* Rows i…i+7 of soft targets whose coefficients are all 0. Σ b and Σ b·(m − x) tell, which may also
   cancel: they are asked only where the result would be NaN. */
INLINE vdm without_coefficients(const pyce_problem *p, int i, const row_state *s,
                                const row_factors *f) {
    const vd zero = vd_set1(0), one = vd_set1(1.0);
    const vd doubtful = vd_mul(vd_load(s->log + i), f->scale.value);
    vd some = vd_drop(vd_eq(f->label.value, zero), one);
    some = vd_add(some, vd_drop(vd_eq(vd_load(s->soft_sum + i), zero), one));
    some = vd_add(some, vd_drop(vd_eq(vd_load(s->soft_loss + i), zero), one));
    some = vd_add(some, vd_keep(vd_eq(vd_sub(doubtful, doubtful), zero), one));
    if (p->lse_square_scale != 0) {
        const vd scale = lse_square_scales(p, i, s).value;
        some = vd_add(some, vd_drop(vd_eq(scale, zero), one));
    }
    return vd_eq(vd_drop(vd_eq(f->sample_weight, zero), some), zero);
}

/* Whether the result of a finalized row is 0 whatever its e and b are. With lse_square_scale,
   the factor of e may be 0 while the gradients at the pivot and the label are not. */
INLINE int is_zero_row(const pyce_job *job, const row_state *s, int lane) {
    if (s->factor[lane] != 0 || s->pivot_grad[lane] != 0) return 0;
    return !job->soft || (s->soft_factor[lane] == 0 && s->label_grad[lane] == 0);
}

/* The second step: lse − m = log(1 + others/e_m). */
INLINE void finalize_log(int i, row_state *s) {
    const vd q = vd_load(s->quotient + i);
    vd log_error = q;
    const vd log = vd_log1p(q, COMPENSATED, &log_error);
    if (COMPENSATED) {
        const vd by_q = vd_div(vd_load(s->quotient_error + i), vd_add(vd_set1(1.0), q));
        vd_store(s->log_error + i, finite_error(vd_add(log_error, by_q)));
    }
    vd_store(s->log + i, vd_add(log, vd_load(s->bad + i)));
}

/* Adds λ·w·lse² of lanes i…i+7 to their losses; returns its derivative, 2λ·w·lse. */
static __attribute__((noinline)) vd_pair add_lse_square(const pyce_job *job, int i,
                                                        const row_state *s, vd_pair *loss) {
    const pyce_problem *p = job->p;
    const vd zero = vd_set1(0), m = vd_load(s->max + i), log = vd_load(s->log + i);
    vd_pair lse = pair_of(vd_add(m, log), zero);
    if (COMPENSATED) {
        lse.error = vd_add(error_of_sum(m, log, lse.value), vd_load(s->log_error + i));
    }
    const vd_pair half = pair_mul(lse_square_scales(p, i, s), lse), square = pair_mul(half, lse);
    *loss = pair_add(*loss, pair_of(square.value, finite_error(square.error)));
    return pair_add(half, half);
}

/* Adds derivative·p to the gradients of lanes i…i+7: to those of the pivot and the label, and to the
   factor of the others, which remains 0 in rows of `nothing`. */
static __attribute__((noinline)) void add_lse_gradient(const pyce_job *job, int i, row_state *s,
                                                       vd_pair scale, vd_pair derivative,
                                                       vdm nothing) {
    const vd zero = vd_set1(0);
    const vd inverse_error = COMPENSATED ? vd_load(s->inverse_error + i) : zero;
    const vd_pair inverse = pair_of(vd_load(s->inverse + i), inverse_error);
    vd_pair added = pair_mul(pair_mul(scale, derivative), inverse);
    added.value = vd_drop(nothing, vd_drop(vd_eq(derivative.value, zero), added.value));
    added.error = vd_drop(nothing, finite_error(added.error));
    const vd factor_error = COMPENSATED ? vd_load(s->factor_error + i) : zero;
    const vd_pair factor = pair_add(pair_of(vd_load(s->factor + i), factor_error), added);
    vd_store(s->factor + i, factor.value);
    if (COMPENSATED) vd_store(s->factor_error + i, finite_error(factor.error));
    const vd pivot = pair_value(pair_scale(added, vd_load(s->pivot_e + i)));
    vd_store(s->pivot_grad + i, vd_add(vd_load(s->pivot_grad + i), pivot));
    if (!job->soft) return;
    const vd label = pair_value(pair_scale(added, vd_load(s->label_e + i)));
    vd_store(s->label_grad + i, vd_add(vd_load(s->label_grad + i), label));
}

/* The third step: the loss and the factors of the gradient. */
INLINE void finalize_loss(const pyce_job *job, int i, row_state *s) {
    const pyce_problem *p = job->p;
    const vd zero = vd_set1(0);
    const vd m = vd_load(s->max + i), log = vd_load(s->log + i);
    const vd inverse = vd_load(s->inverse + i);
    const row_factors f = find_factors(job, i, s);
    write_lse(p, i, f.ignored, m, log, s);
    if (p->target == PYCE_NO_TARGET) {
        vd_store(s->factor + i, inverse);
        if (COMPENSATED) vd_store(s->factor_error + i, vd_load(s->inverse_error + i));
        return;
    }

    const vd part = f.label.value, scale = f.scale.value;
    const vd label_x = vd_load((job->pivot == PIVOT_LABEL ? s->pivot_x : s->label_x) + i);
    const vdm unlabelled = vd_eq(part, zero);
    const vd distance = vd_sub(m, label_x);
    const vd at_label = vd_add(distance, log);
    const vd at_part = job->soft ? times_distance(part, at_label) : vd_mul(part, at_label);
    vd_pair loss = pair_of(vd_drop(unlabelled, at_part), zero);
    if (COMPENSATED) {
        vd error = vd_add(error_of_sum(m, vd_sub(zero, label_x), distance),
                          vd_add(error_of_sum(distance, log, at_label), vd_load(s->log_error + i)));
        const vd product_error = vd_fma(part, at_label, vd_sub(zero, vd_mul(part, at_label)));
        error = vd_fma(part, error, vd_fma(f.label.error, at_label, product_error));
        loss.error = vd_drop(unlabelled, finite_error(error));
    }
    vd_pair whole = pair_of(part, zero); /* A */
    if (job->soft) loss = finalize_soft(job, i, s, &f, loss, &whole);
    vd_pair derivative = pair_of(zero, zero);
    if (p->lse_square_scale != 0) derivative = add_lse_square(job, i, s, &loss);

    const vd weighted = vd_mul(loss.value, f.sample_weight);
    vd row_loss = weighted;
    if (COMPENSATED) {
        const vd product_error = vd_fma(loss.value, f.sample_weight, vd_sub(zero, weighted));
        const vd error = vd_fma(loss.error, f.sample_weight, product_error);
        row_loss = vd_add(weighted, finite_error(error));
    }
    row_loss = vd_add(row_loss, vd_sub(log, log));
    const vdm nothing = job->soft ? without_coefficients(p, i, s, &f) : unlabelled;
    vd_store(s->loss + i, vd_drop(nothing, row_loss));

    const vd without_pivot = vd_load(s->without_pivot + i);
    const vd scaled = vd_mul(scale, whole.value);
    const vd factor = vd_drop(nothing, vd_mul(scaled, inverse));
    vd_store(s->factor + i, factor);
    vd pivot_grad;
    if (COMPENSATED) {
        /* (scale + error)·(whole + error)·(inverse + error) − factor, but for terms of second order. */
        const vd scaled_error = vd_fma(
            scale, whole.error,
            vd_fma(f.scale.error, whole.value, vd_fma(scale, whole.value, vd_sub(zero, scaled))));
        const vd product_error = vd_fma(scaled, inverse, vd_sub(zero, factor));
        const vd factor_error =
            vd_drop(nothing,
                    finite_error(vd_add(product_error, vd_fma(scaled, vd_load(s->inverse_error + i),
                                                              vd_mul(scaled_error, inverse)))));
        vd_store(s->factor_error + i, factor_error);
        const vd error = vd_fma(vd_load(s->without_pivot_error + i), factor,
                                vd_mul(without_pivot, factor_error));
        pivot_grad = vd_fma(without_pivot, factor, finite_error(error));
    } else {
        pivot_grad = vd_mul(without_pivot, factor);
    }
    if (!job->soft) vd_store(s->pivot_grad + i, vd_sub(zero, pivot_grad));
    if (p->lse_square_scale != 0) add_lse_gradient(job, i, s, f.scale, derivative, nothing);
    vd_store(s->pivot_grad + i, vd_drop(nothing, vd_load(s->pivot_grad + i)));
    if (!job->soft) return;
    vd_store(s->label_grad + i, vd_drop(nothing, vd_load(s->label_grad + i)));
    vd_store(s->soft_factor + i, vd_drop(nothing, vd_load(s->soft_factor + i)));
    if (COMPENSATED) {
        const vd soft_error = finite_error(vd_load(s->soft_factor_error + i));
        vd_store(s->soft_factor_error + i, vd_drop(nothing, soft_error));
    }
}

/* Finalize the rows of some row_states. Each step is done for all rows before the next: a
   row's operations form long dependent chains, and short loops let the processor work on many rows'
   chains at once. */
static void finalize_rows(const pyce_job *job, row_state *states, int count) {
    for (row_state *s = states; s < states + count; s++) finalize_sums(job, s);
    for (row_state *s = states; s < states + count; s++) {
        for (int i = 0; i < s->n; i += 8) finalize_log(i, s);
    }
    for (row_state *s = states; s < states + count; s++) {
        for (int i = 0; i < s->n; i += 8) finalize_loss(job, i, s);
        if (!job->soft) continue;
        /* Lanes without a row: the factor is looked at, but not used. */
        for (int i = 8; i < LANES; i += 8) {
            if (i >= s->n) vd_store(s->soft_factor + i, vd_set1(1.0));
        }
    }
}

/* Row losses of a tile to the caller, and added up into the tile's sum. `losses` has room for job->tile
   numbers and is overwritten. */
static void reduce_tile(const pyce_job *job, int64_t begin, int64_t end, double *losses,
                        double *sums) {
    const int64_t n = end - begin;
    real *to = job->p->losses;
    if (to) {
        for (int64_t i = 0; i < n; i++) to[begin + i] = (real)losses[i];
    }
    if (sums) {
        /* A half of the tile that has no rows adds 0, which only makes a sum of −0 to 0. */
        int64_t rows = job->tile;
        while (rows / 2 >= n) rows /= 2;
        for (int64_t i = n; i < rows; i++) losses[i] = 0;
        sums[begin / job->tile] = sum_of_tile(losses, rows, COMPENSATED) + 0.0;
    }
}
