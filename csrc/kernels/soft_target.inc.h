/* The factors b of the soft-target term, one per class: see finalize.inc.h. */

static const real ones[PYCE_BLOCK] = {[0 ... PYCE_BLOCK - 1] = 1};

/* b = w·((1 − ε)·t + ε/C) of eight classes, with its rounding error. Infinite w have no influence where
   the other factor is 0, nor the other way round. */
INLINE vd_pair blend(const pyce_job *job, vd t, vd w) {
    const vd on = vd_set1(job->on_value), off = vd_set1(job->off_value), zero = vd_set1(0);
    if (!(job->p->smoothing > 0)) { /* the same bits with fewer operations */
        const vd product = product_or_0(t, w);
        return pair_of(product, finite_error(vd_fma(t, w, vd_sub(zero, product))));
    }
    const vd product = vd_drop(vd_eq(on, zero), vd_mul(on, t)), b = vd_add(product, off);
    const vd product_error = vd_fma(on, t, vd_sub(zero, product));
    const vd error = vd_add(error_of_sum(product, off, b), product_error);
    const vd value_error = vd_fma(vd_set1(job->on_value_error), t, vd_set1(job->off_value_error));
    const vd_pair blended = pair_mul(pair_of(b, vd_add(error, value_error)), pair_of(w, zero));
    const vd value = vd_drop(vd_eq(w, zero), vd_drop(vd_eq(b, zero), blended.value));
    return pair_of(value, finite_error(blended.error));
}

#include SOFT_TARGET_INC

/* Of n classes from `first` on, at outer position o and inner position i: b in the compute type. Of
   blended doubles it gives the targets, which `blended` turns into b where they are used, because b
   is then a pair. `buffer` has room for n numbers; the result may be elsewhere. */
static const real *soft_block(const pyce_job *job, int64_t o, int64_t i, int64_t first, int n,
                              real *buffer) {
    const pyce_problem *p = job->p;
    if (job->soft == SOFT_ONE) return ones;
    if (job->soft == SOFT_WEIGHT) {
        const double *w = p->weight + first;
        int c = 0;
        for (; c + LANES <= n; c += LANES) v_store(buffer + c, v_from_doubles(w + c));
        for (; c < n; c++) buffer[c] = (real)w[c];
        return buffer;
    }
    const pyce_operand *a = &p->probs;
    const int64_t at = offset_of(a, o) + first * a->class_stride + i;
    if (p->probs_dtype == p->dtype) {
        const element *t = (const element *)a->data + at;
        element packed[PYCE_BLOCK];
        t = gather(t, a->class_stride, n, packed);
        if (IS_NATIVE && a->class_stride == 1) {
            if (COMPENSATED || !job->blended) return (const real *)t;
            blend_block(job, first, n, (const real *)t, buffer);
            return buffer;
        }
        int c = 0;
        for (; c + LANES <= n; c += LANES) v_store(buffer + c, m_load(t + c));
        if (c < n) v_storen(buffer + c, n - c, m_loadn(t + c, n - c, 0));
    } else if (p->probs_dtype == PYCE_FLOAT64) {
        const double *t = (const double *)a->data + at;
        for (int c = 0; c < n; c++) buffer[c] = (real)t[c * a->class_stride];
    } else if (p->probs_dtype == PYCE_FLOAT32) {
        const float *t = (const float *)a->data + at;
        for (int c = 0; c < n; c++) buffer[c] = (real)t[c * a->class_stride];
    } else {
        const uint16_t *t = (const uint16_t *)a->data + at;
        for (int c = 0; c < n; c++) {
            const uint16_t *h = t + c * a->class_stride;
            buffer[c] = p->probs_dtype == PYCE_FLOAT16 ? vf_get_f16(h) : vf_get_bf16(h);
        }
    }
    if (job->blended) blend_block(job, first, n, buffer, buffer);
    return buffer;
}

/* factor·e − soft_factor·b. p − t may cancel, so errors of both terms count: those of the factors,
   which were rounded to the compute type, and of doubles also those of b. */
INLINE vreal soft_difference(vreal e, vreal factor, vreal factor_error, vreal b, vreal b_error,
                             vreal soft_factor, vreal soft_factor_error) {
    vreal error = v_fnma(soft_factor_error, b, v_mul(e, factor_error));
    if (COMPENSATED) error = v_fnma(soft_factor, b_error, error);
    return v_fma(e, factor, v_fnma(soft_factor, b, error));
}
