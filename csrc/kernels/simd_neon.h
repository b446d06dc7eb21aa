/* The vector operations of the kernels in NEON, for 64-bit Arm: each 64-byte vector is four registers.
 * simd_plain.h defines what each operation means.
 */
#define TARGET neon
#define TARGET_NAME "neon"
#define TARGET_SUPPORTED 1 /* part of every 64-bit Arm processor */

#if !defined(__clang__)
/* Constants that do not fit the registers are loaded in a loop; else sums would be stored in it. */
#pragma GCC optimize("ira-loop-pressure")
#endif

#ifndef INLINE /* the sanitizers' builds define it: inlined code takes them minutes to compile */
#define INLINE static inline __attribute__((always_inline))
#endif

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

/* Number of vectors in one step of the loops along a row: what fits the registers. */
#define VF_STEP 1
#define VD_STEP 1
#define FEW_REGISTERS 0
#define HIDE(p) ((void)(p))
/* The same where each lane has a normaliser of its own; and up to how many classes the pivots of rows
   in lanes are compared with each class. */
#define VF_LANE_STEP 1
#define VD_LANE_STEP 1
#define COMPARED_CLASSES 4

typedef struct {
    float32x4_t q[4];
} vf;
typedef struct {
    float64x2_t q[4];
} vd;
/* Masks are vectors of all-ones and all-zeros lanes. */
typedef struct {
    uint32x4_t q[4];
} vfm;
typedef struct {
    uint64x2_t q[4];
} vdm;

/* An operation on each of the four registers. */
#define EACH1(f, a)                                                                                \
    {                                                                                              \
        {                                                                                          \
            f((a).q[0]), f((a).q[1]), f((a).q[2]), f((a).q[3])                                     \
        }                                                                                          \
    }
#define EACH2(f, a, b)                                                                             \
    {                                                                                              \
        {                                                                                          \
            f((a).q[0], (b).q[0]), f((a).q[1], (b).q[1]), f((a).q[2], (b).q[2]),                   \
                f((a).q[3], (b).q[3])                                                              \
        }                                                                                          \
    }
#define EACH3(f, a, b, c)                                                                          \
    {                                                                                              \
        {                                                                                          \
            f((a).q[0], (b).q[0], (c).q[0]), f((a).q[1], (b).q[1], (c).q[1]),                      \
                f((a).q[2], (b).q[2], (c).q[2]), f((a).q[3], (b).q[3], (c).q[3])                   \
        }                                                                                          \
    }

/* -- float ----------------------------------------------------------------------------------- */

INLINE uint32x4_t bits32(float32x4_t a) { return vreinterpretq_u32_f32(a); }
INLINE float32x4_t floats(uint32x4_t a) { return vreinterpretq_f32_u32(a); }

