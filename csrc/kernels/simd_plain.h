/* The vector operations of the kernels in plain C, for every machine. This file defines what each
 * operation means; the other simd_*.h compute the same.
 *
 * vf is 16 floats and vd is 8 doubles, 64 bytes each; vfm and vdm are masks, one truth value per
 * lane. Every operation rounds once, to nearest even, as IEEE 754 defines it; fma is fused. All
 * targets agree bit for bit (except in the payload of NaN), so results do not depend on the
 * instruction set.
 */
#define TARGET plain
#define TARGET_NAME "scalar" /* in the public interface */
#define TARGET_SUPPORTED 1

/* Operations are functions that are called, not inlined: inlined, these loops would take compilers
   minutes, for kernels whose purpose is to be right on every machine. */
#ifndef INLINE
#define INLINE static __attribute__((noinline, unused))
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

/* Number of vectors in one step of the loops along a row: what fits the registers. */
#define VF_STEP 1
#define VD_STEP 1
/* The same where each lane has a normaliser of its own; and up to how many classes the pivots of rows
   in lanes are compared with each class. */
#define VF_LANE_STEP 1
#define VD_LANE_STEP 1
#define COMPARED_CLASSES 4

typedef struct {
    float a[16];
} vf;
typedef struct {
    double a[8];
} vd;
typedef struct {
    uint32_t a[16];
} vfm;
typedef struct {
    uint64_t a[8];
} vdm;

/* -- float ------------------------------------------------------------------------------------- */

INLINE vf vf_set1(float x) {
    vf r;
    for (int i = 0; i < 16; i++) r.a[i] = x;
    return r;
}
INLINE vf vf_load(const float *m) { /* any alignment */
    vf r;
    memcpy(r.a, m, sizeof r.a);
    return r;
}
INLINE vf vf_loadn(const float *m, int n, float fill) { /* the first n; the rest is not touched */
    vf r = vf_set1(fill);
    memcpy(r.a, m, (size_t)n * sizeof(float));
    return r;
}
INLINE void vf_store(float *m, vf x) { memcpy(m, x.a, sizeof x.a); }
INLINE void vf_storen(float *m, int n, vf x) { memcpy(m, x.a, (size_t)n * sizeof(float)); }
/* A store that bypasses the caches where the machine can; p is 64-byte aligned. memory_fence must
   follow before another thread reads it. */
INLINE void vf_stream(float *m, vf x) { memcpy(m, x.a, sizeof x.a); }
INLINE vf vf_add(vf x, vf y) {
    for (int i = 0; i < 16; i++) x.a[i] += y.a[i];
    return x;
}
INLINE vf vf_sub(vf x, vf y) {
    for (int i = 0; i < 16; i++) x.a[i] -= y.a[i];
    return x;
}
INLINE vf vf_mul(vf x, vf y) {
    for (int i = 0; i < 16; i++) x.a[i] *= y.a[i];
    return x;
}
INLINE vf vf_fma(vf x, vf y, vf z) { /* x·y + z */
    for (int i = 0; i < 16; i++) x.a[i] = fmaf(x.a[i], y.a[i], z.a[i]);
    return x;
}
INLINE vf vf_fnma(vf x, vf y, vf z) { /* z − x·y */
    for (int i = 0; i < 16; i++) x.a[i] = fmaf(-x.a[i], y.a[i], z.a[i]);
    return x;
}
INLINE vf vf_max(vf x, vf y) { /* y where either is NaN */
    for (int i = 0; i < 16; i++) x.a[i] = x.a[i] > y.a[i] ? x.a[i] : y.a[i];
    return x;
}
INLINE vfm vf_nlt(vf x, vf y) { /* not less: true where either is NaN */
    vfm m;
    for (int i = 0; i < 16; i++) m.a[i] = !(x.a[i] < y.a[i]);
    return m;
}
INLINE vfm vf_eq(vf x, vf y) {
    vfm m;
    for (int i = 0; i < 16; i++) m.a[i] = x.a[i] == y.a[i];
    return m;
}
INLINE vfm vf_lane(int lane) { /* that lane alone */
    vfm m;
    for (int i = 0; i < 16; i++) m.a[i] = i == lane;
    return m;
}
INLINE int vf_first(vfm m) { /* the lowest true lane, or −1 */
    for (int i = 0; i < 16; i++)
        if (m.a[i]) return i;
    return -1;
}
INLINE vf vf_keep(vfm m, vf x) { /* +0 where m is false */
    for (int i = 0; i < 16; i++) x.a[i] = m.a[i] ? x.a[i] : 0;
    return x;
}
INLINE vf vf_drop(vfm m, vf x) { /* +0 where m is true */
    for (int i = 0; i < 16; i++) x.a[i] = m.a[i] ? 0 : x.a[i];
    return x;
}
INLINE vf vf_select(vfm m, vf x, vf y) { /* x where m, else y */
    for (int i = 0; i < 16; i++) x.a[i] = m.a[i] ? x.a[i] : y.a[i];
    return x;
}
/* Adds the low bits of t to the exponent field of x: x·2^t for an integer t that was rounded by
   adding EXP_MAGIC. +0 where m is false. */
