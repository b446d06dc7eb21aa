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