INLINE vf vf_set1(float a) {
    const float32x4_t q = vdupq_n_f32(a);
    return (vf){{q, q, q, q}};
}
INLINE vf vf_load(const float *p) {
    return (vf){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
/* Register i of a vector whose first n numbers are at p. */
INLINE float32x4_t load4n(const float *p, int n, int i, float32x4_t fill) {
    const int left = n - 4 * i;
    p += 4 * i;
    if (left >= 4) return vld1q_f32(p);
    if (left == 3) return vld1q_lane_f32(p + 2, vcombine_f32(vld1_f32(p), vget_high_f32(fill)), 2);
    if (left == 2) return vcombine_f32(vld1_f32(p), vget_high_f32(fill));
    if (left == 1) return vld1q_lane_f32(p, fill, 0);
    return fill;
}
INLINE vf vf_loadn(const float *p, int n, float fill) {
    const float32x4_t f = vdupq_n_f32(fill);
    return (vf){{load4n(p, n, 0, f), load4n(p, n, 1, f), load4n(p, n, 2, f), load4n(p, n, 3, f)}};
}
INLINE void vf_store(float *p, vf a) {
    vst1q_f32(p, a.q[0]);
    vst1q_f32(p + 4, a.q[1]);
    vst1q_f32(p + 8, a.q[2]);
    vst1q_f32(p + 12, a.q[3]);
}
INLINE void store4n(float *p, int n, int i, float32x4_t a) {
    const int left = n - 4 * i;
    p += 4 * i;
    if (left >= 4) {
        vst1q_f32(p, a);
    } else if (left >= 2) {
        vst1_f32(p, vget_low_f32(a));
        if (left == 3) vst1q_lane_f32(p + 2, a, 2);
    } else if (left == 1) {
        vst1q_lane_f32(p, a, 0);
    }
}
INLINE void vf_storen(float *p, int n, vf a) {
    store4n(p, n, 0, a.q[0]);
    store4n(p, n, 1, a.q[1]);
    store4n(p, n, 2, a.q[2]);
    store4n(p, n, 3, a.q[3]);
}
/* Arm processors recognise streams of whole lines by themselves: the stores are the usual ones. */
INLINE void vf_stream(float *p, vf a) { vf_store(p, a); }

INLINE vf vf_add(vf a, vf b) { return (vf)EACH2(vaddq_f32, a, b); }
INLINE vf vf_sub(vf a, vf b) { return (vf)EACH2(vsubq_f32, a, b); }
INLINE vf vf_mul(vf a, vf b) { return (vf)EACH2(vmulq_f32, a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)EACH3(vfmaq_f32, c, a, b); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return (vf)EACH3(vfmsq_f32, c, a, b); }
/* Not fmaxnm: of a signaling NaN and a number it gives NaN, and of zeros always +0. */
INLINE float32x4_t max4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
INLINE vf vf_max(vf a, vf b) { return (vf)EACH2(max4, a, b); }
INLINE uint32x4_t nlt4(float32x4_t a, float32x4_t b) { return vmvnq_u32(vcltq_f32(a, b)); }
INLINE vfm vf_nlt(vf a, vf b) { return (vfm)EACH2(nlt4, a, b); }
INLINE vfm vf_eq(vf a, vf b) { return (vfm)EACH2(vceqq_f32, a, b); }
INLINE vfm vf_lane(int lane) {
    static const int32_t index[4] = {0, 1, 2, 3};
    const int32x4_t i = vld1q_s32(index);
    return (vfm){{vceqq_s32(i, vdupq_n_s32(lane)), vceqq_s32(i, vdupq_n_s32(lane - 4)),
                  vceqq_s32(i, vdupq_n_s32(lane - 8)), vceqq_s32(i, vdupq_n_s32(lane - 12))}};
}
INLINE int vf_first(vfm m) {
    /* Four bits for each lane. */
    const uint16x8_t lo = vcombine_u16(vmovn_u32(m.q[0]), vmovn_u32(m.q[1]));
    const uint16x8_t hi = vcombine_u16(vmovn_u32(m.q[2]), vmovn_u32(m.q[3]));
    const uint8x16_t bytes = vcombine_u8(vmovn_u16(lo), vmovn_u16(hi));
    const uint8x8_t nibbles = vshrn_n_u16(vreinterpretq_u16_u8(bytes), 4);
    const uint64_t bits = vget_lane_u64(vreinterpret_u64_u8(nibbles), 0);
    return bits ? __builtin_ctzll(bits) / 4 : -1;
}
INLINE float32x4_t keep4(uint32x4_t m, float32x4_t a) { return floats(vandq_u32(bits32(a), m)); }
INLINE float32x4_t drop4(uint32x4_t m, float32x4_t a) { return floats(vbicq_u32(bits32(a), m)); }
INLINE vf vf_keep(vfm m, vf a) { return (vf)EACH2(keep4, m, a); }
INLINE vf vf_drop(vfm m, vf a) { return (vf)EACH2(drop4, m, a); }
INLINE vf vf_select(vfm m, vf a, vf b) { return (vf)EACH3(vbslq_f32, m, a, b); }
INLINE float32x4_t raise4(float32x4_t a, float32x4_t t) {
    return vmulq_f32(a, floats(vshlq_n_u32(bits32(t), 23)));
}
INLINE vf vf_raise(vfm m, vf a, vf t) {
    const vf raised = EACH2(raise4, a, t);
    return vf_keep(m, raised);
}
INLINE float vf_reduce_max(vf a) {
    return vmaxvq_f32(max4(max4(a.q[0], a.q[1]), max4(a.q[2], a.q[3])));
}

INLINE float64x2_t widen_lo(float32x4_t a) { return vcvt_f64_f32(vget_low_f32(a)); }
INLINE vd widen8(float32x4_t a, float32x4_t b) {
    return (vd){{widen_lo(a), vcvt_high_f64_f32(a), widen_lo(b), vcvt_high_f64_f32(b)}};
}
INLINE vd vf_widen_lo(vf a) { return widen8(a.q[0], a.q[1]); }
INLINE vd vf_widen_hi(vf a) { return widen8(a.q[2], a.q[3]); }
INLINE vd vd_widen(const float *p) { return widen8(vld1q_f32(p), vld1q_f32(p + 4)); }
INLINE float32x4_t narrow4(float64x2_t lo, float64x2_t hi) {
    return vcvt_high_f32_f64(vcvt_f32_f64(lo), hi);
}
INLINE vf vf_narrow(vd lo, vd hi) {
    return (vf){{narrow4(lo.q[0], lo.q[1]), narrow4(lo.q[2], lo.q[3]), narrow4(hi.q[0], hi.q[1]),
                 narrow4(hi.q[2], hi.q[3])}};
}

INLINE void transpose4(float32x4_t r[4]) {
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(r[0], r[1]));
    const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(r[0], r[1]));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(r[2], r[3]));
    const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(r[2], r[3]));
    r[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    r[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    r[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    r[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
}
/* Squares of 4×4 numbers, each transposed and moved to the other side of the diagonal. */
INLINE void vf_transpose(vf r[16]) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        UNROLL
        for (int j = 0; j <= i; j++) {
            float32x4_t a[4], b[4];
            UNROLL
            for (int k = 0; k < 4; k++) {
                a[k] = r[4 * i + k].q[j];
                b[k] = r[4 * j + k].q[i];
            }
            transpose4(a);
            transpose4(b);
            UNROLL
            for (int k = 0; k < 4; k++) {
                r[4 * i + k].q[j] = b[k];
                r[4 * j + k].q[i] = a[k];
            }
        }
    }
}

/* Rows 4i to 4i + 3 are register i of each vector. Rows of two to four numbers, one after the other
   without gaps, are taken apart and put together by loads and stores of their own. */
INLINE void vf_load_rows(vf r[4], const float *p, int64_t stride, int last) {
    if (stride == last && last > 1) {
        UNROLL
        for (int i = 0; i < 4; i++, p += 4 * stride) {
            if (last == 2) {
                const float32x4x2_t rows = vld2q_f32(p);
                r[0].q[i] = rows.val[0];
                r[1].q[i] = r[2].q[i] = r[3].q[i] = rows.val[1];
            } else if (last == 3) {
                const float32x4x3_t rows = vld3q_f32(p);
                r[0].q[i] = rows.val[0];
                r[1].q[i] = rows.val[1];
                r[2].q[i] = r[3].q[i] = rows.val[2];
            } else {
                const float32x4x4_t rows = vld4q_f32(p);
                r[0].q[i] = rows.val[0];
                r[1].q[i] = rows.val[1];
                r[2].q[i] = rows.val[2];
                r[3].q[i] = rows.val[3];
            }
        }
        return;
    }
    const float32x4_t zero = vdupq_n_f32(0);
    UNROLL
    for (int i = 0; i < 4; i++, p += 4 * stride) {
        float32x4_t rows[4] = {vld1q_f32(p), vld1q_f32(p + stride), vld1q_f32(p + 2 * stride),
                               load4n(p + 3 * stride, i < 3 ? 4 : last, 0, zero)};
        transpose4(rows);
        UNROLL
        for (int j = 0; j < 4; j++) r[j].q[i] = rows[j];
    }
}
INLINE void vf_store_rows(float *p, int64_t stride, const vf r[4], int last) {
    if (stride == last && last > 1) {
        UNROLL
        for (int i = 0; i < 4; i++, p += 4 * stride) {
            if (last == 2) {
                const float32x4x2_t rows = {{r[0].q[i], r[1].q[i]}};
                vst2q_f32(p, rows);
            } else if (last == 3) {
                const float32x4x3_t rows = {{r[0].q[i], r[1].q[i], r[2].q[i]}};
                vst3q_f32(p, rows);
            } else {
                const float32x4x4_t rows = {{r[0].q[i], r[1].q[i], r[2].q[i], r[3].q[i]}};
                vst4q_f32(p, rows);
            }
        }
        return;
    }
    UNROLL
    for (int i = 0; i < 4; i++, p += 4 * stride) {
        float32x4_t rows[4] = {r[0].q[i], r[1].q[i], r[2].q[i], r[3].q[i]};
        transpose4(rows);
        vst1q_f32(p, rows[0]);
        vst1q_f32(p + stride, rows[1]);
        vst1q_f32(p + 2 * stride, rows[2]);
        store4n(p + 3 * stride, i < 3 ? 4 : last, 0, rows[3]);
    }
}

/* -- half types, widened to and rounded from float: bfloat16 if `bf16`, else float16 ---------------- */

INLINE float32x4_t from_half(uint16x4_t h, const int bf16) {
    return bf16 ? floats(vshlq_n_u32(vmovl_u16(h), 16)) : vcvt_f32_f16(vreinterpret_f16_u16(h));
}
INLINE uint16x4_t to_half(float32x4_t a, const int bf16) {
    if (!bf16) return vreinterpret_u16_f16(vcvt_f16_f32(a));
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits32(a), 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(vaddq_u32(bits32(a), vdupq_n_u32(0x7fff)), odd);
    return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), up, vdupq_n_u32(0x7fc00000)), 16);
}
INLINE vf load_half(const uint16_t *p, const int bf16) {
    return (vf){{from_half(vld1_u16(p), bf16), from_half(vld1_u16(p + 4), bf16),
                 from_half(vld1_u16(p + 8), bf16), from_half(vld1_u16(p + 12), bf16)}};
}
INLINE void store_half(uint16_t *p, vf a, const int bf16) {
    vst1_u16(p, to_half(a.q[0], bf16));
    vst1_u16(p + 4, to_half(a.q[1], bf16));
    vst1_u16(p + 8, to_half(a.q[2], bf16));
    vst1_u16(p + 12, to_half(a.q[3], bf16));
}
INLINE vf loadn_half(const uint16_t *p, int n, float fill, const int bf16) {
    uint16_t h[16] = {0};
    float f[16];
    memcpy(h, p, (size_t)n * sizeof *h);
    vf_store(f, load_half(h, bf16));
    return vf_loadn(f, n, fill);
}
INLINE void storen_half(uint16_t *p, int n, vf a, const int bf16) {
    uint16_t h[16];
    store_half(h, a, bf16);
    memcpy(p, h, (size_t)n * sizeof *h);
}
INLINE void load_rows_half(vf r[4], const uint16_t *p, int64_t stride, int last, const int bf16) {
    uint16_t end[4] = {0};
    memcpy(end, p + 15 * stride, (size_t)last * sizeof *end);
    UNROLL
    for (int i = 0; i < 4; i++, p += 4 * stride) {
        float32x4_t rows[4] = {from_half(vld1_u16(p), bf16), from_half(vld1_u16(p + stride), bf16),
                               from_half(vld1_u16(p + 2 * stride), bf16),
                               from_half(vld1_u16(i < 3 ? p + 3 * stride : end), bf16)};
        transpose4(rows);
        UNROLL
        for (int j = 0; j < 4; j++) r[j].q[i] = rows[j];
    }
}
INLINE void store_rows_half(uint16_t *p, int64_t stride, const vf r[4], int last, const int bf16) {
    uint16_t end[4];
    UNROLL
    for (int i = 0; i < 4; i++, p += 4 * stride) {
        float32x4_t rows[4] = {r[0].q[i], r[1].q[i], r[2].q[i], r[3].q[i]};
        transpose4(rows);
        vst1_u16(p, to_half(rows[0], bf16));
        vst1_u16(p + stride, to_half(rows[1], bf16));
        vst1_u16(p + 2 * stride, to_half(rows[2], bf16));
        vst1_u16(i < 3 ? p + 3 * stride : end, to_half(rows[3], bf16));
    }
    memcpy(p - stride, end, (size_t)last * sizeof *end);
}

