/* What a row's statistics mean: loss, lse and the numbers that make its gradient. Stamped per dtype.
 *
 * With m the row's maximum, x_o one class ("own": the label, or the class of the maximum), rest the
 * sum of e over the other classes, and S the sum over all of them:
 *
 *     lse − x_k = (m − x_k) + log1p(others/e_m),   others = S − e_m
 *     p_o − 1   = −(S − e_o)/S
 *
 * Every term is a sum of numbers of one sign, so nothing cancels, however confident the model. e_m
 * is computed anew in double precision; where own is the class of the maximum, others is the sum of
 * the kernel's e without it, and where it is not, others is so large beside e_m that the loss does
 * not feel the difference S − e_m being taken.
 *
 * In general a row's loss and gradient are, with the label y (if any), factors b (DENSE_…), and
 * A = label_part·w_y + dense_part·Σ b:
 *
 *     loss   = label_part·w_y·(lse − x_y) + dense_part·(Σ b_c·(m − x_c) + Σ b·(lse − m))
 *     grad_c = s·(A·p_c − dense_part·b_c − label_part·w_y·[c = y])
 */

typedef struct {
    /* In, by the kernels: one row per lane. The arrays stay whole vectors of 64 bytes. */
    double max[W];
    double rest[W];
    double rest_low[W]; /* what rounding rest lost; double logits only */
    double own_x[W], label_x[W];
    double own_b[W], label_b[W];    /* double logits: of the target, before it is blended */
    double dense[W], dense_loss[W]; /* Σ b and Σ b·(max − x) */
    double dense_low[W], dense_loss_low[W];
    double own[W], label[W]; /* classes, or −1; label −1 also where the row is ignored */
    /* Between the steps of settle_rows. */
    double quotient[W], quotient_low[W];       /* others/e_m and what is missing of it, over e_m */
    double without_own[W], without_own_low[W]; /* S − e_o */
    double own_term[W], label_e[W];            /* e_o and e_y */
    double inverse[W], inverse_low[W];         /* 1/S */
    double bad[W];                             /* NaN where the row's result is, else 0 */
    /* Out. */
    double loss[W];
    double factor[W];     /* grad_c = factor·e(x_c) − dense_factor·b_c */
    double factor_low[W]; /* what rounding factor lost; double logits only */
    double dense_factor[W];
    double dense_factor_low[W];
    double own_grad[W], label_grad[W];
    double log[W];     /* lse − max */
    double log_low[W]; /* what rounding log lost; double logits only */
    int64_t row;       /* of the problem: the first lane's */
    int n;             /* lanes that stand for a row */
} ALIGNED NAME(row_set);

INLINE int64_t NAME(label_of)(const pyce_problem *p, int64_t row) {
    if (p->target == PYCE_INDEX64) return ((const int64_t *)p->labels)[row];
    if (p->target == PYCE_INDEX32) return ((const int32_t *)p->labels)[row];
    return -1;
}

INLINE int NAME(is_live)(const pyce_problem *p, int64_t row) {
    return !p->labels || NAME(label_of)(p, row) != p->ignore_index;
}

INLINE int64_t NAME(offset_of)(const pyce_operand *a, int64_t outer) {
    return a->offsets ? a->offsets[outer] : outer * a->outer_stride;
}

static int NAME(has_nan)(const pyce_problem *p, int64_t row) {
    const T *x = (const T *)p->logits.data + NAME(offset_of)(&p->logits, row / p->inner);
    x += row % p->inner;
    for (int64_t c = 0; c < p->classes; c++) {
        const REAL value = GET(x + c * p->logits.class_stride);
        if (value != value) return 1;
    }
    return 0;
}

/* What the losses and gradients of eight rows are multiplied by. */
typedef struct {
    vd label;     /* label_part·w_y, 0 where the row is ignored or has no label */
    vd label_low; /* what rounding label lost; double logits only */
    vd share;     /* sample weight, 0 where ignored */
    vd scale;     /* grad_loss·sample weight/denominator */
    vd low;       /* what rounding scale lost; double logits only */
    vdm dead;     /* ignored */
} NAME(factors);

