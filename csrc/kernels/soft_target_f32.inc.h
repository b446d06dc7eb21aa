/* Factors b of floats, which soft_block has blended. */

/* blend as one number. Without smoothing, the product is rounded already. */
INLINE vd blend_rounded(const pyce_job *job, vd t, vd w) {
    if (!(job->p->smoothing > 0)) return product_or_0(t, w);
    const vd_pair b = blend(job, t, w);
    return vd_add(b.value, b.error);
}
/* Weights at, at + 1, …, of which there are n; 1 for each without weights. */
INLINE vd eight_weights(const double *weights, int at, int n) {
    if (!weights) return vd_set1(1.0);
    if (n <= 0) return vd_set1(0);
    return n >= 8 ? vd_load(weights + at) : vd_loadn(weights + at, n, 0);
}
/* b of n targets from class `first` on, which may be replaced: in double precision, so that each is
   rounded once. */
INLINE void blend_block(const pyce_job *job, int64_t first, int n, const float *targets, float *b) {
    const double *weights = job->p->weight ? job->p->weight + first : 0;
    for (int c = 0; c < n; c += LANES) {
        const int left = n - c;
        vd w[2];
        UNROLL
        for (int i = 0; i < 2; i++) w[i] = eight_weights(weights, c + 8 * i, left - 8 * i);
        __builtin_prefetch(targets + c + PYCE_BLOCK, 0, 2);
        const vf t = left >= LANES ? vf_load(targets + c) : vf_loadn(targets + c, left, 0);
        const vf v = vf_narrow(blend_rounded(job, vf_widen_lo(t), w[0]),
                               blend_rounded(job, vf_widen_hi(t), w[1]));
        if (left >= LANES) {
            vf_store(b + c, v);
        } else {
            vf_storen(b + c, left, v);
        }
    }
}

/* For `blended`: the class weights from class `first` on. */
INLINE const double *class_weights_from(const pyce_job *job, int64_t first) {
    (void)job;
    (void)first;
    return 0;
}
/* Of these, n from number `at` on; LANES of them, 0 where there is no class. */
INLINE vd load_weights(const double *weights, int at, int n) {
    (void)weights;
    (void)at;
    (void)n;
    return vd_set1(0);
}
/* One of these, in each lane. */
INLINE vd spread_weight(const double *weights, int c) {
    (void)weights;
    (void)c;
    return vd_set1(0);
}
/* b from what soft_block gives and the class weights; *error is its rounding error, for doubles. */
INLINE vf blended(const pyce_job *job, vf t, vd w, vf *error) {
    (void)job;
    (void)w;
    *error = vf_set1(0);
    return t;
}

/* -- sums without the rules for 0 ------------------------------------------------------------------------- */

/* Σ b and Σ b·(max − x) of n classes along a row, the same bits as with sum_add_loss, in fewer
   operations; 0 if a term is not finite, so that a rule for 0 may hold. */
INLINE int finite_soft_sums(const element *x, const float *b, int n, float max, vsum *total,
                            vsum *loss) {
    const vd top = vd_set1(max);
    vsum sum = sum_zero(), all = sum_zero();
    int c = 0;
    for (; c + LANES <= n; c += LANES) {
        __builtin_prefetch(b + c + PYCE_BLOCK, 0, 2);
        /* One half after the other, for as few registers as possible. */
        if (IS_NATIVE) {
            const float *v = (const float *)(x + c);
            sum_add_finite(&all.lo, &sum.lo, vd_widen(b + c), vd_widen(v), top);
            sum_add_finite(&all.hi, &sum.hi, vd_widen(b + c + 8), vd_widen(v + 8), top);
        } else {
            const vf v = m_load(x + c);
            sum_add_finite(&all.lo, &sum.lo, vd_widen(b + c), vf_widen_lo(v), top);
            sum_add_finite(&all.hi, &sum.hi, vd_widen(b + c + 8), vf_widen_hi(v), top);
        }
    }
    if (c < n) {
        const vf t = vf_loadn(b + c, n - c, 0), v = m_loadn(x + c, n - c, max);
        sum_add_finite(&all.lo, &sum.lo, vf_widen_lo(t), vf_widen_lo(v), top);
        sum_add_finite(&all.hi, &sum.hi, vf_widen_hi(t), vf_widen_hi(v), top);
    }
    *total = all;
    *loss = sum;
    return sum_is_finite(sum);
}
/* Σ x of n classes along a row, for sum_distance_one. */
INLINE int sum_of_logits(const element *x, int n, vsum *sum) {
    vsum all = sum_zero();
    int c = 0;
    for (; c + LANES <= n; c += LANES) {
        if (IS_NATIVE) {
            sum_add_from(&all, (const float *)(x + c));
        } else {
            sum_add(&all, m_load(x + c));
        }
    }
    if (c < n) sum_add(&all, m_loadn(x + c, n - c, 0));
    *sum = all;
    return 1;
}
/* finite_soft_sums of one row per lane, in the order of sum_lane_block up to PYCE_FEW classes. b
   of a class is a vector (step LANES) or the same for all rows (step 0). */
INLINE int finite_lane_sums(const float *x, const float *b, int step, int n, vf max, double *totals,
                            double *losses) {
    const vd top_lo = vf_widen_lo(max), top_hi = vf_widen_hi(max);
    vsum sum = sum_zero(), all = sum_zero();
    for (int c = 0; c < n; c++) {
        const float *v = x + c * LANES, *t = b + c * LANES;
        sum_add_finite(&all.lo, &sum.lo, step ? vd_widen(t) : vd_set1(b[c]), vd_widen(v), top_lo);
        sum_add_finite(&all.hi, &sum.hi, step ? vd_widen(t + 8) : vd_set1(b[c]), vd_widen(v + 8),
                       top_hi);
    }
    vd_store(totals, all.lo);
    vd_store(totals + 8, all.hi);
    vd_store(losses, sum.lo);
    vd_store(losses + 8, sum.hi);
    return sum_is_finite(sum);
}