INLINE vf vf_load_f16(const uint16_t *p) { return load_half(p, 0); }
INLINE vf vf_loadn_f16(const uint16_t *p, int n, float fill) { return loadn_half(p, n, fill, 0); }
INLINE void vf_store_f16(uint16_t *p, vf a) { store_half(p, a, 0); }
INLINE void vf_storen_f16(uint16_t *p, int n, vf a) { storen_half(p, n, a, 0); }
INLINE void vf_stream_f16(uint16_t *p, vf a) { store_half(p, a, 0); }
INLINE void vf_load_rows_f16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    load_rows_half(r, p, stride, last, 0);
}
INLINE void vf_store_rows_f16(uint16_t *p, int64_t stride, const vf r[4], int last) {
    store_rows_half(p, stride, r, last, 0);
}
INLINE vf vf_load_bf16(const uint16_t *p) { return load_half(p, 1); }
INLINE vf vf_loadn_bf16(const uint16_t *p, int n, float fill) { return loadn_half(p, n, fill, 1); }
INLINE void vf_store_bf16(uint16_t *p, vf a) { store_half(p, a, 1); }
INLINE void vf_storen_bf16(uint16_t *p, int n, vf a) { storen_half(p, n, a, 1); }
INLINE void vf_stream_bf16(uint16_t *p, vf a) { store_half(p, a, 1); }
INLINE void vf_load_rows_bf16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    load_rows_half(r, p, stride, last, 1);
}
INLINE void vf_store_rows_bf16(uint16_t *p, int64_t stride, const vf r[4], int last) {
    store_rows_half(p, stride, r, last, 1);
}

