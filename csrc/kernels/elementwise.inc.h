/* Functions that do not depend on the dtype of the logits: labels, the Bernoulli loss (in double
 * precision), and the copies that kernels are measured against.
 */

/* -- labels ----------------------------------------------------------------------------------- */

INLINE int64_t label_at(const pyce_problem *p, const int wide, int64_t i) {
    return wide ? ((const int64_t *)p->labels)[i] : ((const int32_t *)p->labels)[i];
}

/* Whether pyce_is_extreme holds for a weight of rows begin…end; NaN may count as one. */
static int any_extreme_of_rows(const double *weights, int64_t begin, int64_t end, int dtype) {
    const vd zero = vd_set1(0), one = vd_set1(1.0);
    const vd most =
        vd_set1(dtype == PYCE_FLOAT64 ? PYCE_MOST_FACTOR_OF_DOUBLES : PYCE_MOST_FACTOR_OF_FLOATS);
    vd found = zero;
    for (int64_t i = begin; i < end; i += 8) {
        const vd w = vd_loadn(weights + i, end - i < 8 ? (int)(end - i) : 8, 0);
        const vd size = vd_max(w, vd_sub(zero, w));
        const vd large = vd_keep(vd_nlt(size, most), one);
        const vd small = vd_drop(vd_nlt(size, vd_set1(PYCE_LEAST_FACTOR)), size);
        found = vd_add(found, vd_add(large, small));
    }
    double lanes[8];
    vd_store(lanes, found);
    for (int i = 1; i < 8; i++) lanes[0] += lanes[i];
    return lanes[0] != 0;
}

/* See kernels.h. `wide`: whether labels have 64 bits. */
INLINE int64_t check_labels(const pyce_problem *p, const int wide, int64_t begin, int64_t end,
                            int64_t *count, double *weight, int *extreme) {
    const int64_t classes = p->classes, ignore = p->ignore_index;
    const int64_t whole = (end - begin) / 8 * 8;
    int64_t valid = 0;
    int wrong =
        wide ? scan_labels64((const int64_t *)p->labels + begin, whole, ignore, classes, &valid)
             : scan_labels32((const int32_t *)p->labels + begin, whole, ignore, classes, &valid);
    for (int64_t i = begin + whole; i < end; i++) {
        const int64_t label = label_at(p, wide, i);
        valid += label != ignore;
        wrong |= label != ignore && (label < 0 || label >= classes);
    }
    *count = valid;
    *weight = (double)valid;
    *extreme = 0;
    if (wrong) {
        for (int64_t i = begin;; i++) {
            const int64_t label = label_at(p, wide, i);
            if (label != ignore && (label < 0 || label >= classes)) return i;
        }
    }
    if (p->sample_weight) *extreme = any_extreme_of_rows(p->sample_weight, begin, end, p->dtype);
    if (p->weight || p->sample_weight) {
        /* Eight running sums, so that additions need not wait for each other. */
        double sum[8] = {0}, error[8] = {0};
        for (int64_t i = begin; i < end; i++) {
            const int64_t label = label_at(p, wide, i);
            if (label == ignore) continue;
            const double w = p->weight ? p->weight[label] : 1.0;
            const double s = p->sample_weight ? p->sample_weight[i] : 1.0;
            const double product = w == 0 || s == 0 ? 0 : w * s;
            const double product_error = __builtin_fma(w, s, -product);
            compensated_add(&sum[i & 7], product, &error[i & 7]);
            /* 0 · inf, and the error of an infinite product, are NaN. */
            if (product_error - product_error == 0) error[i & 7] += product_error;
        }
        double total = 0, total_error = 0;
        for (int i = 0; i < 8; i++) {
            double new_error;
            total = two_sum(total, sum[i], &new_error);
            total_error += new_error + error[i];
        }
        *weight = total + total_error;
    }
    return -1;
}
static int64_t labels32(const pyce_problem *p, int64_t begin, int64_t end, int64_t *count,
                        double *weight, int *extreme) {
    return check_labels(p, 0, begin, end, count, weight, extreme);
}
static int64_t labels64(const pyce_problem *p, int64_t begin, int64_t end, int64_t *count,
                        double *weight, int *extreme) {
    return check_labels(p, 1, begin, end, count, weight, extreme);
}

/* -- Bernoulli -------------------------------------------------------------------------------- */

/* loss = w·(pw·t·softplus(−x) + (1 − t)·softplus(x)) with softplus(x) = max(x, 0) + log1p(e^−|x|),
 * and its derivative w·((1 − t)·σ(x) − pw·t·σ(−x)). A factor of 0 makes its term 0. */
