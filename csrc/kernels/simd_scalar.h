/* The vocabulary of the kernels in plain C, for any machine; also where its words are defined.
 *
 * vf is 16 floats and vd is 8 doubles; vfm and vdm hold one truth value per lane. Each operation
 * rounds once, to nearest even, as IEEE 754 has it; fma is fused. The other dialects agree bit for
 * bit (but for the payload of NaN), which is why the results do.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Vectors whose exponentials are computed in step. */
#define VF_TOGETHER 1
#define VD_TOGETHER 1

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

/* One family for each type: T number, V vector, M mask, I integer as wide as T, W lanes, and the
   bits of the format: P explicit mantissa bits; B bits that choose from a table. */
#define FAMILY(p, T, V, M, I, W, P, B, FMA)                                                          \
    INLINE V p##_set1(T x) {                                                                         \
        V r;                                                                                         \
        for (int i = 0; i < W; i++) r.a[i] = x;                                                      \
        return r;                                                                                    \
    }                                                                                                \
    INLINE V p##_load(const T *m) { /* any alignment */                                              \
        V r;                                                                                         \
        memcpy(r.a, m, sizeof r.a);                                                                  \
        return r;                                                                                    \
    }                                                                                                \
    INLINE V p##_loadn(const T *m, int n, T fill) { /* the first n; the rest is not touched */       \
        V r = p##_set1(fill);                                                                        \
        memcpy(r.a, m, (size_t)n * sizeof(T));                                                       \
        return r;                                                                                    \
    }                                                                                                \
    INLINE void p##_store(T *m, V x) { memcpy(m, x.a, sizeof x.a); }                                 \
    INLINE void p##_storen(T *m, int n, V x) { memcpy(m, x.a, (size_t)n * sizeof(T)); }              \
    /* Past the caches, where the machine can; 64-byte aligned; then memory_fence. */                \
    INLINE void p##_stream(T *m, V x) { memcpy(m, x.a, sizeof x.a); }                                \
    INLINE V p##_add(V x, V y) {                                                                     \
        for (int i = 0; i < W; i++) x.a[i] += y.a[i];                                                \
        return x;                                                                                    \
    }                                                                                                \
    INLINE V p##_sub(V x, V y) {                                                                     \
        for (int i = 0; i < W; i++) x.a[i] -= y.a[i];                                                \
        return x;                                                                                    \
    }                                                                                                \
    INLINE V p##_mul(V x, V y) {                                                                     \
        for (int i = 0; i < W; i++) x.a[i] *= y.a[i];                                                \
        return x;                                                                                    \
    }                                                                                                \
    INLINE V p##_fma(V x, V y, V z) { /* x·y + z */                                                  \
        for (int i = 0; i < W; i++) x.a[i] = FMA(x.a[i], y.a[i], z.a[i]);                            \
        return x;                                                                                    \
    }                                                                                                \
    INLINE V p##_fnma(V x, V y, V z) { /* z − x·y */                                                 \
        for (int i = 0; i < W; i++) x.a[i] = FMA(-x.a[i], y.a[i], z.a[i]);                           \
        return x;                                                                                    \
    }                                                                                                \
    INLINE V p##_max(V x, V y) { /* y where either is NaN */                                         \
        for (int i = 0; i < W; i++) x.a[i] = x.a[i] > y.a[i] ? x.a[i] : y.a[i];                      \
        return x;                                                                                    \
    }                                                                                                \
    INLINE M p##_nlt(V x, V y) { /* not less: true where either is NaN */                            \
        M m;                                                                                         \
        for (int i = 0; i < W; i++) m.a[i] = !(x.a[i] < y.a[i]);                                     \
        return m;                                                                                    \
    }                                                                                                \
    INLINE M p##_eq(V x, V y) {                                                                      \
        M m;                                                                                         \
        for (int i = 0; i < W; i++) m.a[i] = x.a[i] == y.a[i];                                       \
        return m;                                                                                    \
    }                                                                                                \
    INLINE M p##_lane(int lane) { /* that lane alone */                                              \
        M m;                                                                                         \
        for (int i = 0; i < W; i++) m.a[i] = i == lane;                                              \
        return m;                                                                                    \
    }                                                                                                \
    INLINE int p##_first(M m) { /* the lowest true lane, or −1 */                                    \
        for (int i = 0; i < W; i++)                                                                  \
            if (m.a[i]) return i;                                                                    \
        return -1;                                                                                   \
    }                                                                                                \
    INLINE V p##_keep(M m, V x) { /* +0 where m is false */                                          \
        for (int i = 0; i < W; i++) x.a[i] = m.a[i] ? x.a[i] : 0;                                    \
        return x;                                                                                    \
    }                                                                                                \
    INLINE V p##_drop(M m, V x) { /* +0 where m is true */                                           \
        for (int i = 0; i < W; i++) x.a[i] = m.a[i] ? 0 : x.a[i];                                    \
        return x;                                                                                    \
    }                                                                                                \
    INLINE V p##_select(M m, V x, V y) { /* x where m, else y */                                     \
        for (int i = 0; i < W; i++) x.a[i] = m.a[i] ? x.a[i] : y.a[i];                               \
        return x;                                                                                    \
    }                                                                                                \
    /* x·y + z where m, +0 elsewhere. */                                                             \
    INLINE V p##_fma_keep(M m, V x, V y, V z) {                                                      \
        for (int i = 0; i < W; i++) x.a[i] = m.a[i] ? FMA(x.a[i], y.a[i], z.a[i]) : 0;               \
        return x;                                                                                    \
    }                                                                                                \
    /* The number of the table that the lowest B bits of t choose. */                                \
    INLINE V p##_lookup(V t, const T *table) {                                                       \
        for (int i = 0; i < W; i++) {                                                                \
            I bits;                                                                                  \
            memcpy(&bits, &t.a[i], sizeof bits);                                                     \
            t.a[i] = table[bits & ((1 << B) - 1)];                                                   \
        }                                                                                            \
        return t;                                                                                    \
    }                                                                                                \
    /* The bits of x plus those of t moved up, so that the lowest B are the last before the        \
       exponent. */ \
    INLINE V p##_raise(V x, V t) {                                                                   \
        for (int i = 0; i < W; i++) {                                                                \
            I bits, more;                                                                            \
            memcpy(&bits, &x.a[i], sizeof bits);                                                     \
            memcpy(&more, &t.a[i], sizeof more);                                                     \
            bits += more << (P - B);                                                                 \
            memcpy(&x.a[i], &bits, sizeof bits);                                                     \
        }                                                                                            \
        return x;                                                                                    \
    }                                                                                                \
    INLINE T p##_reduce_max(V x) {                                                                   \
        T m = x.a[0];                                                                                \
        for (int i = 1; i < W; i++) m = x.a[i] > m ? x.a[i] : m;                                     \
        return m;                                                                                    \
    }                                                                                                \
    INLINE void p##_transpose(V r[W]) { /* r[i] lane j <-> r[j] lane i */                            \
        for (int i = 0; i < W; i++) {                                                                \
            for (int j = 0; j < i; j++) {                                                            \
                const T x = r[i].a[j];                                                               \
                r[i].a[j] = r[j].a[i];                                                               \
                r[j].a[i] = x;                                                                       \
            }                                                                                        \
        }                                                                                            \
    }