/* -- double ---------------------------------------------------------------------------------- */

INLINE uint64x2_t bits64(float64x2_t a) { return vreinterpretq_u64_f64(a); }
INLINE float64x2_t doubles(uint64x2_t a) { return vreinterpretq_f64_u64(a); }

INLINE vd vd_set1(double a) {
    const float64x2_t q = vdupq_n_f64(a);
    return (vd){{q, q, q, q}};
}
INLINE vd vd_load(const double *p) {
    return (vd){{vld1q_f64(p), vld1q_f64(p + 2), vld1q_f64(p + 4), vld1q_f64(p + 6)}};
}
/* Register i of a vector whose first n numbers are at p. */
INLINE float64x2_t load2n(const double *p, int n, int i, float64x2_t fill) {
    const int left = n - 2 * i;
    if (left >= 2) return vld1q_f64(p + 2 * i);
    return left == 1 ? vld1q_lane_f64(p + 2 * i, fill, 0) : fill;
}
INLINE vd vd_loadn(const double *p, int n, double fill) {
    const float64x2_t f = vdupq_n_f64(fill);
    return (vd){{load2n(p, n, 0, f), load2n(p, n, 1, f), load2n(p, n, 2, f), load2n(p, n, 3, f)}};
}
INLINE void vd_store(double *p, vd a) {
    vst1q_f64(p, a.q[0]);
    vst1q_f64(p + 2, a.q[1]);
    vst1q_f64(p + 4, a.q[2]);
    vst1q_f64(p + 6, a.q[3]);
}
INLINE void store2n(double *p, int n, int i, float64x2_t a) {
    const int left = n - 2 * i;
    if (left >= 2) {
        vst1q_f64(p + 2 * i, a);
    } else if (left == 1) {
        vst1q_lane_f64(p + 2 * i, a, 0);
    }
}
INLINE void vd_storen(double *p, int n, vd a) {
    store2n(p, n, 0, a.q[0]);
    store2n(p, n, 1, a.q[1]);
    store2n(p, n, 2, a.q[2]);
    store2n(p, n, 3, a.q[3]);
}
INLINE void vd_stream(double *p, vd a) { vd_store(p, a); }

