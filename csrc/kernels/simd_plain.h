/* The vector operations of the kernels in plain C, for every machine. This file defines what each
 * operation means; the other simd_*.h compute the same.
 *
 * vf is 16 floats and vd is 8 doubles, 64 bytes each; vfm and vdm are masks, one truth value per
 * lane. Every operation rounds once, to nearest even, as IEEE 754 defines it; fma is fused. All
 * targets agree bit for bit (except in the payload of NaN), so results do not depend on the
 * instruction set.
 */
#include "cpu_x86.h"

#ifndef PLAIN_FMA_SUPPORTED /* a test defines it as 0 */
#define PLAIN_FMA_SUPPORTED cpu_has(CPU_FMA)
#endif
#ifndef TARGET
#define TARGET plain
#define TARGET_NAME "scalar" /* in the public interface */
#if defined(__x86_64__)
#define TARGET_SUPPORTED (!PLAIN_FMA_SUPPORTED)
#else
#define TARGET_SUPPORTED 1
#endif
#endif

/* With fma in the hardware, an operation is a few instructions, which are inlined, and functions of the
   kernels are inlined where the compiler finds it worthwhile. Without, fma is a call of libm for each
   lane, and inlined code would take compilers minutes. CALLED functions are always called. */
#if defined(INLINE)
/* The sanitizers' builds define it: inlined code takes them minutes to compile. */
#define OPERATION INLINE
#define CALLED INLINE
#elif defined(PLAIN_FMA) || defined(__FP_FAST_FMAF)
#define INLINE static inline __attribute__((unused))
#define OPERATION static inline __attribute__((always_inline))
#define CALLED static __attribute__((noinline, unused))
#define HOT OPERATION
#else
#define INLINE static __attribute__((noinline, unused))
#define OPERATION INLINE
#define CALLED INLINE
#endif

#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "half_types.h"

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

/* Vectors consist of parts of the size of a register, for which GCC and clang have operators on
   machines of all kinds. */
#if defined(PLAIN_FMA)
#define PART 32
#else
#define PART 16
#endif
#define PARTS (64 / PART)
#define EACH_PART                                                                                  \
    UNROLL                                                                                         \
    for (int k = 0; k < PARTS; k++)
typedef float float_part __attribute__((vector_size(PART)));
typedef double double_part __attribute__((vector_size(PART)));
typedef int32_t part32 __attribute__((vector_size(PART)));
typedef int64_t part64 __attribute__((vector_size(PART)));
/* For sums and shifts of bits, which may exceed a signed type. */
typedef uint32_t bits32 __attribute__((vector_size(PART)));
typedef uint64_t bits64 __attribute__((vector_size(PART)));

typedef union {
    float_part part[PARTS];
    float a[16];
} vf;
typedef union {
    double_part part[PARTS];
    double a[8];
} vd;
/* All bits of a true lane are set. */
typedef union {
    part32 part[PARTS];
    int32_t a[16];
} vfm;
typedef union {
    part64 part[PARTS];
    int64_t a[8];
} vdm;

/* -- float ------------------------------------------------------------------------------------- */

OPERATION vf vf_set1(float x) {
    vf r;
    EACH_PART r.part[k] = x - (float_part){0};
    return r;
}
OPERATION vf vf_load(const float *m) { /* any alignment */
    vf r;
    EACH_PART memcpy(&r.part[k], (const char *)m + k * PART, PART);
    return r;
}
CALLED vf vf_loadn(const float *m, int n, float fill) { /* the first n; the rest is not touched */
    vf r = vf_set1(fill);
    memcpy(r.a, m, (size_t)n * sizeof(float));
    return r;
}
OPERATION void vf_store(float *m, vf x) {
    EACH_PART memcpy((char *)m + k * PART, &x.part[k], PART);
}
CALLED void vf_storen(float *m, int n, vf x) { memcpy(m, x.a, (size_t)n * sizeof(float)); }
/* A store that bypasses the caches where the machine can; p is 64-byte aligned. memory_fence must
   follow before another thread reads it. */