INLINE vd bernoulli8(vd x, vd t, vd w, vd pw, vd *grad) {
    const vd zero = vd_set1(0), one = vd_set1(1.0);
    const vd minus = vd_sub(zero, x);
    const vd size = vd_max(x, minus);
    /* exp(−|x|); 0 where that is below the normal numbers. */
    const normaliser norm = normaliser_from(zero, zero, vd_set1(-707.0));
    const vd e = exp1(vd_sub(zero, size), norm);
    vd error;
    const vd log = vd_log1p(e, 1, &error);
    (void)error;
    const vd positive = vd_add(vd_max(x, zero), log), negative = vd_add(vd_max(minus, zero), log);
    const vd yes = product_or_0(pw, t), no = vd_sub(one, t);
    const vd loss = vd_add(product_or_0(yes, negative), product_or_0(no, positive));
    const vd inverse = vd_div(one, vd_add(one, e));
    const vdm up = vd_nlt(x, zero);
    const vd large = inverse, small = vd_mul(e, inverse);
    const vd sigma = vd_select(up, large, small), other = vd_select(up, small, large);
    const vd keep_nan = vd_drop(vd_eq(x, x), x);
    const vd slope = vd_sub(product_or_0(no, sigma), product_or_0(yes, other));
    /* 0 where all coefficients are 0: x may be NaN, and w infinite. */
    const vd some = vd_add(vd_drop(vd_eq(yes, zero), one), vd_drop(vd_eq(no, zero), one));
    const vdm nothing = vd_eq(vd_drop(vd_eq(w, zero), some), zero);
    *grad = vd_drop(nothing, vd_mul(w, vd_add(slope, keep_nan)));
    return vd_drop(nothing, vd_mul(w, vd_add(loss, keep_nan)));
}

/* n of eight numbers from number i on; 1 where there is no array. */
INLINE vd read8(const void *from, const int doubles, int64_t i, int n) {
    if (!from) return vd_set1(1.0);
    return doubles ? vd_loadn((const double *)from + i, n, 0)
                   : vf_widen_lo(vf_loadn((const float *)from + i, n, 0));
}
INLINE void write8(void *to, const int doubles, int64_t i, int n, vd a) {
    if (doubles) {
        vd_storen((double *)to + i, n, a);
    } else {
        vf_storen((float *)to + i, n, vf_narrow(a, a));
    }
}

/* The losses of eight elements enter the sum together; the sum is compensated. */
INLINE double bernoulli(const int doubles, int64_t begin, int64_t end, const void *xs,
                        const void *ts, const void *ws, const void *pws, void *losses, void *grads,
                        double scale) {
    vsum sum = sum_zero();
    for (int64_t i = begin; i < end; i += 8) {
        const int n = end - i < 8 ? (int)(end - i) : 8;
        const vd x = read8(xs, doubles, i, n), t = read8(ts, doubles, i, n);
        const vd w = read8(ws, doubles, i, n), pw = read8(pws, doubles, i, n);
        vd grad;
        const vd loss = bernoulli8(x, t, w, pw, &grad);
        if (losses) write8(losses, doubles, i, n, loss);
        if (grads) write8(grads, doubles, i, n, vd_mul(grad, vd_set1(scale)));
        double part[8] = {0};
        vd_storen(part, n, loss);
        sum_add(&sum, vd_load(part));
    }
    double error;
    const double total = sum_total(sum, &error);
    return total + error;
}
static double bernoulli_f32(int64_t begin, int64_t end, const void *x, const void *t, const void *w,
                            const void *pw, void *losses, void *grad, double scale) {
    return bernoulli(0, begin, end, x, t, w, pw, losses, grad, scale);
}
static double bernoulli_f64(int64_t begin, int64_t end, const void *x, const void *t, const void *w,
                            const void *pw, void *losses, void *grad, double scale) {
    return bernoulli(1, begin, end, x, t, w, pw, losses, grad, scale);
}

/* -- limits ------------------------------------------------------------------------------------- */

/* A copy that bypasses the caches; `to` is 64-byte aligned. */
static void stream_copy(char *to, const char *from, size_t bytes) {
    size_t i = 0;
    for (; i + 256 <= bytes; i += 256) {
        for (int j = 0; j < 256; j += 64) {
            vf_stream((float *)(void *)(to + i + j),
                      vf_load((const float *)(const void *)(from + i + j)));
        }
    }
    memory_fence();
    for (; i < bytes; i++) to[i] = from[i];
}

/* Reads every line; the result depends on all, so that the compiler reads them. */
static uint64_t read_lines(const char *from, size_t bytes) {
    vf a = vf_set1(0), b = a, c = a, d = a;
    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        const float *p = (const float *)(const void *)(from + i);
        a = vf_max(a, vf_load(p));
        b = vf_max(b, vf_load(p + 16));
        c = vf_max(c, vf_load(p + 32));
        d = vf_max(d, vf_load(p + 48));
    }
    return (uint64_t)(vf_reduce_max(vf_max(vf_max(a, b), vf_max(c, d))) > 0);
}