INLINE vd vd_add(vd a, vd b) { return (vd)EACH2(vaddq_f64, a, b); }
INLINE vd vd_sub(vd a, vd b) { return (vd)EACH2(vsubq_f64, a, b); }
INLINE vd vd_mul(vd a, vd b) { return (vd)EACH2(vmulq_f64, a, b); }
INLINE vd vd_div(vd a, vd b) { return (vd)EACH2(vdivq_f64, a, b); }
INLINE vd vd_fma(vd a, vd b, vd c) { return (vd)EACH3(vfmaq_f64, c, a, b); }
INLINE vd vd_fnma(vd a, vd b, vd c) { return (vd)EACH3(vfmsq_f64, c, a, b); }
INLINE float64x2_t max2(float64x2_t a, float64x2_t b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
INLINE vd vd_max(vd a, vd b) { return (vd)EACH2(max2, a, b); }
/* There is no complement of 64-bit numbers. */
INLINE uint64x2_t nlt2(float64x2_t a, float64x2_t b) {
    return vreinterpretq_u64_u32(vmvnq_u32(vreinterpretq_u32_u64(vcltq_f64(a, b))));
}
INLINE vdm vd_nlt(vd a, vd b) { return (vdm)EACH2(nlt2, a, b); }
INLINE vdm vd_eq(vd a, vd b) { return (vdm)EACH2(vceqq_f64, a, b); }
INLINE vdm vd_lane(int lane) {
    static const int64_t index[2] = {0, 1};
    const int64x2_t i = vld1q_s64(index);
    return (vdm){{vceqq_s64(i, vdupq_n_s64(lane)), vceqq_s64(i, vdupq_n_s64(lane - 2)),
                  vceqq_s64(i, vdupq_n_s64(lane - 4)), vceqq_s64(i, vdupq_n_s64(lane - 6))}};
}
INLINE int vd_first(vdm m) {
    /* A byte for each lane. */
    const uint32x4_t lo = vcombine_u32(vmovn_u64(m.q[0]), vmovn_u64(m.q[1]));
    const uint32x4_t hi = vcombine_u32(vmovn_u64(m.q[2]), vmovn_u64(m.q[3]));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(vmovn_u32(lo), vmovn_u32(hi)));
    const uint64_t bits = vget_lane_u64(vreinterpret_u64_u8(bytes), 0);
    return bits ? __builtin_ctzll(bits) / 8 : -1;
}
INLINE float64x2_t keep2(uint64x2_t m, float64x2_t a) { return doubles(vandq_u64(bits64(a), m)); }
INLINE float64x2_t drop2(uint64x2_t m, float64x2_t a) { return doubles(vbicq_u64(bits64(a), m)); }
INLINE vd vd_keep(vdm m, vd a) { return (vd)EACH2(keep2, m, a); }
INLINE vd vd_drop(vdm m, vd a) { return (vd)EACH2(drop2, m, a); }
INLINE vd vd_select(vdm m, vd a, vd b) { return (vd)EACH3(vbslq_f64, m, a, b); }
INLINE vd vd_fma_keep(vdm m, vd a, vd b, vd c) { return vd_keep(m, vd_fma(a, b, c)); }
/* Two of eight doubles: their bytes are found in four registers. */
INLINE float64x2_t lookup2(float64x2_t t, uint8x16x4_t table) {
    static const uint8_t first[16] = {0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8};
    static const uint8_t byte[16] = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7};
    const uint8x16_t low = vqtbl1q_u8(vreinterpretq_u8_f64(t), vld1q_u8(first));
    /* The lowest three bits, shifted, above the number of the byte. */
    const uint8x16_t at = vsliq_n_u8(vld1q_u8(byte), low, 3);
    return vreinterpretq_f64_u8(vqtbl4q_u8(table, vandq_u8(at, vdupq_n_u8(63))));
}
INLINE vd vd_lookup(vd t, const double *table) {
    const uint8x16x4_t all = vld1q_u8_x4((const uint8_t *)(const void *)table);
    return (vd){
        {lookup2(t.q[0], all), lookup2(t.q[1], all), lookup2(t.q[2], all), lookup2(t.q[3], all)}};
}
INLINE float64x2_t raise2(float64x2_t a, float64x2_t t) {
    return doubles(vaddq_u64(bits64(a), vshlq_n_u64(bits64(t), 49)));
}
INLINE vd vd_raise(vd a, vd t) { return (vd)EACH2(raise2, a, t); }
INLINE float64x2_t exp2_2(uint64x2_t m, float64x2_t p, float64x2_t k) {
    const uint64x2_t up = vshlq_n_u64(vreinterpretq_u64_s64(vcvtq_s64_f64(k)), 52);
    const float64x2_t e = doubles(vaddq_u64(bits64(p), up));
    return keep2(m, vbslq_f64(vceqq_f64(p, p), e, p));
}
INLINE vd vd_exp2(vdm m, vd p, vd k) { return (vd)EACH3(exp2_2, m, p, k); }
INLINE double vd_reduce_max(vd a) {
    return vmaxvq_f64(max2(max2(a.q[0], a.q[1]), max2(a.q[2], a.q[3])));
}
INLINE float64x2_t mantissa2(float64x2_t a) {
    const uint64x2_t field = vdupq_n_u64(((uint64_t)1 << 52) - 1);
    return doubles(vbslq_u64(field, bits64(a), vdupq_n_u64((uint64_t)1023 << 52)));
}
INLINE float64x2_t exponent2(float64x2_t a) {
    return vsubq_f64(vcvtq_f64_u64(vshrq_n_u64(bits64(a), 52)), vdupq_n_f64(1023.0));
}
INLINE vd vd_mantissa(vd a) { return (vd)EACH1(mantissa2, a); }
INLINE vd vd_exponent(vd a) { return (vd)EACH1(exponent2, a); }