OPERATION void vf_stream(float *m, vf x) { vf_store(m, x); }
OPERATION vf vf_add(vf x, vf y) {
    EACH_PART x.part[k] += y.part[k];
    return x;
}
OPERATION vf vf_sub(vf x, vf y) {
    EACH_PART x.part[k] -= y.part[k];
    return x;
}
OPERATION vf vf_mul(vf x, vf y) {
    EACH_PART x.part[k] *= y.part[k];
    return x;
}
OPERATION float_part float_fma(float_part x, float_part y, float_part z) {
    for (int i = 0; i < PART / (int)sizeof(float); i++) x[i] = __builtin_fmaf(x[i], y[i], z[i]);
    return x;
}
OPERATION vf vf_fma(vf x, vf y, vf z) { /* x·y + z */
    EACH_PART x.part[k] = float_fma(x.part[k], y.part[k], z.part[k]);
    return x;
}
OPERATION vf vf_fnma(vf x, vf y, vf z) { /* z − x·y */
    EACH_PART x.part[k] = float_fma(-x.part[k], y.part[k], z.part[k]);
    return x;
}
OPERATION float_part float_select(part32 m, float_part x, float_part y) {
    return (float_part)(((part32)x & m) | ((part32)y & ~m));
}
OPERATION vf vf_max(vf x, vf y) { /* y where either is NaN */
    EACH_PART x.part[k] = float_select(x.part[k] > y.part[k], x.part[k], y.part[k]);
    return x;
}
OPERATION vfm vf_nlt(vf x, vf y) { /* not less: true where either is NaN */
    vfm m;
    EACH_PART m.part[k] = ~(x.part[k] < y.part[k]);
    return m;
}
OPERATION vfm vf_eq(vf x, vf y) {
    vfm m;
    EACH_PART m.part[k] = x.part[k] == y.part[k];
    return m;
}
OPERATION vfm vf_lane(int lane) { /* that lane alone */
    vfm m;
    for (int i = 0; i < 16; i++) m.a[i] = i == lane ? -1 : 0;
    return m;
}
OPERATION int vf_first(vfm m) { /* the lowest true lane, or −1 */
    for (int i = 0; i < 16; i++)
        if (m.a[i]) return i;
    return -1;
}
OPERATION vf vf_keep(vfm m, vf x) { /* +0 where m is false */
    EACH_PART x.part[k] = (float_part)((part32)x.part[k] & m.part[k]);
    return x;
}
OPERATION vf vf_drop(vfm m, vf x) { /* +0 where m is true */
    EACH_PART x.part[k] = (float_part)((part32)x.part[k] & ~m.part[k]);
    return x;
}
OPERATION vf vf_select(vfm m, vf x, vf y) { /* x where m, else y */
    EACH_PART x.part[k] = float_select(m.part[k], x.part[k], y.part[k]);
    return x;
}
/* x·2^(n − 127), where the lowest bits of t are n: those bits, shifted, are the power of two. +0 where
   m is false. */
OPERATION vf vf_raise(vfm m, vf x, vf t) {
    EACH_PART x.part[k] *= (float_part)((bits32)t.part[k] << 23);
    return vf_keep(m, x);
}
CALLED float vf_reduce_max(vf x) {
    float m = x.a[0];
    for (int i = 1; i < 16; i++) m = x.a[i] > m ? x.a[i] : m;
    return m;
}
CALLED void vf_transpose(vf r[16]) { /* r[i] lane j <-> r[j] lane i */
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < i; j++) {
            const float x = r[i].a[j];
            r[i].a[j] = r[j].a[i];
            r[j].a[i] = x;
        }
    }
}

/* -- double: as float, with 8 lanes and a table of 8 ------------------------------------------------ */

OPERATION vd vd_set1(double x) {
    vd r;
    EACH_PART r.part[k] = x - (double_part){0};
    return r;
}
OPERATION vd vd_load(const double *m) {
    vd r;
    EACH_PART memcpy(&r.part[k], (const char *)m + k * PART, PART);
    return r;
}
CALLED vd vd_loadn(const double *m, int n, double fill) {
    vd r = vd_set1(fill);
    memcpy(r.a, m, (size_t)n * sizeof(double));
    return r;
}
OPERATION void vd_store(double *m, vd x) {
    EACH_PART memcpy((char *)m + k * PART, &x.part[k], PART);
}
CALLED void vd_storen(double *m, int n, vd x) { memcpy(m, x.a, (size_t)n * sizeof(double)); }