INLINE vf vf_raise(vfm m, vf x, vf t) {
    for (int i = 0; i < 16; i++) {
        uint32_t bits, more;
        memcpy(&bits, &x.a[i], sizeof bits);
        memcpy(&more, &t.a[i], sizeof more);
        bits = m.a[i] ? bits + (more << 23) : 0;
        memcpy(&x.a[i], &bits, sizeof bits);
    }
    return x;
}
INLINE float vf_reduce_max(vf x) {
    float m = x.a[0];
    for (int i = 1; i < 16; i++) m = x.a[i] > m ? x.a[i] : m;
    return m;
}
INLINE void vf_transpose(vf r[16]) { /* r[i] lane j <-> r[j] lane i */
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < i; j++) {
            const float x = r[i].a[j];
            r[i].a[j] = r[j].a[i];
            r[j].a[i] = x;
        }
    }
}

/* -- double: as float, with 8 lanes and a table of 8 ------------------------------------------------ */

INLINE vd vd_set1(double x) {
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = x;
    return r;
}
INLINE vd vd_load(const double *m) {
    vd r;
    memcpy(r.a, m, sizeof r.a);
    return r;
}
INLINE vd vd_loadn(const double *m, int n, double fill) {
    vd r = vd_set1(fill);
    memcpy(r.a, m, (size_t)n * sizeof(double));
    return r;
}
INLINE void vd_store(double *m, vd x) { memcpy(m, x.a, sizeof x.a); }
INLINE void vd_storen(double *m, int n, vd x) { memcpy(m, x.a, (size_t)n * sizeof(double)); }

INLINE void vd_stream(double *m, vd x) { memcpy(m, x.a, sizeof x.a); }
INLINE vd vd_add(vd x, vd y) {
    for (int i = 0; i < 8; i++) x.a[i] += y.a[i];
    return x;
}
INLINE vd vd_sub(vd x, vd y) {
    for (int i = 0; i < 8; i++) x.a[i] -= y.a[i];
    return x;
}
INLINE vd vd_mul(vd x, vd y) {
    for (int i = 0; i < 8; i++) x.a[i] *= y.a[i];
    return x;
}
INLINE vd vd_fma(vd x, vd y, vd z) {
    for (int i = 0; i < 8; i++) x.a[i] = fma(x.a[i], y.a[i], z.a[i]);
    return x;
}
INLINE vd vd_fnma(vd x, vd y, vd z) {
    for (int i = 0; i < 8; i++) x.a[i] = fma(-x.a[i], y.a[i], z.a[i]);
    return x;
}
INLINE vd vd_max(vd x, vd y) {
    for (int i = 0; i < 8; i++) x.a[i] = x.a[i] > y.a[i] ? x.a[i] : y.a[i];
    return x;
}
INLINE vdm vd_nlt(vd x, vd y) {
    vdm m;
    for (int i = 0; i < 8; i++) m.a[i] = !(x.a[i] < y.a[i]);
    return m;
}
INLINE vdm vd_eq(vd x, vd y) {
    vdm m;
    for (int i = 0; i < 8; i++) m.a[i] = x.a[i] == y.a[i];
    return m;
}
INLINE vdm vd_lane(int lane) {
    vdm m;
    for (int i = 0; i < 8; i++) m.a[i] = i == lane;
    return m;
}
INLINE int vd_first(vdm m) {
    for (int i = 0; i < 8; i++)
        if (m.a[i]) return i;
    return -1;
}
INLINE vd vd_keep(vdm m, vd x) {
    for (int i = 0; i < 8; i++) x.a[i] = m.a[i] ? x.a[i] : 0;
    return x;
}
INLINE vd vd_drop(vdm m, vd x) {
    for (int i = 0; i < 8; i++) x.a[i] = m.a[i] ? 0 : x.a[i];
    return x;
}
INLINE vd vd_select(vdm m, vd x, vd y) {
    for (int i = 0; i < 8; i++) x.a[i] = m.a[i] ? x.a[i] : y.a[i];
    return x;
}