/* (*high + *low)·factor, in place. */
INLINE void NAME(times)(vd *high, vd *low, vd factor) {
    const vd product = vd_mul(*high, factor);
    const vd lost = vd_fma(*high, factor, vd_sub(vd_set1(0), product));
    *low = vd_add(lost, vd_mul(*low, factor));
    *high = product;
}

/* How many of lanes i…i+7 stand for a row. */
INLINE int NAME(left)(const NAME(row_set) * s, int i) { return s->n - i < 8 ? s->n - i : 8; }

/* Of lanes i…i+7. */
INLINE NAME(factors) NAME(find_factors)(const pyce_job *job, int i, const NAME(row_set) * s) {
    const pyce_problem *p = job->p;
    const int64_t row = s->row;
    const int left = NAME(left)(s, i);
    const vd zero = vd_set1(0), label = vd_load(s->label + i);
    NAME(factors) f;
    f.label = f.label_low = zero;
    f.share = vd_set1(1.0);
    f.scale = vd_set1(job->grad_scale);
    f.low = vd_set1(job->grad_scale_low);
    f.dead = vd_eq(zero, f.share);
    if (p->labels) {
        f.dead = vd_eq(label, vd_set1(-1.0));
        f.share = vd_drop(f.dead, f.share);
        f.label = vd_drop(f.dead, vd_set1(job->label_part));
        f.label_low = vd_drop(f.dead, vd_set1(job->label_part_low));
    }
    if (job->plain) return f;
    if (p->weight && p->labels) {
        double weight[8] = {0};
        for (int k = 0; k < left; k++) {
            if (s->label[i + k] >= 0) weight[k] = p->weight[(int64_t)s->label[i + k]];
        }
        NAME(times)(&f.label, &f.label_low, vd_load(weight));
    }
    if (p->sample_weight) {
        const vd weight = vd_loadn(p->sample_weight + row + i, left, 0);
        f.share = vd_drop(f.dead, weight);
        NAME(times)(&f.scale, &f.low, weight);
    }
    if (p->grad_losses) {
        NAME(times)(&f.scale, &f.low, vd_loadn(p->grad_losses + row + i, left, 0));
    }
    return f;
}

/* Lanes i…i+7 of a vector as doubles. */
INLINE vd NAME(eight)(V v, int i) {
#if W == 8
    (void)i;
    return v;
#else
    return i ? vf_widen_hi(v) : vf_widen_lo(v);
#endif
}

/* lse of eight rows, where it is asked for: 0 for a row that is ignored. */
INLINE void NAME(write_lse)(const pyce_problem *p, int i, vdm dead, vd max, vd log,
                            const NAME(row_set) * s) {
    if (!p->lse || p->operation == PYCE_BACKWARD) return;
    const int64_t row = s->row;
    const int left = NAME(left)(s, i);
    vd_storen(p->lse + row + i, left, vd_drop(dead, vd_add(max, log)));
    const vd nan = vd_drop(dead, vd_drop(vd_eq(log, log), vd_set1(1.0)));
    if (vd_first(vd_eq(nan, vd_set1(1.0))) < 0) return;
    double tops[8], bad[8];
    vd_store(tops, max);
    vd_store(bad, nan);
    for (int k = 0; k < left; k++) {
        if (bad[k] == 0) continue;
        /* An infinite maximum is the lse, unless there is NaN in the row as well. */
        const int infinite = tops[k] - tops[k] != 0 && !NAME(has_nan)(p, row + i + k);
        p->lse[row + i + k] = infinite ? tops[k] : NOT_A_NUMBER;
    }
}

/* Settling takes three steps, each for all rows before the next: their operations depend on each
   other in long chains, and short loops let a processor work on many rows' chains at once. Each takes
   lanes i…i+7. First the sums: others/e_m, S − e_o, 1/S. */
