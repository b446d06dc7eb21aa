/* Finalizing rows whose e are floats, in double precision. */

/* Of eight rows. */
typedef struct {
    vd quotient;      /* others/e_m */
    vd inverse;       /* 1/S */
    vd without_pivot; /* S − e_o */
    vd others;        /* S − e_m; not finite where a logit is NaN or infinite */
} row_quotients;

/* m, x_o, rest as in finalize.inc.h; `exact_e` is e_m; `max_e` is e(m), which rest contains, and
   `pivot_e` is e_o, both 0 where the pivot is the maximum. */
INLINE row_quotients quotients_of(vd m, vd pivot_x, vd rest, vd exact_e, vd max_e, vd pivot_e) {
    row_quotients r;
    const vd other = vd_drop(vd_eq(m, pivot_x), exact_e);
    const vd less = vd_sub(rest, max_e);
    r.others = vd_add(less, pivot_e);
    const vd sum = vd_add(r.others, exact_e);
    /* One division for both quotients: nothing here exceeds 2^200. */
    const vd both = vd_div(vd_set1(1.0), vd_mul(exact_e, sum));
    r.quotient = vd_mul(vd_mul(r.others, sum), both);
    r.inverse = vd_mul(exact_e, both);
    r.without_pivot = vd_add(less, other);
    return r;
}

INLINE void finalize_sums(const pyce_job *job, row_state *s) {
    const vf max = v_from_doubles(s->max), pivot_x = v_from_doubles(s->pivot_x);
    const normaliser norm = normalise(max);
    vd exact_e[2];
    vf max_e;
    exp_max(max, norm, exact_e, &max_e);
    if (job->p->operation == PYCE_SOFTMAX) {
        /* The sum of the numbers that are written: no quotient exceeds 1, and they add up to 1. */
        exact_e[0] = v_eight(max_e, 0);
        exact_e[1] = v_eight(max_e, 8);
    }
    const vfm at_max = vf_eq(max, pivot_x);
    max_e = vf_drop(at_max, max_e);
    const vf pivot_e = vf_drop(at_max, exp1(pivot_x, norm));
    if (job->soft) v_to_doubles(exp1(v_from_doubles(s->label_x), norm), s->label_e);
    for (int i = 0; i < s->n; i += 8) {
        const vd m = vd_load(s->max + i), o = vd_load(s->pivot_x + i), e = exact_e[i / 8];
        const vd at_pivot = v_eight(pivot_e, i);
        const row_quotients r =
            quotients_of(m, o, vd_load(s->rest + i), e, v_eight(max_e, i), at_pivot);
        const vd bad = bad_rows(job->p, i, m, r.others, s);
        vd_store(s->quotient + i, r.quotient);
        vd_store(s->inverse + i, vd_add(r.inverse, bad));
        vd_store(s->without_pivot + i, r.without_pivot);
        if (job->soft || job->p->lse_square_scale != 0) {
            vd_store(s->pivot_e + i, vd_add(vd_keep(vd_eq(m, o), e), at_pivot));
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
    const vd soft_loss = vd_add(times_distance(soft_sum, log), vd_load(s->soft_loss + i));
    const vd all = vd_fma(soft_part, soft_sum, part);
    const vd pivot_b = vd_mul(soft_part, vd_load(s->pivot_b + i));
    const vd same = vd_keep(vd_eq(vd_load(s->pivot + i), vd_load(s->label + i)), vd_set1(1.0));
    /* A·p − b, from the smaller of p and 1 − p; from p where A is infinite. */
    const vd ratio = vd_mul(without_pivot, inverse);
    const vd p_pivot = vd_mul(vd_load(s->pivot_e + i), inverse);
    const vd p_label = vd_mul(vd_load(s->label_e + i), inverse);
    const vd at_pivot = vd_add(pivot_b, vd_mul(part, same));
    const vd nan_or_0 = vd_sub(all, all);
    const vd pivot_grad = vd_select(vd_nlt(vd_add(ratio, nan_or_0), vd_set1(0.5)),
                                    vd_sub(vd_mul(all, p_pivot), at_pivot),
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
