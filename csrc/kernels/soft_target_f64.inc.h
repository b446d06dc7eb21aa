/* Factors b of doubles, blended where they are used. soft_target_f32.inc.h says what the
   functions do. */

INLINE void blend_block(const pyce_job *job, int64_t first, int n, const double *targets,
                        double *b) {
    (void)job;
    (void)first;
    (void)n;
    (void)targets;
    (void)b;
}
INLINE const double *class_weights_from(const pyce_job *job, int64_t first) {
    return job->p->weight ? job->p->weight + first : ones;
}
INLINE vd load_weights(const double *weights, int at, int n) {
    return n >= LANES ? vd_load(weights + at) : vd_loadn(weights + at, n, 0);
}
INLINE vd spread_weight(const double *weights, int c) { return vd_set1(weights[c]); }
INLINE vd blended(const pyce_job *job, vd t, vd w, vd *error) {
    *error = vd_set1(0);
    if (!job->blended) return t;
    const vd_pair b = blend(job, t, w);
    *error = b.error;
    return b.value;
}

/* Sums of doubles carry the rounding errors of each term, and are left to the general ones. */
INLINE int finite_soft_sums(const element *x, const double *b, int n, double max, vsum *total,
                            vsum *loss) {
    (void)x;
    (void)b;
    (void)n;
    (void)max;
    (void)total;
    (void)loss;
    return 0;
}
INLINE int sum_of_logits(const element *x, int n, vsum *sum) {
    (void)x;
    (void)n;
    (void)sum;
    return 0;
}
INLINE int finite_lane_sums(const double *x, const double *b, int step, int n, vd max,
                            double *totals, double *losses) {
    (void)x;
    (void)b;
    (void)step;
    (void)n;
    (void)max;
    (void)totals;
    (void)losses;
    return 0;
}