INLINE float64x2_t labels_of(int64x2_t l, int64_t ignore) {
    const uint64x2_t ignored = vceqq_s64(l, vdupq_n_s64(ignore));
    return vbslq_f64(ignored, vdupq_n_f64(-1.0), vcvtq_f64_s64(l));
}
INLINE vd vd_labels64(const int64_t *p, int64_t ignore) {
    return (vd){{labels_of(vld1q_s64(p), ignore), labels_of(vld1q_s64(p + 2), ignore),
                 labels_of(vld1q_s64(p + 4), ignore), labels_of(vld1q_s64(p + 6), ignore)}};
}
INLINE int64x2_t load_labels32(const int32_t *p) { return vmovl_s32(vld1_s32(p)); }
INLINE vd vd_labels32(const int32_t *p, int64_t ignore) {
    return (vd){{labels_of(load_labels32(p), ignore), labels_of(load_labels32(p + 2), ignore),
                 labels_of(load_labels32(p + 4), ignore), labels_of(load_labels32(p + 6), ignore)}};
}
/* Counts the labels that are `ignore`, and collects the bits of labels that are neither that nor a
   class: negative numbers are large as unsigned ones. */
INLINE void scan_labels(int64x2_t l, int64_t ignore, int64_t classes, int64x2_t *ignored_count,
                        uint64x2_t *wrong) {
    const uint64x2_t ignored = vceqq_s64(l, vdupq_n_s64(ignore));
    const uint64x2_t outside = vcgeq_u64(vreinterpretq_u64_s64(l), vdupq_n_u64((uint64_t)classes));
    *ignored_count = vsubq_s64(*ignored_count, vreinterpretq_s64_u64(ignored));
    *wrong = vorrq_u64(*wrong, vbicq_u64(outside, ignored));
}
INLINE int scan_labels64(const int64_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    int64x2_t ignored_count = vdupq_n_s64(0);
    uint64x2_t wrong = vdupq_n_u64(0);
    for (int64_t i = 0; i < n; i += 2) {
        scan_labels(vld1q_s64(p + i), ignore, classes, &ignored_count, &wrong);
    }
    *valid += n - vaddvq_s64(ignored_count);
    return vmaxvq_u32(vreinterpretq_u32_u64(wrong)) != 0;
}
INLINE int scan_labels32(const int32_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    int64x2_t ignored_count = vdupq_n_s64(0);
    uint64x2_t wrong = vdupq_n_u64(0);
    for (int64_t i = 0; i < n; i += 2) {
        scan_labels(load_labels32(p + i), ignore, classes, &ignored_count, &wrong);
    }
    *valid += n - vaddvq_s64(ignored_count);
    return vmaxvq_u32(vreinterpretq_u32_u64(wrong)) != 0;
}

/* Squares of 2×2 numbers. */
INLINE void vd_transpose(vd r[8]) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        UNROLL
        for (int j = 0; j <= i; j++) {
            const float64x2_t a = r[2 * i].q[j], b = r[2 * i + 1].q[j];
            const float64x2_t c = r[2 * j].q[i], d = r[2 * j + 1].q[i];
            r[2 * i].q[j] = vtrn1q_f64(c, d);
            r[2 * i + 1].q[j] = vtrn2q_f64(c, d);
            r[2 * j].q[i] = vtrn1q_f64(a, b);
            r[2 * j + 1].q[i] = vtrn2q_f64(a, b);
        }
    }
}

INLINE void memory_fence(void) {}