OPERATION void vd_stream(double *m, vd x) { vd_store(m, x); }
OPERATION vd vd_add(vd x, vd y) {
    EACH_PART x.part[k] += y.part[k];
    return x;
}
OPERATION vd vd_sub(vd x, vd y) {
    EACH_PART x.part[k] -= y.part[k];
    return x;
}
OPERATION vd vd_mul(vd x, vd y) {
    EACH_PART x.part[k] *= y.part[k];
    return x;
}
OPERATION double_part double_fma(double_part x, double_part y, double_part z) {
    for (int i = 0; i < PART / (int)sizeof(double); i++) x[i] = __builtin_fma(x[i], y[i], z[i]);
    return x;
}
OPERATION vd vd_fma(vd x, vd y, vd z) {
    EACH_PART x.part[k] = double_fma(x.part[k], y.part[k], z.part[k]);
    return x;
}
OPERATION vd vd_fnma(vd x, vd y, vd z) {
    EACH_PART x.part[k] = double_fma(-x.part[k], y.part[k], z.part[k]);
    return x;
}
OPERATION double_part double_select(part64 m, double_part x, double_part y) {
    return (double_part)(((part64)x & m) | ((part64)y & ~m));
}
OPERATION vd vd_max(vd x, vd y) {
    EACH_PART x.part[k] = double_select(x.part[k] > y.part[k], x.part[k], y.part[k]);
    return x;
}
OPERATION vdm vd_nlt(vd x, vd y) {
    vdm m;
    EACH_PART m.part[k] = ~(x.part[k] < y.part[k]);
    return m;
}
OPERATION vdm vd_eq(vd x, vd y) {
    vdm m;
    EACH_PART m.part[k] = x.part[k] == y.part[k];
    return m;
}
OPERATION vdm vd_lane(int lane) {
    vdm m;
    for (int i = 0; i < 8; i++) m.a[i] = i == lane ? -1 : 0;
    return m;
}
OPERATION int vd_first(vdm m) {
    for (int i = 0; i < 8; i++)
        if (m.a[i]) return i;
    return -1;
}
OPERATION vd vd_keep(vdm m, vd x) {
    EACH_PART x.part[k] = (double_part)((part64)x.part[k] & m.part[k]);
    return x;
}
OPERATION vd vd_drop(vdm m, vd x) {
    EACH_PART x.part[k] = (double_part)((part64)x.part[k] & ~m.part[k]);
    return x;
}
OPERATION vd vd_select(vdm m, vd x, vd y) {
    EACH_PART x.part[k] = double_select(m.part[k], x.part[k], y.part[k]);
    return x;
}

OPERATION vd vd_fma_keep(vdm m, vd x, vd y, vd z) { return vd_keep(m, vd_fma(x, y, z)); }

OPERATION vd vd_lookup(vd t, const double *table) {
    for (int i = 0; i < 8; i++) {
        uint64_t bits;
        memcpy(&bits, &t.a[i], sizeof bits);
        t.a[i] = table[bits & 7];
    }
    return t;
}

OPERATION vd vd_raise(vd x, vd t) {
    EACH_PART x.part[k] = (double_part)((bits64)x.part[k] + ((bits64)t.part[k] << 49));
    return x;
}
CALLED double vd_reduce_max(vd x) {
    double m = x.a[0];
    for (int i = 1; i < 8; i++) m = x.a[i] > m ? x.a[i] : m;
    return m;
}
CALLED void vd_transpose(vd r[8]) {
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < i; j++) {
            const double x = r[i].a[j];
            r[i].a[j] = r[j].a[i];
            r[j].a[i] = x;
        }
    }
}

OPERATION vd vf_widen_lo(vf x) { /* lanes 0 to 7 as doubles */
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = (double)x.a[i];
    return r;
}
OPERATION vd vf_widen_hi(vf x) { /* lanes 8 to 15 */
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = (double)x.a[i + 8];
    return r;
}
OPERATION vd vd_widen(const float *m) { /* eight floats as doubles */
    typedef float half_part __attribute__((vector_size(PART / 2)));
    vd r;
    EACH_PART {
        half_part half;
        memcpy(&half, (const char *)m + k * sizeof half, sizeof half);
        r.part[k] = __builtin_convertvector(half, double_part);
    }
    return r;
}
OPERATION vf vf_narrow(vd lo, vd hi) {
    vf r;
    for (int i = 0; i < 8; i++) {
        r.a[i] = (float)lo.a[i];
        r.a[i + 8] = (float)hi.a[i];
    }
    return r;
}

/* x·2^n for an integral n, where m; +0 elsewhere. The product must be normal, or x NaN. */
OPERATION vd vd_exp2(vdm m, vd x, vd n) {
    /* 1.5·2^52 + k holds k in its lowest bits. */
    EACH_PART {
        const bits64 number = (bits64)(n.part[k] + 0x1.8p52);
        const double_part e = (double_part)((bits64)x.part[k] + (number << 52));
        x.part[k] = double_select(x.part[k] == x.part[k], e, x.part[k]);
    }
    return vd_keep(m, x);
}
OPERATION vd vd_div(vd x, vd y) {
    EACH_PART x.part[k] /= y.part[k];
    return x;
}
/* Mantissa in [1, 2) and exponent of normal positive numbers; anything for other values. */
OPERATION vd vd_mantissa(vd x) {
    const int64_t field = ((int64_t)1 << 52) - 1, one = (int64_t)1023 << 52;
    EACH_PART x.part[k] = (double_part)(((part64)x.part[k] & field) | one);
    return x;
}
OPERATION vd vd_exponent(vd x) {
    /* The biased exponent e as the double 2^52 + e, less 2^52 + 1023. */
    const int64_t field = 0x7ff, one = (int64_t)0x433 << 52;
    EACH_PART {
        const part64 e = ((part64)x.part[k] >> 52 & field) | one;
        x.part[k] = (double_part)e - (0x1p52 + 1023.0);
    }
    return x;
}