#if W == 16
INLINE void NAME(settle_sums)(const pyce_job *job, NAME(row_set) * s) {
    const pyce_problem *p = job->p;
    const V max = F(from_doubles)(s->max), own_x = F(from_doubles)(s->own_x);
    const F(normaliser) norm = F(normalise)(max);
    V rest;
    const V high = F(exp_parts)(max, norm, &rest);
    const VM at_max = F(eq)(max, own_x);
    /* Where own is not the maximum, the kernels' sum has its e(m) in it, to be taken out. */
    const V max_e = F(drop)(at_max, F(fma)(high, rest, high));
    const V own_e = F(drop)(at_max, F(exp)(own_x, norm)), other_high = F(drop)(at_max, high);
    if (job->dense) F(to_doubles)(F(exp)(F(from_doubles)(s->label_x), norm), s->label_e);
    for (int i = 0; i < s->n; i += 8) {
        const vd m = vd_load(s->max + i), part = NAME(eight)(rest, i);
        const vd high_8 = NAME(eight)(high, i), other_8 = NAME(eight)(other_high, i);
        const vd e = vd_fma(high_8, part, high_8), other = vd_fma(other_8, part, other_8);
        const vd own = NAME(eight)(own_e, i);
        const vd less = vd_sub(vd_load(s->rest + i), NAME(eight)(max_e, i));
        const vd others = vd_add(less, own), sum = vd_add(others, e);
        /* NaN where the maximum or the sum is not finite, 0 elsewhere. */
        vd bad = vd_add(vd_sub(others, others), vd_sub(m, m));
        if (p->operation == PYCE_BACKWARD) {
            const vd lse = vd_loadn(p->lse + s->row + i, NAME(left)(s, i), 0);
            bad = vd_add(bad, vd_sub(lse, lse));
        }
        /* One division for both quotients: nothing here is beyond 2^200. */
        const vd both = vd_div(vd_set1(1.0), vd_mul(e, sum));
        vd_store(s->quotient + i, vd_mul(vd_mul(others, sum), both));
        vd_store(s->inverse + i, vd_add(vd_mul(e, both), bad));
        vd_store(s->without_own + i, vd_add(less, other));
        if (job->dense) vd_store(s->own_term + i, vd_add(vd_sub(e, other), own));
        vd_store(s->bad + i, bad);
    }
}

#else
INLINE void NAME(settle_sums)(const pyce_job *job, NAME(row_set) * s) {
    const pyce_problem *p = job->p;
    const vd max = vd_load(s->max), own_x = vd_load(s->own_x);
    const vd_normaliser norm = vd_normalise(max);
    const vd ke = vd_exp(max, norm), oe = vd_exp(own_x, norm);
    if (job->dense) vd_store(s->label_e, vd_exp(vd_load(s->label_x), norm));
    const vd m = vd_load(s->max), rest = vd_load(s->rest);
    const vd exponent = norm.exponent, shift = norm.shift;
    const vd zero = vd_set1(0), one = vd_set1(1.0);
    const vd finite = vd_keep(vd_eq(vd_sub(m, m), zero), m);
    vd r, low, e, e_low;
    vd_reduce(vd_sub(finite, shift), vd_add(exponent, vd_set1(BIAS)), &r, &low);
    vd_exp_reduced(r, low, &e, &e_low);
    e = vd_mul(e, vd_set1(BIAS_FACTOR));

    const vdm at_max = vd_eq(m, vd_load(s->own_x));
    const vd less = vd_sub(rest, ke); /* where own is not the maximum, rest has its e(m) in it */
    const vd others = vd_select(at_max, rest, vd_add(less, oe));
    const vd without_own = vd_select(at_max, rest, vd_add(less, e));
    const vd own_term = vd_select(at_max, e, oe);
    const vd sum = vd_add(without_own, own_term);
    /* NaN where the maximum or the sum is not finite, 0 elsewhere. */
    vd bad = vd_add(vd_sub(others, others), vd_sub(m, m));
    if (p->operation == PYCE_BACKWARD) {
        const vd lse = vd_loadn(p->lse + s->row, NAME(left)(s, 0), 0);
        bad = vd_add(bad, vd_sub(lse, lse));
    }

    const vd q = vd_div(others, e);
    /* double logits: what rounding lost still counts, of e_m, of the quotients and of S. */
    e_low = vd_mul(e_low, vd_set1(BIAS_FACTOR));
    const vd others_low = vd_add(vd_load(s->rest_low),
                                 vd_drop(at_max, vd_add(lost_in_sum(rest, vd_sub(zero, ke), less),
                                                        lost_in_sum(less, oe, vd_add(less, oe)))));
    const vd beyond = vd_add(vd_fnma(q, e_low, vd_fnma(q, e, others)), others_low);
    vd_store(s->quotient_low, vd_div(beyond, e));
    const vd swapped = vd_add(lost_in_sum(rest, vd_sub(zero, ke), less),
                              vd_add(lost_in_sum(less, e, vd_add(less, e)), e_low));
    const vd without_low = vd_add(vd_load(s->rest_low), vd_drop(at_max, swapped));
    const vd sum_low = vd_add(vd_add(without_low, vd_keep(at_max, e_low)),
                              lost_in_sum(without_own, own_term, sum));
    const vd inverse = vd_add(vd_div(one, sum), bad);
    const vd inverse_low = vd_div(vd_fnma(inverse, sum_low, vd_fnma(inverse, sum, one)), sum);
    vd_store(s->inverse_low, inverse_low);
    vd_store(s->without_own_low, without_low);
    vd_store(s->quotient, q);
    vd_store(s->without_own, without_own);
    vd_store(s->own_term, own_term);
    vd_store(s->inverse, inverse);
    vd_store(s->bad, bad);
}

