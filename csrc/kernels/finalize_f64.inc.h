/* Finalizing rows of doubles. The rounding errors of e_m, the quotients and S are not negligible. */

/* e(max) = e + error, relative to the normaliser of max. */
INLINE vd_pair exp_of_max(vd max, normaliser norm) {
    const vd finite = vd_keep(vd_eq(vd_sub(max, max), vd_set1(0)), max);
    vd r, r_error, e, error;
    vd_reduce(vd_sub(finite, norm.shift), vd_add(norm.exponent, vd_set1(BIAS)), &r, &r_error);
    vd_exp_reduced(r, r_error, &e, &error);
    return pair_of(vd_mul(e, vd_set1(BIAS_FACTOR)), vd_mul(error, vd_set1(BIAS_FACTOR)));
}

INLINE void finalize_sums(const pyce_job *job, row_state *s) {
    const vd zero = vd_set1(0), one = vd_set1(1.0);
    const vd m = vd_load(s->max), pivot_x = vd_load(s->pivot_x), rest = vd_load(s->rest);
    const normaliser norm = normalise(m);
    const vd max_e = exp1(m, norm), other_e = exp1(pivot_x, norm);
    if (job->soft) vd_store(s->label_e, exp1(vd_load(s->label_x), norm));
    /* Of softmax S is the sum of the numbers that are written: see finalize_f32.inc.h. */
    const vd_pair e_m =
        job->p->operation == PYCE_SOFTMAX ? pair_of(max_e, zero) : exp_of_max(m, norm);
    const vd e = e_m.value;

    const vdm at_max = vd_eq(m, pivot_x);
    /* Where the pivot is not the maximum, rest contains e(m) as the kernels have it. */
    const vd less = vd_sub(rest, max_e);
    const vd others = vd_select(at_max, rest, vd_add(less, other_e));
    const vd without_pivot = vd_select(at_max, rest, vd_add(less, e));
    const vd pivot_e = vd_select(at_max, e, other_e);
    const vd sum = vd_add(without_pivot, pivot_e);
    const vd bad = bad_rows(job->p, 0, m, others, s);

    const vd less_error = error_of_sum(rest, vd_sub(zero, max_e), less);
    const vd rest_error = vd_load(s->rest_error);
    const vd q = vd_div(others, e);
    const vd swap_error = vd_add(less_error, error_of_sum(less, other_e, vd_add(less, other_e)));
    const vd others_error = vd_add(rest_error, vd_drop(at_max, swap_error));
    const vd remainder = vd_add(vd_fnma(q, e_m.error, vd_fnma(q, e, others)), others_error);
    vd_store(s->quotient_error, vd_div(remainder, e));
    const vd without_error =
        vd_add(rest_error,
               vd_drop(at_max, vd_add(less_error,
                                      vd_add(error_of_sum(less, e, vd_add(less, e)), e_m.error))));
    const vd sum_error = vd_add(vd_add(without_error, vd_keep(at_max, e_m.error)),
                                error_of_sum(without_pivot, pivot_e, sum));
    const vd inverse = vd_add(vd_div(one, sum), bad);
    vd_store(s->inverse_error,
             vd_div(vd_fnma(inverse, sum_error, vd_fnma(inverse, sum, one)), sum));
    vd_store(s->without_pivot_error, without_error);
    vd_store(s->quotient, q);
    vd_store(s->without_pivot, without_pivot);
    vd_store(s->pivot_e, pivot_e);
    vd_store(s->inverse, inverse);
    vd_store(s->bad, bad);
}

/* w[class[k]], 0 for class −1; w NULL stands for ones. */
INLINE vd weights_at(const double *w, const double class[8]) {
    double weight[8];
    for (int k = 0; k < 8; k++) weight[k] = class[k] < 0 ? 0 : w ? w[(int64_t)class[k]] : 1.0;
    return vd_load(weight);
}

/* The soft-target term, every product with its rounding error, since p − t may cancel.
   finalize_f32.inc.h says what it does. */