INLINE vd vd_fma_keep(vdm m, vd x, vd y, vd z) {
    for (int i = 0; i < 8; i++) x.a[i] = m.a[i] ? fma(x.a[i], y.a[i], z.a[i]) : 0;
    return x;
}

INLINE vd vd_lookup(vd t, const double *table) {
    for (int i = 0; i < 8; i++) {
        uint64_t bits;
        memcpy(&bits, &t.a[i], sizeof bits);
        t.a[i] = table[bits & 7];
    }
    return t;
}

INLINE vd vd_raise(vd x, vd t) {
    for (int i = 0; i < 8; i++) {
        uint64_t bits, more;
        memcpy(&bits, &x.a[i], sizeof bits);
        memcpy(&more, &t.a[i], sizeof more);
        bits += more << 49;
        memcpy(&x.a[i], &bits, sizeof bits);
    }
    return x;
}
INLINE double vd_reduce_max(vd x) {
    double m = x.a[0];
    for (int i = 1; i < 8; i++) m = x.a[i] > m ? x.a[i] : m;
    return m;
}
INLINE void vd_transpose(vd r[8]) {
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < i; j++) {
            const double x = r[i].a[j];
            r[i].a[j] = r[j].a[i];
            r[j].a[i] = x;
        }
    }
}

INLINE vd vf_widen_lo(vf x) { /* lanes 0 to 7 as doubles */
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = (double)x.a[i];
    return r;
}
INLINE vd vf_widen_hi(vf x) { /* lanes 8 to 15 */
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = (double)x.a[i + 8];
    return r;
}
INLINE vd vd_widen(const float *m) { /* eight floats as doubles */
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = (double)m[i];
    return r;
}
INLINE vf vf_narrow(vd lo, vd hi) {
    vf r;
    for (int i = 0; i < 8; i++) {
        r.a[i] = (float)lo.a[i];
        r.a[i + 8] = (float)hi.a[i];
    }
    return r;
}

/* p·2^k for an integral k, where m; +0 elsewhere. The product must be normal, or p NaN. */
INLINE vd vd_exp2(vdm m, vd x, vd k) {
    for (int i = 0; i < 8; i++) {
        if (!m.a[i]) {
            x.a[i] = 0;
        } else if (x.a[i] == x.a[i]) {
            uint64_t bits;
            memcpy(&bits, &x.a[i], sizeof bits);
            bits += (uint64_t)(k.a[i] + 1024) << 52;
            bits -= (uint64_t)1024 << 52;
            memcpy(&x.a[i], &bits, sizeof bits);
        }
    }
    return x;
}
INLINE vd vd_div(vd x, vd y) {
    for (int i = 0; i < 8; i++) x.a[i] /= y.a[i];
    return x;
}
/* Mantissa in [1, 2) and exponent of normal positive numbers; anything for other values. */
INLINE vd vd_mantissa(vd x) {
    for (int i = 0; i < 8; i++) {
        uint64_t bits;
        memcpy(&bits, &x.a[i], sizeof bits);
        bits = (bits & (((uint64_t)1 << 52) - 1)) | (uint64_t)1023 << 52;
        memcpy(&x.a[i], &bits, sizeof bits);
    }
    return x;
}
INLINE vd vd_exponent(vd x) {
    for (int i = 0; i < 8; i++) {
        uint64_t bits;
        memcpy(&bits, &x.a[i], sizeof bits);
        x.a[i] = (double)(int)(bits >> 52) - 1023.0;
    }
    return x;
}

/* Four numbers of each of 16 rows, `stride` apart: number j of row i is lane i of r[j]. Of the last row
   there are only `last` (1 to 4). Rows are stored one after the other: where they overlap, the later
   ones remain. */
INLINE void vf_load_rows(vf r[4], const float *p, int64_t stride, int last) {
    for (int j = 0; j < 4; j++) r[j] = vf_set1(0);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) r[j].a[i] = p[i * stride + j];
    }
}
INLINE void vf_store_rows(float *p, int64_t stride, const vf r[4], int last) {
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) p[i * stride + j] = r[j].a[i];
    }
}

