/* Finalizing rows whose e are floats, in double precision. */

INLINE void finalize_sums(const pyce_job *job, row_state *s) {
    const vf max = v_from_doubles(s->max), pivot_x = v_from_doubles(s->pivot_x);
    const normaliser norm = normalise(max);
    vd exact_e[2];
    exp_max(max, norm, exact_e);
    const vfm at_max = vf_eq(max, pivot_x);
    /* Where the pivot is not the maximum, the kernels' sum contains its e(m), to be subtracted. */
    const vf max_e = vf_drop(at_max, exp1(max, norm));
    const vf pivot_e = vf_drop(at_max, exp1(pivot_x, norm));
    if (job->soft) v_to_doubles(exp1(v_from_doubles(s->label_x), norm), s->label_e);
    for (int i = 0; i < s->n; i += 8) {
        const vd m = vd_load(s->max + i), e = exact_e[i / 8];
        const vd other = vd_drop(vd_eq(m, vd_load(s->pivot_x + i)), e);
        const vd at_pivot = v_eight(pivot_e, i);
        const vd less = vd_sub(vd_load(s->rest + i), v_eight(max_e, i));
        const vd others = vd_add(less, at_pivot), sum = vd_add(others, e);
        const vd bad = bad_rows(job->p, i, m, others, s);
        /* One division for both quotients: nothing here exceeds 2^200. */
        const vd both = vd_div(vd_set1(1.0), vd_mul(e, sum));
        vd_store(s->quotient + i, vd_mul(vd_mul(others, sum), both));
        vd_store(s->inverse + i, vd_add(vd_mul(e, both), bad));
        vd_store(s->without_pivot + i, vd_add(less, other));
        if (job->soft || job->p->lse_square_scale != 0) {
            vd_store(s->pivot_e + i, vd_add(vd_sub(e, other), at_pivot));
        }
        vd_store(s->bad + i, bad);
    }
}

/* The soft-target term of lanes i…i+7: the gradients at the pivot and the label, the factor of b,
   *whole = A; returns the loss with the term added. */
INLINE vd_pair finalize_soft(const pyce_job *job, int i, row_state *s, const row_factors *f,
                             vd_pair loss, vd_pair *whole) {
    const vd part = f->label.value, scale = f->scale.value;
    const vd log = vd_load(s->log + i), inverse = vd_load(s->inverse + i);
    const vd without_pivot = vd_load(s->without_pivot + i);
    const vd soft_part = vd_set1(job->soft_part), soft_sum = vd_load(s->soft_sum + i);
    const vd soft_loss = vd_add(vd_mul(soft_sum, log), vd_load(s->soft_loss + i));
    const vd all = vd_fma(soft_part, soft_sum, part);
    const vd pivot_b = vd_mul(soft_part, vd_load(s->pivot_b + i));
    const vd same = vd_keep(vd_eq(vd_load(s->pivot + i), vd_load(s->label + i)), vd_set1(1.0));
    /* A·p − b, from the smaller of p and 1 − p. */
    const vd ratio = vd_mul(without_pivot, inverse);
    const vd p_pivot = vd_mul(vd_load(s->pivot_e + i), inverse);
    const vd p_label = vd_mul(vd_load(s->label_e + i), inverse);
    const vd at_pivot = vd_add(pivot_b, vd_mul(part, same));
    const vd pivot_grad =
        vd_select(vd_nlt(ratio, vd_set1(0.5)), vd_sub(vd_mul(all, p_pivot), at_pivot),
                  vd_sub(vd_sub(all, at_pivot), vd_mul(all, ratio)));
    vd_store(s->pivot_grad + i, vd_mul(scale, pivot_grad));
    const vd at_label = vd_fma(soft_part, vd_load(s->label_b + i), part);
    vd_store(s->label_grad + i, vd_mul(scale, vd_sub(vd_mul(all, p_label), at_label)));
    vd_store(s->soft_factor + i, vd_mul(scale, soft_part));
    whole->value = all;
    return pair_of(vd_add(loss.value, vd_mul(soft_part, soft_loss)), loss.error);
}

/* (x − max) − log, the logarithm of the softmax. */
INLINE vf log_softmax_of(vf x, vf max, vf log, vf log_error) {
    (void)log_error;
    return vf_sub(vf_sub(x, max), log);
}