INLINE vd_pair finalize_soft(const pyce_job *job, int i, row_state *s, const row_factors *f,
                             vd_pair loss, vd_pair *whole) {
    const double *weight = job->p->weight;
    const vd zero = vd_set1(0);
    const vd_pair soft_part = pair_of(vd_set1(job->soft_part), vd_set1(job->soft_part_error));
    /* The errors of infinite sums are NaN. */
    const vd_pair soft_sum =
        pair_of(vd_load(s->soft_sum), finite_error(vd_load(s->soft_sum_error)));
    const vd_pair soft_loss =
        pair_of(vd_load(s->soft_loss), finite_error(vd_load(s->soft_loss_error)));
    const vd_pair log = pair_of(vd_load(s->log), vd_load(s->log_error));
    const vd_pair inverse = pair_of(vd_load(s->inverse), vd_load(s->inverse_error));
    const vd_pair without_pivot =
        pair_of(vd_load(s->without_pivot), vd_load(s->without_pivot_error));
    vd_pair by_log = pair_mul(soft_sum, log);
    by_log.value = times_distance(soft_sum.value, log.value);
    const vd_pair term = pair_mul(soft_part, pair_add(by_log, soft_loss));
    const vd_pair sum = pair_add(loss, pair_of(term.value, finite_error(term.error)));
    *whole = pair_add(f->label, pair_mul(soft_part, soft_sum));
    (void)i; /* a vector of doubles is all of a row_state */

    vd_pair pivot_b = pair_of(vd_load(s->pivot_b), zero);
    vd_pair label_b = pair_of(vd_load(s->label_b), zero);
    if (job->blended) {
        pivot_b = blend(job, pivot_b.value, weights_at(weight, s->pivot));
        label_b = blend(job, label_b.value, weights_at(weight, s->label));
    }
    const vdm same = vd_eq(vd_load(s->pivot), vd_load(s->label));
    const vd_pair label_part = pair_select(same, f->label, pair_of(zero, zero));
    const vd_pair at_pivot = pair_add(label_part, pair_mul(soft_part, pivot_b));
    /* A·p − b, from the smaller of p and 1 − p; from p where A is infinite. */
    const vd nan_or_0 = vd_sub(whole->value, whole->value);
    const vd_pair ratio = pair_mul(without_pivot, inverse);
    const vd_pair p_pivot = pair_mul(pair_of(vd_load(s->pivot_e), zero), inverse);
    const vd_pair p_label = pair_mul(pair_of(vd_load(s->label_e), zero), inverse);
    const vd_pair pivot_grad =
        pair_select(vd_nlt(vd_add(ratio.value, nan_or_0), vd_set1(0.5)),
                    pair_sub(pair_mul(*whole, p_pivot), at_pivot),
                    pair_sub(pair_sub(*whole, at_pivot), pair_mul(*whole, ratio)));
    vd_store(s->pivot_grad, pair_value(pair_mul(f->scale, pivot_grad)));
    const vd_pair at_label = pair_add(f->label, pair_mul(soft_part, label_b));
    const vd_pair label_grad = pair_sub(pair_mul(*whole, p_label), at_label);
    vd_store(s->label_grad, pair_value(pair_mul(f->scale, label_grad)));
    const vd_pair soft_factor = pair_mul(f->scale, soft_part);
    vd_store(s->soft_factor, soft_factor.value);
    vd_store(s->soft_factor_error, soft_factor.error);
    return sum;
}

/* (x − max) − log, the logarithm of the softmax. */
INLINE vd log_softmax_of(vd x, vd max, vd log, vd log_error) {
    const vd zero = vd_set1(0);
    const vd distance = vd_sub(x, max), result = vd_sub(distance, log);
    const vd error = vd_add(error_of_sum(x, vd_sub(zero, max), distance),
                            error_of_sum(distance, vd_sub(zero, log), result));
    return vd_add(result, vd_sub(error, log_error));
}