#endif

/* Second: lse − m = log(1 + others/e_m). */
INLINE void NAME(settle_log)(int i, NAME(row_set) * s) {
    const vd q = vd_load(s->quotient + i);
    vd log_low = q;
    const vd log = vd_log1p(q, W == 8, &log_low);
#if W == 8
    log_low = vd_add(log_low, vd_div(vd_load(s->quotient_low + i), vd_add(vd_set1(1.0), q)));
    vd_store(s->log_low + i, vd_keep(vd_eq(log_low, log_low), log_low));
#endif
    vd_store(s->log + i, vd_add(log, vd_load(s->bad + i)));
}

#if W == 8
/* w[class[k]], 0 for class −1; w NULL stands for ones. */
INLINE vd NAME(weights_at)(const double *w, const double class[8]) {
    double weight[8];
    for (int k = 0; k < 8; k++) weight[k] = class[k] < 0 ? 0 : w ? w[(int64_t)class[k]] : 1.0;
    return vd_load(weight);
}

/* The dense part of the third step, every product with what rounding loses of it, since p − t may
   cancel: the gradients of the classes apart, the dense factor, *whole = A; returns `loss`, the
   label's, with the dense terms. `part` is label_part·w_y. */
INLINE vd_pair NAME(settle_dense)(const pyce_job *job, NAME(row_set) * s, vd_pair part,
                                  vd_pair scale, vd_pair loss, vd_pair *whole) {
    const double *weight = job->p->weight;
    const vd zero = vd_set1(0);
    const vd_pair dense_part = pair_of(vd_set1(job->dense_part), vd_set1(job->dense_part_low));
    const vd_pair dense = pair_of(vd_load(s->dense), vd_load(s->dense_low));
    const vd_pair log = pair_of(vd_load(s->log), vd_load(s->log_low));
    const vd_pair inverse = pair_of(vd_load(s->inverse), vd_load(s->inverse_low));
    const vd_pair without_own = pair_of(vd_load(s->without_own), vd_load(s->without_own_low));
    const vd_pair even = pair_of(vd_load(s->dense_loss), vd_load(s->dense_loss_low));
    const vd_pair spread = pair_mul(dense_part, pair_add(pair_mul(dense, log), even));
    const vd low = vd_keep(vd_eq(spread.low, spread.low), spread.low);
    const vd_pair sum = pair_add(loss, pair_of(spread.high, low));
    *whole = pair_add(part, pair_mul(dense_part, dense));

    vd_pair own_b = pair_of(vd_load(s->own_b), zero), label_b = pair_of(vd_load(s->label_b), zero);
    if (job->blended) {
        own_b = blend(job, own_b.high, NAME(weights_at)(weight, s->own));
        label_b = blend(job, label_b.high, NAME(weights_at)(weight, s->label));
    }
    const vdm same = vd_eq(vd_load(s->own), vd_load(s->label));
    const vd_pair mine = pair_select(same, part, pair_of(zero, zero));
    const vd_pair apart = pair_add(mine, pair_mul(dense_part, own_b));
    /* whole·p − b, from whichever of p and 1 − p is the smaller. */
    const vd_pair ratio = pair_mul(without_own, inverse);
    const vd_pair p_own = pair_mul(pair_of(vd_load(s->own_term), zero), inverse);
    const vd_pair p_label = pair_mul(pair_of(vd_load(s->label_e), zero), inverse);
    const vd_pair own_grad =
        pair_select(vd_nlt(ratio.high, vd_set1(0.5)), pair_sub(pair_mul(*whole, p_own), apart),
                    pair_sub(pair_sub(*whole, apart), pair_mul(*whole, ratio)));
    vd_store(s->own_grad, pair_value(pair_mul(scale, own_grad)));
    const vd_pair at_label = pair_add(part, pair_mul(dense_part, label_b));
    const vd_pair label_grad = pair_sub(pair_mul(*whole, p_label), at_label);
    vd_store(s->label_grad, pair_value(pair_mul(scale, label_grad)));
    const vd_pair dense_factor = pair_mul(scale, dense_part);
    vd_store(s->dense_factor, dense_factor.high);
    vd_store(s->dense_factor_low, dense_factor.low);
    return sum;
}
#endif