/* Four numbers of each of 16 rows, `stride` apart: number j of row i is lane i of r[j]. Of the last row
   there are only `last` (1 to 4). Rows are stored one after the other: where they overlap, the later
   ones remain. */
CALLED void vf_load_rows(vf r[4], const float *p, int64_t stride, int last) {
    for (int j = 0; j < 4; j++) r[j] = vf_set1(0);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) r[j].a[i] = p[i * stride + j];
    }
}
CALLED void vf_store_rows(float *p, int64_t stride, const vf r[4], int last) {
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) p[i * stride + j] = r[j].a[i];
    }
}

/* -- half types, widened to and rounded from float --------------------------------------------- */

CALLED vf vf_loadn_f16(const uint16_t *p, int n, float fill) {
    vf r = vf_set1(fill);
    for (int i = 0; i < n; i++) r.a[i] = from_f16(p[i]);
    return r;
}
CALLED vf vf_load_f16(const uint16_t *p) { return vf_loadn_f16(p, 16, 0); }
CALLED void vf_storen_f16(uint16_t *p, int n, vf x) {
    for (int i = 0; i < n; i++) p[i] = to_f16(x.a[i]);
}
CALLED void vf_store_f16(uint16_t *p, vf x) { vf_storen_f16(p, 16, x); }
CALLED void vf_stream_f16(uint16_t *p, vf x) { vf_storen_f16(p, 16, x); }
CALLED vf vf_loadn_bf16(const uint16_t *p, int n, float fill) {
    vf r = vf_set1(fill);
    for (int i = 0; i < n; i++) r.a[i] = from_bf16(p[i]);
    return r;
}
CALLED vf vf_load_bf16(const uint16_t *p) { return vf_loadn_bf16(p, 16, 0); }
CALLED void vf_storen_bf16(uint16_t *p, int n, vf x) {
    for (int i = 0; i < n; i++) p[i] = to_bf16(x.a[i]);
}
CALLED void vf_store_bf16(uint16_t *p, vf x) { vf_storen_bf16(p, 16, x); }
CALLED void vf_stream_bf16(uint16_t *p, vf x) { vf_storen_bf16(p, 16, x); }

CALLED void vf_load_rows_f16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    for (int j = 0; j < 4; j++) r[j] = vf_set1(0);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) r[j].a[i] = from_f16(p[i * stride + j]);
    }
}
CALLED void vf_store_rows_f16(uint16_t *p, int64_t stride, const vf r[4], int last) {
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) p[i * stride + j] = to_f16(r[j].a[i]);
    }
}
CALLED void vf_load_rows_bf16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    for (int j = 0; j < 4; j++) r[j] = vf_set1(0);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) r[j].a[i] = from_bf16(p[i * stride + j]);
    }
}
CALLED void vf_store_rows_bf16(uint16_t *p, int64_t stride, const vf r[4], int last) {
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < (i < 15 ? 4 : last); j++) p[i * stride + j] = to_bf16(r[j].a[i]);
    }
}

/* Eight labels as doubles; −1 where they are `ignore`. */
CALLED vd vd_labels64(const int64_t *p, int64_t ignore) {
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = p[i] == ignore ? -1.0 : (double)p[i];
    return r;
}
/* Whether any of n labels (n a multiple of 8) is neither `ignore` nor a class. Adds to *valid the
   number of labels that are not `ignore`. */
CALLED int scan_labels64(const int64_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    int wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        *valid += p[i] != ignore;
        wrong |= p[i] != ignore && (p[i] < 0 || p[i] >= classes);
    }
    return wrong;
}

CALLED vd vd_labels32(const int32_t *p, int64_t ignore) {
    vd r;
    for (int i = 0; i < 8; i++) r.a[i] = p[i] == ignore ? -1.0 : (double)p[i];
    return r;
}

CALLED int scan_labels32(const int32_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    int wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        *valid += p[i] != ignore;
        wrong |= p[i] != ignore && (p[i] < 0 || p[i] >= classes);
    }
    return wrong;
}

CALLED void memory_fence(void) {}