/* -- half types, widened to and rounded from float --------------------------------------------- */

INLINE float bits_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
INLINE uint32_t float_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}
INLINE float from_bf16(uint16_t h) { return bits_float((uint32_t)h << 16); }
INLINE uint16_t to_bf16(float f) {
    const uint32_t bits = float_bits(f);
    if (f != f) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE float from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t rest = (uint32_t)(h & 0x7fff);
    if (rest >= 0x7c00) return bits_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400) return bits_float(sign | (rest + ((127 - 15) << 10)) << 13);
    const float small = (float)rest * 0x1p-24f; /* subnormal, exact */
    return sign ? -small : small;
}
INLINE uint16_t to_f16(float f) {
    const uint32_t bits = float_bits(f);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const uint32_t size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to 2^16 or more */
    if (size < 0x38800000) {
        /* Subnormal: adding 0.5 rounds at 2^-24, the spacing of the subnormals. */
        return (uint16_t)(sign | (float_bits(bits_float(size) + 0.5f) - float_bits(0.5f)));
    }
    return (uint16_t)(sign | ((size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13));
}

INLINE vf vf_loadn_f16(const uint16_t *p, int n, float fill) {
    vf r = vf_set1(fill);
    for (int i = 0; i < n; i++) r.a[i] = from_f16(p[i]);
    return r;
}
INLINE vf vf_load_f16(const uint16_t *p) { return vf_loadn_f16(p, 16, 0); }
INLINE void vf_storen_f16(uint16_t *p, int n, vf x) {
    for (int i = 0; i < n; i++) p[i] = to_f16(x.a[i]);
}
INLINE void vf_store_f16(uint16_t *p, vf x) { vf_storen_f16(p, 16, x); }
INLINE void vf_stream_f16(uint16_t *p, vf x) { vf_storen_f16(p, 16, x); }
INLINE vf vf_loadn_bf16(const uint16_t *p, int n, float fill) {
    vf r = vf_set1(fill);
    for (int i = 0; i < n; i++) r.a[i] = from_bf16(p[i]);
    return r;
}
INLINE vf vf_load_bf16(const uint16_t *p) { return vf_loadn_bf16(p, 16, 0); }
INLINE void vf_storen_bf16(uint16_t *p, int n, vf x) {
    for (int i = 0; i < n; i++) p[i] = to_bf16(x.a[i]);
}
INLINE void vf_store_bf16(uint16_t *p, vf x) { vf_storen_bf16(p, 16, x); }
INLINE void vf_stream_bf16(uint16_t *p, vf x) { vf_storen_bf16(p, 16, x); }

INLINE void vf_load_rows_f16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    for (int j = 0; j < 4; j++) r[j] = vf_set1(0);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) r[j].a[i] = from_f16(p[i * stride + j]);
    }
}
INLINE void vf_store_rows_f16(uint16_t *p, int64_t stride, const vf r[4], int last) {
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) p[i * stride + j] = to_f16(r[j].a[i]);
    }
}
INLINE void vf_load_rows_bf16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    for (int j = 0; j < 4; j++) r[j] = vf_set1(0);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) r[j].a[i] = from_bf16(p[i * stride + j]);
    }
}
INLINE void vf_store_rows_bf16(uint16_t *p, int64_t stride, const vf r[4], int last) {
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) p[i * stride + j] = to_bf16(r[j].a[i]);
    }
}

/* Eight labels as doubles; −1 where they are `ignore`. */
INLINE vd vd_labels64(const int64_t *p, int64_t ignore) {
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = p[i] == ignore ? -1.0 : (double)p[i];
    return r;
}
/* Whether any of n labels (n a multiple of 8) is neither `ignore` nor a class. Adds to *valid the
   number of labels that are not `ignore`. */
INLINE int scan_labels64(const int64_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    int wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        *valid += p[i] != ignore;
        wrong |= p[i] != ignore && (p[i] < 0 || p[i] >= classes);
    }
    return wrong;
}

INLINE vd vd_labels32(const int32_t *p, int64_t ignore) {
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = p[i] == ignore ? -1.0 : (double)p[i];
    return r;
}

INLINE int scan_labels32(const int32_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    int wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        *valid += p[i] != ignore;
        wrong |= p[i] != ignore && (p[i] < 0 || p[i] >= classes);
    }
    return wrong;
}

INLINE void memory_fence(void) {}