/* Third: the loss, and what makes the gradient. */
INLINE void NAME(settle_loss)(const pyce_job *job, int i, NAME(row_set) * s) {
    const pyce_problem *p = job->p;
    const vd zero = vd_set1(0);
    const vd m = vd_load(s->max + i), log = vd_load(s->log + i);
    const vd inverse = vd_load(s->inverse + i);
    const vd without_own = vd_load(s->without_own + i);
    const NAME(factors) f = NAME(find_factors)(job, i, s);
    NAME(write_lse)(p, i, f.dead, m, log, s);
    if (p->target == PYCE_NO_TARGET) {
        vd_store(s->factor + i, inverse);
#if W == 8
        vd_store(s->factor_low + i, vd_load(s->inverse_low + i));
#endif
        return;
    }
#if W == 8
    const vd log_low = vd_load(s->log_low + i), inverse_low = vd_load(s->inverse_low + i);
    const vd without_low = vd_load(s->without_own_low + i);
#endif

    const vd part = f.label, scale = f.scale, share = f.share;
    const vd label_x = vd_load((job->own == OWN_LABEL ? s->own_x : s->label_x) + i);
    const vdm unlabelled = vd_eq(part, zero);
    const vd from_label = vd_sub(m, label_x);
    const vd at_label = vd_add(from_label, log);
    vd loss = vd_drop(unlabelled, vd_mul(part, at_label));
#if W == 8
    vd loss_low = vd_add(lost_in_sum(m, vd_sub(zero, label_x), from_label),
                         vd_add(lost_in_sum(from_label, log, at_label), log_low));
    const vd part_lost = vd_fma(part, at_label, vd_sub(zero, vd_mul(part, at_label)));
    loss_low = vd_fma(part, loss_low, vd_fma(f.label_low, at_label, part_lost));
    loss_low = vd_drop(unlabelled, vd_keep(vd_eq(loss_low, loss_low), loss_low));
#endif
    vd whole = part;
#if W == 8
    vd_pair whole_pair = pair_of(part, vd_set1(0));
#endif
    if (job->dense) {
#if W == 8
        const vd_pair labels = pair_of(part, f.label_low);
        const vd_pair sum = NAME(settle_dense)(job, s, labels, pair_of(scale, f.low),
                                               pair_of(loss, loss_low), &whole_pair);
        loss = sum.high;
        loss_low = sum.low;
        whole = whole_pair.high;
#else
        const vd dense_part = vd_set1(job->dense_part), dense = vd_load(s->dense + i);
        const vd even = vd_load(s->dense_loss + i), spread = vd_mul(dense, log);
        loss = vd_add(loss, vd_mul(dense_part, vd_add(spread, even)));
        whole = vd_fma(dense_part, dense, part);
        const vd own_b = vd_mul(dense_part, vd_load(s->own_b + i));
        const vd same = vd_keep(vd_eq(vd_load(s->own + i), vd_load(s->label + i)), vd_set1(1.0));
        /* whole·p − b, from whichever of p and 1 − p is the smaller. */
        const vd own_e = vd_load(s->own_term + i), label_e = vd_load(s->label_e + i);
        const vd ratio = vd_mul(without_own, inverse), p_own = vd_mul(own_e, inverse);
        const vd p_label = vd_mul(label_e, inverse);
        const vd apart = vd_add(own_b, vd_mul(part, same));
        const vd own_grad =
            vd_select(vd_nlt(ratio, vd_set1(0.5)), vd_sub(vd_mul(whole, p_own), apart),
                      vd_sub(vd_sub(whole, apart), vd_mul(whole, ratio)));
        vd_store(s->own_grad + i, vd_mul(scale, own_grad));
        const vd label_b = vd_fma(dense_part, vd_load(s->label_b + i), part);
        vd_store(s->label_grad + i, vd_mul(scale, vd_sub(vd_mul(whole, p_label), label_b)));
        vd_store(s->dense_factor + i, vd_mul(scale, dense_part));
#endif
    }
#if W == 8
    const vd shared = vd_mul(loss, share);
    loss_low = vd_fma(loss_low, share, vd_fma(loss, share, vd_sub(zero, shared)));
    /* Where the loss has overflowed, what was lost is no number. */
    loss = vd_add(shared, vd_keep(vd_eq(vd_sub(loss_low, loss_low), zero), loss_low));
#else
    loss = vd_mul(loss, share);
#endif
    loss = vd_add(loss, vd_sub(log, log));
    vd_store(s->loss + i, vd_drop(f.dead, loss));
    const vd wanted = vd_mul(scale, whole);
    const vd factor = vd_mul(wanted, inverse);
    vd_store(s->factor + i, factor);
#if W == 8
    /* (scale + loss_low)·whole·(inverse + inverse_low) − factor, exactly but for terms of second order. */
    const vd minus = vd_sub(zero, wanted);
    const vd wanted_low =
        vd_fma(scale, whole_pair.low, vd_fma(f.low, whole, vd_fma(scale, whole, minus)));
    const vd product_low = vd_fma(wanted, inverse, vd_sub(zero, factor));
    const vd factor_low =
        vd_add(product_low, vd_fma(wanted, inverse_low, vd_mul(wanted_low, inverse)));
    vd_store(s->factor_low + i, factor_low);
    const vd own_low = vd_fma(without_low, factor, vd_mul(without_own, factor_low));
    const vd own_grad = vd_fma(without_own, factor, own_low);
#else
    const vd own_grad = vd_mul(without_own, factor);
#endif
    if (!job->dense) vd_store(s->own_grad + i, vd_sub(zero, own_grad));
}

