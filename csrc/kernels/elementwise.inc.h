/* What is not a softmax: labels, the Bernoulli loss, and the copies that kernels are measured by. */

/* -- labels ----------------------------------------------------------------------------------- */

#define LABELS(name, type, SCAN)                                                                    \
    static int64_t name(const pyce_problem *p, int64_t begin, int64_t end, int64_t *count,          \
                        double *weight) {                                                           \
        const type *labels = p->labels;                                                             \
        const int64_t classes = p->classes, ignore = p->ignore_index;                               \
        int64_t kept = 0;                                                                           \
        int wrong = 0;                                                                              \
        const int64_t whole = (end - begin) / 8 * 8;                                                \
        wrong = SCAN(labels + begin, whole, ignore, classes, &kept);                                \
        for (int64_t i = begin + whole; i < end; i++) {                                             \
            const int64_t label = labels[i];                                                        \
            kept += label != ignore;                                                                \
            wrong |= label != ignore && (label < 0 || label >= classes);                            \
        }                                                                                           \
        *count = kept;                                                                              \
        *weight = (double)kept;                                                                     \
        if (wrong) {                                                                                \
            for (int64_t i = begin;; i++) {                                                         \
                const int64_t label = labels[i];                                                    \
                if (label != ignore && (label < 0 || label >= classes)) return i;                   \
            }                                                                                       \
        }                                                                                           \
        if (p->weight || p->sample_weight) {                                                        \
            /* Eight running sums and what they lost, so that they need not wait for each other. */ \
            double sum[8] = {0}, lost[8] = {0};                                                     \
            for (int64_t i = begin; i < end; i++) {                                                 \
                if (labels[i] == ignore) continue;                                                  \
                const double w = p->weight ? p->weight[labels[i]] : 1.0;                            \
                const double s = p->sample_weight ? p->sample_weight[i] : 1.0;                      \
                const double share = w * s, total = sum[i & 7] + share, back = total - sum[i & 7];  \
                lost[i & 7] += (sum[i & 7] - (total - back)) + (share - back);                      \
                lost[i & 7] += __builtin_fma(w, s, -share);                                         \
                sum[i & 7] = total;                                                                 \
            }                                                                                       \
            double total = 0, low = 0;                                                              \
            for (int i = 0; i < 8; i++) {                                                           \
                const double next = total + sum[i], back = next - total;                            \
                low += ((total - (next - back)) + (sum[i] - back)) + lost[i];                       \
                total = next;                                                                       \
            }                                                                                       \
            total += low;                                                                           \
            *weight = total;                                                                        \
        }                                                                                           \
        return -1;                                                                                  \
    }
LABELS(labels32, int32_t, scan_labels32)
LABELS(labels64, int64_t, scan_labels64)
#undef LABELS

/* -- Bernoulli -------------------------------------------------------------------------------- */

/* a·b, and 0 where a is 0 whatever b is. */
INLINE vd product_or_0(vd a, vd b) { return vd_drop(vd_eq(a, vd_set1(0)), vd_mul(a, b)); }

/* loss = w·(pw·t·softplus(−x) + (1 − t)·softplus(x)) with softplus(x) = max(x, 0) + log1p(e^−|x|),
 * and its derivative w·((1 − t)·σ(x) − pw·t·σ(−x)), in double precision. */
INLINE vd bernoulli8(vd x, vd t, vd w, vd pw, vd *grad) {
    const vd zero = vd_set1(0), one = vd_set1(1.0);
    const vd minus = vd_sub(zero, x);
    const vd size = vd_max(x, minus);
    /* exp(−|x|); 0 where that is below the normal numbers. */
    const vd_normaliser norm = vd_normaliser_of(zero, zero, vd_set1(-707.0));
    const vd e = vd_exp(vd_sub(zero, size), norm);
    vd low;
    const vd log = vd_log1p(e, 1, &low);
    (void)low;
    const vd positive = vd_add(vd_max(x, zero), log), negative = vd_add(vd_max(minus, zero), log);
    const vd yes = vd_mul(pw, t), no = vd_sub(one, t);
    const vd loss = vd_add(product_or_0(yes, negative), product_or_0(no, positive));
    const vd inverse = vd_div(one, vd_add(one, e));
    const vdm up = vd_nlt(x, zero);
    const vd large = inverse, small = vd_mul(e, inverse);
    const vd sigma = vd_select(up, large, small), other = vd_select(up, small, large);
    const vd keep_nan = vd_drop(vd_eq(x, x), x);
    *grad = vd_add(vd_mul(w, vd_sub(vd_mul(no, sigma), vd_mul(yes, other))), keep_nan);
    const vd all = vd_add(loss, keep_nan);
    return vd_add(product_or_0(w, all), vd_drop(vd_eq(all, all), all));
}

/* The losses of eight elements enter the sum together; the sum is carried with what it lost. */
#define BERNOULLI(name, type, READ, WRITE)                                                         \
    static double name(int64_t begin, int64_t end, const void *xs, const void *ts, const void *ws, \
                       const void *pws, void *losses, void *grads, double scale) {                 \
        vd_sum sum = vd_sum_zero();                                                                \
        for (int64_t i = begin; i < end; i += 8) {                                                 \
            const int n = end - i < 8 ? (int)(end - i) : 8;                                        \
            const vd x = READ((const type *)xs + i, n), t = READ((const type *)ts + i, n);         \
            const vd w = ws ? READ((const type *)ws + i, n) : vd_set1(1.0);                        \
            const vd pw = pws ? READ((const type *)pws + i, n) : vd_set1(1.0);                     \
            vd grad;                                                                               \
            const vd loss = bernoulli8(x, t, w, pw, &grad);                                        \
            if (losses) WRITE((type *)losses + i, n, loss);                                        \
            if (grads) WRITE((type *)grads + i, n, vd_mul(grad, vd_set1(scale)));                  \
            double part[8] = {0};                                                                  \
            vd_storen(part, n, loss);                                                              \
            vd_sum_add(&sum, vd_load(part));                                                       \
        }                                                                                          \
        double low;                                                                                \
        const double total = vd_sum_total(sum, &low);                                              \
        return total + low;                                                                        \
    }
INLINE vd read_floats(const float *p, int n) { return vf_widen_lo(vf_loadn(p, n, 0)); }
INLINE void write_floats(float *p, int n, vd a) { vf_storen(p, n, vf_narrow(a, a)); }
INLINE vd read_doubles(const double *p, int n) { return vd_loadn(p, n, 0); }
BERNOULLI(bernoulli_f32, float, read_floats, write_floats)
BERNOULLI(bernoulli_f64, double, read_doubles, vd_storen)
#undef BERNOULLI

/* -- limits ------------------------------------------------------------------------------------- */

/* Copy past the caches; `to` is 64-byte aligned. */
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

/* Read every line; the result keeps the compiler from leaving it out. */
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
