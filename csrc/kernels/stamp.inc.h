/* The bodies for the four dtypes of logits. Each stamp defines
 *     T, REAL, V, VM, W    storage and compute type, vector, mask, lanes
 *     F(op), NAME(name)    the operation for REAL; the function of this dtype
 *     GET, LOAD … STREAM   memory operations on T
 *     IS_NATIVE            whether T and REAL are one type
 */
#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)

/* clang-format off */
INLINE float vf_get_f16(const uint16_t *p) {
    float a[16];
    vf_store(a, vf_loadn_f16(p, 1, 0));
    return a[0];
}
INLINE float vf_get_bf16(const uint16_t *p) {
    float a[16];
    vf_store(a, vf_loadn_bf16(p, 1, 0));
    return a[0];
}

/* b = w·((1 − ε)·t + ε/C) of eight classes. */
INLINE vd_pair blend(const pyce_job *job, vd t, vd w) {
    const vd certain = vd_set1(job->certain), even = vd_set1(job->even), zero = vd_set1(0);
    const vd kept = vd_mul(certain, t), b = vd_add(kept, even);
    const vd lost = vd_add(lost_in_sum(kept, even, b), vd_fma(certain, t, vd_sub(zero, kept)));
    const vd least = vd_fma(vd_set1(job->certain_low), t, vd_set1(job->even_low));
    return pair_mul(pair_of(b, vd_add(lost, least)), pair_of(w, zero));
}

#define V vf
#define VM vfm
#define W 16
#define F(op) vf_##op
#define REAL float

#define T float
#define IS_NATIVE 1
#define NAME(name) name##_f32
#define GET(p) (*(p))
#define LOAD vf_load
#define LOADN vf_loadn
#define STORE vf_store
#define STOREN vf_storen
#define STREAM vf_stream
#include "rows.inc.h"
#include "wide.inc.h"
#include "short.inc.h"
#include "lanes.inc.h"
#include "unstamp.inc.h"

#define T uint16_t
#define IS_NATIVE 0
#define NAME(name) name##_f16
#define GET(p) vf_get_f16(p)
#define LOAD vf_load_f16
#define LOADN vf_loadn_f16
#define STORE vf_store_f16
#define STOREN vf_storen_f16
#define STREAM vf_stream_f16
#include "rows.inc.h"
#include "wide.inc.h"
#include "short.inc.h"
#include "lanes.inc.h"
#include "unstamp.inc.h"

#define T uint16_t
#define IS_NATIVE 0
#define NAME(name) name##_bf16
#define GET(p) vf_get_bf16(p)
#define LOAD vf_load_bf16
#define LOADN vf_loadn_bf16
#define STORE vf_store_bf16
#define STOREN vf_storen_bf16
#define STREAM vf_stream_bf16
#include "rows.inc.h"
#include "wide.inc.h"
#include "short.inc.h"
#include "lanes.inc.h"
#include "unstamp.inc.h"

#undef V
#undef VM
#undef W
#undef F
#undef REAL

#define V vd
#define VM vdm
#define W 8
#define F(op) vd_##op
#define REAL double
#define T double
#define IS_NATIVE 1
#define NAME(name) name##_f64
#define GET(p) (*(p))
#define LOAD vd_load
#define LOADN vd_loadn
#define STORE vd_store
#define STOREN vd_storen
#define STREAM vd_stream
#include "rows.inc.h"
#include "wide.inc.h"
#include "short.inc.h"
#include "lanes.inc.h"
#include "unstamp.inc.h"
#undef V
#undef VM
#undef W
#undef F
#undef REAL
/* clang-format on */

/* Rows go in lanes where there are few classes or the class axis is not the last. */
enum { IN_LANES, SHORT, WIDE };
INLINE int kind_of(const pyce_job *job) {
    if (job->p->inner > 1 || job->p->classes <= PYCE_NARROW) return IN_LANES;
    return job->blocks == 1 ? SHORT : WIDE;
}
#define ROWS(type)                                                                                 \
    static void rows_##type(const pyce_job *job, int64_t begin, int64_t end, void *scratch,        \
                            double *sums) {                                                        \
        switch (kind_of(job)) {                                                                    \
        case IN_LANES: lane_rows_run_##type(job, begin, end, scratch, sums); break;                \
        case SHORT: short_rows_##type(job, begin, end, scratch, sums); break;                      \
        default: wide_rows_##type(job, begin, end, scratch, sums);                                 \
        }                                                                                          \
    }                                                                                              \
    static size_t scratch_##type(const pyce_job *job) {                                            \
        switch (kind_of(job)) {                                                                    \
        case IN_LANES: return lane_scratch_size_##type(job);                                       \
        case SHORT: return short_scratch_##type(job);                                              \
        default: return wide_scratch_##type(job);                                                  \
        }                                                                                          \
    }
ROWS(f32)
ROWS(f64)
ROWS(f16)
ROWS(bf16)
#undef ROWS

#define KERNELS(isa, is_supported)                                                                 \
    const pyce_kernels pyce_kernels_##isa = {                                                      \
        .name = #isa,                                                                              \
        .supported = is_supported,                                                                 \
        .rows = {rows_f32, rows_f64, rows_f16, rows_bf16},                                         \
        .scratch = {scratch_f32, scratch_f64, scratch_f16, scratch_bf16},                          \
        .measure = {share_measure_f32, share_measure_f64, share_measure_f16, share_measure_bf16},  \
        .settle = {share_settle_f32, share_settle_f64, share_settle_f16, share_settle_bf16},       \
        .write = {share_write_f32, share_write_f64, share_write_f16, share_write_bf16},            \
        .labels = {labels32, labels64},                                                            \
        .bernoulli = {bernoulli_f32, bernoulli_f64},                                               \
        .copy = stream_copy,                                                                       \
        .read = read_lines,                                                                        \
    }