/* What follows for the rows of some sets. */
static void NAME(settle_rows)(const pyce_job *job, NAME(row_set) * sets, int count) {
    for (NAME(row_set) *s = sets; s < sets + count; s++) {
        NAME(settle_sums)(job, s);
    }
    for (NAME(row_set) *s = sets; s < sets + count; s++) {
        for (int i = 0; i < s->n; i += 8) NAME(settle_log)(i, s);
    }
    for (NAME(row_set) *s = sets; s < sets + count; s++) {
        for (int i = 0; i < s->n; i += 8) NAME(settle_loss)(job, i, s);
    }
}

/* Row losses to the caller, or into the tile's sum by halves: a tree whose shape depends on nothing
   but the tile's size. `losses` has room for job->tile numbers and is overwritten. */
static void NAME(reduce_tile)(const pyce_job *job, int64_t begin, int64_t end, double *losses,
                              double *sums) {
    const pyce_problem *p = job->p;
    const int64_t n = end - begin;
    if (p->losses) {
#if W == 8
        double *to = p->losses;
#else
        float *to = p->losses;
#endif
        for (int64_t i = 0; i < n; i++) to[begin + i] = losses[i];
    } else if (sums) {
        for (int64_t i = n; i < job->tile; i++) losses[i] = 0;
        int64_t half = job->tile / 2;
        vd all_lost = vd_set1(0);
        for (; half >= 8; half /= 2) {
            for (int64_t i = 0; i < half; i += 8) {
                const vd a = vd_load(losses + i), b = vd_load(losses + i + half);
                const vd total = vd_add(a, b);
                if (W == 8) all_lost = vd_add(all_lost, lost_in_sum(a, b, total));
                vd_store(losses + i, total);
            }
        }
        double lost = 0;
        for (; half > 0; half /= 2) {
            for (int64_t i = 0; i < half; i++) {
                const double total = losses[i] + losses[i + half], back = total - losses[i];
                const double less = (losses[i] - (total - back)) + (losses[i + half] - back);
                lost += less == less ? less : 0;
                losses[i] = total;
            }
        }
        if (W == 8) {
            double parts[8];
            vd_store(parts, all_lost);
            losses[0] += lost + tree8(parts);
        }
        sums[begin / job->tile] = losses[0];
    }
}