FAMILY(vf, float, vf, vfm, uint32_t, 16, 23, 4, fmaf)
FAMILY(vd, double, vd, vdm, uint64_t, 8, 52, 3, fma)
#undef FAMILY

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

/* Lane i of a where index[i] is i, lane index[i] − 16 of b where index[i] ≥ 16. */
INLINE vf vf_merge(vf a, const int32_t *index, vf b) {
    for (int i = 0; i < 16; i++) {
        if (index[i] >= 16) a.a[i] = b.a[index[i] - 16];
    }
    return a;
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

#define HALF_MEMORY(type)                                                                          \
    INLINE vf vf_loadn_##type(const uint16_t *p, int n, float fill) {                              \
        vf r = vf_set1(fill);                                                                      \
        for (int i = 0; i < n; i++) r.a[i] = from_##type(p[i]);                                    \
        return r;                                                                                  \
    }                                                                                              \
    INLINE vf vf_load_##type(const uint16_t *p) { return vf_loadn_##type(p, 16, 0); }              \
    INLINE void vf_storen_##type(uint16_t *p, int n, vf x) {                                       \
        for (int i = 0; i < n; i++) p[i] = to_##type(x.a[i]);                                      \
    }                                                                                              \
    INLINE void vf_store_##type(uint16_t *p, vf x) { vf_storen_##type(p, 16, x); }                 \
    INLINE void vf_stream_##type(uint16_t *p, vf x) { vf_storen_##type(p, 16, x); }
HALF_MEMORY(f16)
HALF_MEMORY(bf16)
#undef HALF_MEMORY

#define LABELS_OF(type, bits)                                                                         \
    /* Eight labels as numbers; −1 where they are `ignore`. */                                        \
    INLINE vd vd_labels##bits(const type *p, int64_t ignore) {                                        \
        vd r;                                                                                         \
        for (int i = 0; i < 8; i++) r.a[i] = p[i] == ignore ? -1.0 : (double)p[i];                    \
        return r;                                                                                     \
    }                                                                                                 \
    /* Whether any of n labels, a multiple of 8, is neither `ignore` nor a class; *kept goes up by  \
       those that are not `ignore`. */ \
    INLINE int scan_labels##bits(const type *p, int64_t n, int64_t ignore, int64_t classes,           \
                                 int64_t *kept) {                                                     \
        int wrong = 0;                                                                                \
        for (int64_t i = 0; i < n; i++) {                                                             \
            *kept += p[i] != ignore;                                                                  \
            wrong |= p[i] != ignore && (p[i] < 0 || p[i] >= classes);                                 \
        }                                                                                             \
        return wrong;                                                                                 \
    }
LABELS_OF(int64_t, 64)
LABELS_OF(int32_t, 32)
#undef LABELS_OF

INLINE void memory_fence(void) {}