/* Where p − t may cancel, errors of both count: factor·e − dense_factor·b with what rounding the two
   factors, and of doubles b, lost, rounded twice. */
INLINE V NAME(difference)(V e, V factor, V factor_low, V b, V b_low, V dense_factor,
                          V dense_factor_low) {
    V low = F(fnma)(dense_factor_low, b, F(mul)(e, factor_low));
    if (W == 8) low = F(fnma)(dense_factor, b_low, low);
    return F(fma)(e, factor, F(fnma)(dense_factor, b, low));
}

/* x as a number of the compute type, and what that lost where it is finite. */
INLINE REAL NAME(in_parts)(double x, double x_low, REAL *low) {
    const REAL high = (REAL)x;
    *low = high - high == 0 ? (REAL)(x - (double)high + x_low) : 0;
    return high;
}

/* (x − max) − log, the logarithm of the softmax. */
INLINE V NAME(log_softmax)(V x, V max, V log, V log_low) {
    const V from = F(sub)(x, max), result = F(sub)(from, log);
#if W == 8
    const vd zero = vd_set1(0);
    const vd lost = vd_add(lost_in_sum(x, vd_sub(zero, max), from),
                           lost_in_sum(from, vd_sub(zero, log), result));
    return vd_add(result, vd_sub(lost, log_low));
#else
    (void)log_low;
    return result;
#endif
}

/* n numbers from a strided array, one after the other. */
static const T *NAME(gather)(const T *x, int64_t stride, int n, T *buffer) {
    if (stride == 1) return x;
    for (int i = 0; i < n; i++) buffer[i] = x[i * stride];
    return buffer;
}

INLINE void *NAME(carve)(char **at, size_t bytes) {
    char *start = (char *)(((uintptr_t)*at + 63) & ~(uintptr_t)63);
    *at = start + bytes;
    return start;
}

/* n numbers past the caches. Both ends of `to` may be anywhere; `from` lies at the same distance from a
   multiple of 64 bytes. */
static void NAME(stream_out)(T *to, const T *from, int64_t n) {
    const int past = (int)((uintptr_t)to % (W * sizeof(T)) / sizeof(T));
    int64_t i = past ? W - past : 0;
    if (i > n) i = n;
    if (i) STOREN(to, (int)i, LOADN(from, (int)i, 0));
    for (; i + W <= n; i += W) STREAM(to + i, LOAD(from + i));
    if (i < n) STOREN(to + i, (int)(n - i), LOADN(from + i, (int)(n - i), 0));
}

ALIGNED static const REAL NAME(lanes)[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const REAL NAME(ones)[PYCE_BLOCK] = {[0 ... PYCE_BLOCK - 1] = 1};

/* Factors b of classes first…first+n−1 at outer o, position i, as the compute type; of doubles that
   are blended, the targets: see blend_b. */
static const REAL *NAME(dense_block)(const pyce_job *job, int64_t o, int64_t i, int64_t first,
                                     int n, REAL *buffer) {
    const pyce_problem *p = job->p;
    if (job->dense == DENSE_ONE) return NAME(ones);
    if (job->dense == DENSE_WEIGHT) {
        const double *w = p->weight + first;
        int c = 0;
        for (; c + W <= n; c += W) F(store)(buffer + c, F(from_doubles)(w + c));
        for (; c < n; c++) buffer[c] = (REAL)w[c];
        return buffer;
    }
    const pyce_operand *a = &p->probs;
    const int64_t at = NAME(offset_of)(a, o) + first * a->class_stride + i;
    if (p->probs_dtype == p->dtype) {
        const T *t = (const T *)a->data + at;
        T packed[PYCE_BLOCK];
        t = NAME(gather)(t, a->class_stride, n, packed);
#if IS_NATIVE
        if ((W == 8 || !job->blended) && a->class_stride == 1) return t;
#endif
        int c = 0;
        for (; c + W <= n; c += W) F(store)(buffer + c, LOAD(t + c));
        if (c < n) F(storen)(buffer + c, n - c, LOADN(t + c, n - c, 0));
    } else if (p->probs_dtype == PYCE_FLOAT64) {
        const double *t = (const double *)a->data + at;
        for (int c = 0; c < n; c++) buffer[c] = (REAL)t[c * a->class_stride];
    } else if (p->probs_dtype == PYCE_FLOAT32) {
        const float *t = (const float *)a->data + at;
        for (int c = 0; c < n; c++) buffer[c] = (REAL)t[c * a->class_stride];
    } else {
        const uint16_t *t = (const uint16_t *)a->data + at;
        for (int c = 0; c < n; c++) {
            const uint16_t *h = t + c * a->class_stride;
            buffer[c] = p->probs_dtype == PYCE_FLOAT16 ? vf_get_f16(h) : vf_get_bf16(h);
        }
    }
    if (W == 16 && job->blended) {
        /* Each b is rounded once: the roundings on the way are carried along. */
        for (int c = 0; c < n; c += W) {
            const int part = n - c < W ? n - c : W;
            double value[W];
            F(to_doubles)(F(loadn)(buffer + c, part, 0), value);
            for (int i = 0; i < part; i += 8) {
                const int left = part - i < 8 ? part - i : 8;
                const vd w =
                    p->weight ? vd_loadn(p->weight + first + c + i, left, 0) : vd_set1(1.0);
                const vd_pair b = blend(job, vd_load(value + i), w);
                vd_store(value + i, vd_add(b.high, b.low));
            }
            F(storen)(buffer + c, part, F(from_doubles)(value));
        }
    }
    return buffer;
}

/* The class weights from class `first` of a block on, for blend_b; doubles only. */
INLINE const double *NAME(weights_from)(const pyce_job *job, int64_t first) {
#if W == 8
    return job->p->weight ? job->p->weight + first : NAME(ones);
#else
    (void)job;
    (void)first;
    return 0;
#endif
}

/* b of what dense_block gives: of doubles, with what rounding loses, only here. w: class weights,
   0 where there is no class. */
INLINE V NAME(blend_b)(const pyce_job *job, V t, vd w, V *low) {
    *low = F(set1)(0);
#if W == 8
    if (job->blended) {
        const vd_pair b = blend(job, t, w);
        *low = b.low;
        return b.high;
    }
#else
    (void)job;
    (void)w;
#endif
    return t;
}
