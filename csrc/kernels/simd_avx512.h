/* The vector operations of the kernels in AVX-512 (F, BW, DQ, VL) with FMA and F16C. simd_plain.h
 * defines what each operation means.
 */
#define TARGET avx512
#define TARGET_NAME "avx512"
#define TARGET_SUPPORTED cpu_has(CPU_AVX512 | CPU_FMA)

#include "cpu_x86.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))),                   \
    apply_to = function)
#define TARGET_END _Pragma("clang attribute pop")
#else
#pragma GCC push_options
#define TARGET_END _Pragma("GCC pop_options")
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#ifndef INLINE /* the sanitizers' builds define it: inlined code takes them minutes to compile */
#define INLINE static inline __attribute__((always_inline))
#endif

#include <immintrin.h>
/* clang-format off: in the order of dependence */
#if defined(_MSC_VER)
/* With Microsoft's headers, clang up to 18 includes only what the whole file is compiled for. */
#include <pmmintrin.h>
#include <tmmintrin.h>
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>
#include <avx512fintrin.h>
#include <avx512vlintrin.h>
#include <avx512bwintrin.h>
#include <avx512vlbwintrin.h>
#include <avx512dqintrin.h>
#include <avx512vldqintrin.h>
#endif
/* clang-format on */
#include <stdint.h>
#include <string.h>

#include "kernels.h"

/* Number of vectors in one step of the loops along a row: what fits the registers. */
#define VF_STEP 4
#define VD_STEP 4
#define FEW_REGISTERS 0
#define HIDE(p) ((void)(p))
/* The same where each lane has a normaliser of its own; and up to how many classes the pivots of rows
   in lanes are compared with each class. */
#define VF_LANE_STEP 2
#define VD_LANE_STEP 2
#define COMPARED_CLASSES 16

typedef __m512 vf;
typedef __mmask16 vfm;
typedef __m512d vd;
typedef __mmask8 vdm;

/* -- float ----------------------------------------------------------------------------------- */

INLINE vf vf_set1(float a) { return _mm512_set1_ps(a); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE vf vf_loadn(const float *p, int n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << n) - 1), p);
}
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE void vf_storen(float *p, int n, vf a) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a);
}
INLINE void vf_stream(float *p, vf a) { _mm512_stream_ps(p, a); }

INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vfm vf_nlt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
INLINE vfm vf_eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE vfm vf_lane(int lane) { return (__mmask16)(1u << lane); }
INLINE int vf_first(vfm m) { return m ? __builtin_ctz(m) : -1; }
INLINE vf vf_keep(vfm m, vf a) { return _mm512_maskz_mov_ps(m, a); }
INLINE vf vf_drop(vfm m, vf a) { return _mm512_maskz_mov_ps((__mmask16)~m, a); }
INLINE vf vf_select(vfm m, vf a, vf b) { return _mm512_mask_mov_ps(b, m, a); }
INLINE vf vf_raise(vfm m, vf a, vf t) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_maskz_mul_ps(m, a, _mm512_castsi512_ps(power));
}
INLINE float vf_reduce_max(vf a) { return _mm512_reduce_max_ps(a); }

INLINE vd vf_widen_lo(vf a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
INLINE vd vf_widen_hi(vf a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }
INLINE vd vd_widen(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
INLINE vf vf_narrow(vd lo, vd hi) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(lo)), _mm512_cvtpd_ps(hi), 1);
}

/* r[i] lane j <-> r[j] lane i */
INLINE void vf_transpose(vf r[16]) {
    vf t[16];
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Rows i, i + 4, i + 8 and i + 12 share a vector, so that no number crosses its quarter: 4×4
   transposes of each quarter. */
INLINE void transpose_rows(vf r[4]) {
    const vf a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
    const vf c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
    r[0] = _mm512_shuffle_ps(a, c, 0x44);
    r[1] = _mm512_shuffle_ps(a, c, 0xee);
    r[2] = _mm512_shuffle_ps(b, d, 0x44);
    r[3] = _mm512_shuffle_ps(b, d, 0xee);
}
/* b in place of a quarter of a: from memory, without a shuffle. */
INLINE vf with_quarter(vf a, int quarter, __m128 b) {
    return _mm512_mask_broadcast_f32x4(a, (__mmask16)(0xf << 4 * quarter), b);
}
INLINE __mmask8 first_of_4(int n) { return (__mmask8)((1 << n) - 1); }
INLINE void vf_load_rows(vf r[4], const float *p, int64_t stride, int last) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        const float *row = p + i * stride, *end = row + 12 * stride;
        vf a = _mm512_castps128_ps512(_mm_loadu_ps(row));
        a = with_quarter(a, 1, _mm_loadu_ps(row + 4 * stride));
        a = with_quarter(a, 2, _mm_loadu_ps(row + 8 * stride));
        const __m128 b = i < 3 ? _mm_loadu_ps(end) : _mm_maskz_loadu_ps(first_of_4(last), end);
        r[i] = with_quarter(a, 3, b);
    }
    transpose_rows(r);
}
INLINE void vf_store_rows(float *p, int64_t stride, const vf a[4], int last) {
    vf r[4] = {a[0], a[1], a[2], a[3]};
    transpose_rows(r);
    UNROLL
    for (int i = 0; i < 4; i++) _mm_storeu_ps(p + i * stride, _mm512_castps512_ps128(r[i]));
    UNROLL
    for (int i = 0; i < 4; i++) {
        _mm_storeu_ps(p + (i + 4) * stride, _mm512_extractf32x4_ps(r[i], 1));
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        _mm_storeu_ps(p + (i + 8) * stride, _mm512_extractf32x4_ps(r[i], 2));
    }
    UNROLL
    for (int i = 0; i < 3; i++) {
        _mm_storeu_ps(p + (i + 12) * stride, _mm512_extractf32x4_ps(r[i], 3));
    }
    /* GCC would combine a masked store with the extraction, and vextractf32x4 faults on memory that its
       mask excludes (Intel's exception type E6NF), which vmovups does not. */
    __m128 end = _mm512_extractf32x4_ps(r[3], 3);
    __asm__("" : "+v"(end));
    _mm_mask_storeu_ps(p + 15 * stride, first_of_4(last), end);
}

/* -- half types, widened to and rounded from float --------------------------------------------- */

INLINE __mmask16 half_mask(int n) { return (__mmask16)((1u << n) - 1); }

INLINE vf vf_from_f16(__m256i h) { return _mm512_cvtph_ps(h); }
INLINE __m256i vf_to_f16(vf a) {
    return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vf vf_from_bf16(__m256i h) {
    const __m512i upper = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8,
                                           8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_castsi512_ps(
        _mm512_maskz_permutexvar_epi16(0xaaaaaaaa, upper, _mm512_castsi256_si512(h)));
}
INLINE __m256i vf_to_bf16(vf a) {
    const __m512i bits = _mm512_castps_si512(a), half = _mm512_set1_epi32(0x8000);
    const __m512i quiet = _mm512_set1_epi32(0x7fc00000);
    const __mmask16 number = _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q);
    __m512i up = _mm512_mask_add_epi32(quiet, number, bits, half);
    /* Ties were rounded away from 0: to even. */
    const __mmask16 tie = _mm512_testn_epi32_mask(up, _mm512_set1_epi32(0xffff));
    up = _mm512_mask_and_epi32(up, tie, up, _mm512_set1_epi32(~0x10000));
    const __m512i upper = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29,
                                           27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, up));
}

INLINE vf vf_load_f16(const uint16_t *p) {
    return vf_from_f16(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vf vf_loadn_f16(const uint16_t *p, int n, float fill) {
    const vf a = vf_from_f16(_mm256_maskz_loadu_epi16(half_mask(n), p));
    return _mm512_mask_mov_ps(_mm512_set1_ps(fill), half_mask(n), a);
}
INLINE void vf_store_f16(uint16_t *p, vf a) { _mm256_storeu_si256((__m256i *)p, vf_to_f16(a)); }
INLINE void vf_storen_f16(uint16_t *p, int n, vf a) {
    _mm256_mask_storeu_epi16(p, half_mask(n), vf_to_f16(a));
}
INLINE void vf_stream_f16(uint16_t *p, vf a) { _mm256_stream_si256((__m256i *)p, vf_to_f16(a)); }
INLINE vf vf_load_bf16(const uint16_t *p) {
    return vf_from_bf16(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vf vf_loadn_bf16(const uint16_t *p, int n, float fill) {
    const vf a = vf_from_bf16(_mm256_maskz_loadu_epi16(half_mask(n), p));
    return _mm512_mask_mov_ps(_mm512_set1_ps(fill), half_mask(n), a);
}
INLINE void vf_store_bf16(uint16_t *p, vf a) { _mm256_storeu_si256((__m256i *)p, vf_to_bf16(a)); }
INLINE void vf_storen_bf16(uint16_t *p, int n, vf a) {
    _mm256_mask_storeu_epi16(p, half_mask(n), vf_to_bf16(a));
}
INLINE void vf_stream_bf16(uint16_t *p, vf a) { _mm256_stream_si256((__m256i *)p, vf_to_bf16(a)); }

/* Four numbers of each of four rows; of the last row, the first n. */
INLINE __m256i load_halves(const uint16_t *p, int64_t stride, int n) {
    int64_t row[4] = {0};
    UNROLL
    for (int i = 0; i < 4; i++) memcpy(row + i, p + i * stride, i < 3 ? 8 : (size_t)n * sizeof *p);
    return _mm256_setr_epi64x(row[0], row[1], row[2], row[3]);
}
/* Rows i, i + 4, i + 8 and i + 12 are half[i]. */
INLINE void store_halves(uint16_t *p, int64_t stride, const __m256i half[4], int last) {
    int64_t row[4][4];
    UNROLL
    for (int i = 0; i < 4; i++) _mm256_storeu_si256((__m256i *)row[i], half[i]);
    UNROLL
    for (int i = 0; i < 16; i++) {
        memcpy(p + i * stride, &row[i % 4][i / 4], i < 15 ? 8 : (size_t)last * sizeof *p);
    }
}
INLINE void vf_load_rows_f16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    UNROLL
    for (int i = 0; i < 4; i++)
        r[i] = vf_from_f16(load_halves(p + i * stride, 4 * stride, i < 3 ? 4 : last));
    transpose_rows(r);
}
INLINE void vf_store_rows_f16(uint16_t *p, int64_t stride, const vf a[4], int last) {
    vf r[4] = {a[0], a[1], a[2], a[3]};
    transpose_rows(r);
    __m256i half[4];
    UNROLL
    for (int i = 0; i < 4; i++) half[i] = vf_to_f16(r[i]);
    store_halves(p, stride, half, last);
}
INLINE void vf_load_rows_bf16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    UNROLL
    for (int i = 0; i < 4; i++)
        r[i] = vf_from_bf16(load_halves(p + i * stride, 4 * stride, i < 3 ? 4 : last));
    transpose_rows(r);
}
INLINE void vf_store_rows_bf16(uint16_t *p, int64_t stride, const vf a[4], int last) {
    vf r[4] = {a[0], a[1], a[2], a[3]};
    transpose_rows(r);
    __m256i half[4];
    UNROLL
    for (int i = 0; i < 4; i++) half[i] = vf_to_bf16(r[i]);
    store_halves(p, stride, half, last);
}

/* -- double ---------------------------------------------------------------------------------- */

INLINE vd vd_set1(double a) { return _mm512_set1_pd(a); }
INLINE vd vd_load(const double *p) { return _mm512_loadu_pd(p); }
INLINE vd vd_loadn(const double *p, int n, double fill) {
    return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), (__mmask8)((1u << n) - 1), p);
}
INLINE void vd_store(double *p, vd a) { _mm512_storeu_pd(p, a); }
INLINE void vd_storen(double *p, int n, vd a) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), a);
}
INLINE void vd_stream(double *p, vd a) { _mm512_stream_pd(p, a); }

INLINE vd vd_add(vd a, vd b) { return _mm512_add_pd(a, b); }
INLINE vd vd_sub(vd a, vd b) { return _mm512_sub_pd(a, b); }
INLINE vd vd_mul(vd a, vd b) { return _mm512_mul_pd(a, b); }
INLINE vd vd_div(vd a, vd b) { return _mm512_div_pd(a, b); }
INLINE vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
INLINE vd vd_fnma(vd a, vd b, vd c) { return _mm512_fnmadd_pd(a, b, c); }
INLINE vd vd_max(vd a, vd b) { return _mm512_max_pd(a, b); }
INLINE vdm vd_nlt(vd a, vd b) { return _mm512_cmp_pd_mask(a, b, _CMP_NLT_UQ); }
INLINE vdm vd_eq(vd a, vd b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
INLINE vdm vd_lane(int lane) { return (__mmask8)(1u << lane); }
INLINE int vd_first(vdm m) { return m ? __builtin_ctz(m) : -1; }
INLINE vd vd_keep(vdm m, vd a) { return _mm512_maskz_mov_pd(m, a); }
INLINE vd vd_drop(vdm m, vd a) { return _mm512_maskz_mov_pd((__mmask8)~m, a); }
INLINE vd vd_select(vdm m, vd a, vd b) { return _mm512_mask_mov_pd(b, m, a); }
INLINE vd vd_fma_keep(vdm m, vd a, vd b, vd c) { return _mm512_maskz_fmadd_pd(m, a, b, c); }
INLINE vd vd_lookup(vd t, const double *table) {
    return _mm512_permutexvar_pd(_mm512_castpd_si512(t), _mm512_load_pd(table));
}
INLINE vd vd_raise(vd a, vd t) {
    return _mm512_castsi512_pd(
        _mm512_add_epi64(_mm512_castpd_si512(a), _mm512_slli_epi64(_mm512_castpd_si512(t), 49)));
}
INLINE vd vd_exp2(vdm m, vd p, vd k) { return _mm512_maskz_scalef_pd(m, p, k); }
INLINE double vd_reduce_max(vd a) { return _mm512_reduce_max_pd(a); }
/* Mantissa in [1, 2) and exponent of normal positive numbers. */
INLINE vd vd_mantissa(vd a) { return _mm512_getmant_pd(a, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src); }
INLINE vd vd_exponent(vd a) { return _mm512_getexp_pd(a); }

INLINE vd labels_of(__m512i l, int64_t ignore) {
    const __mmask8 ignored = _mm512_cmpeq_epi64_mask(l, _mm512_set1_epi64(ignore));
    return _mm512_mask_mov_pd(_mm512_cvtepi64_pd(l), ignored, _mm512_set1_pd(-1.0));
}
INLINE __m512i load_labels64(const int64_t *p) { return _mm512_loadu_si512(p); }
INLINE __m512i load_labels32(const int32_t *p) {
    return _mm512_cvtepi32_epi64(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vd vd_labels64(const int64_t *p, int64_t ignore) {
    return labels_of(load_labels64(p), ignore);
}
INLINE int scan_labels64(const int64_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    const __m512i none = _mm512_set1_epi64(ignore), top = _mm512_set1_epi64(classes);
    unsigned wrong = 0;
    for (int64_t i = 0; i < n; i += 8) {
        const __m512i l = load_labels64(p + i);
        const __mmask8 counts = _mm512_cmpneq_epi64_mask(l, none);
        *valid += __builtin_popcount(counts);
        wrong |= _mm512_mask_cmpge_epu64_mask(counts, l, top);
    }
    return wrong != 0;
}
INLINE vd vd_labels32(const int32_t *p, int64_t ignore) {
    return labels_of(load_labels32(p), ignore);
}
INLINE int scan_labels32(const int32_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    const __m512i none = _mm512_set1_epi64(ignore), top = _mm512_set1_epi64(classes);
    unsigned wrong = 0;
    for (int64_t i = 0; i < n; i += 8) {
        const __m512i l = load_labels32(p + i);
        const __mmask8 counts = _mm512_cmpneq_epi64_mask(l, none);
        *valid += __builtin_popcount(counts);
        wrong |= _mm512_mask_cmpge_epu64_mask(counts, l, top);
    }
    return wrong != 0;
}

/* r[i] lane j <-> r[j] lane i */
INLINE void vd_transpose(vd r[8]) {
    vd t[8], u[8];
    UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 2; i++) {
        u[i] = _mm512_shuffle_f64x2(t[i], t[i + 2], 0x88);
        u[i + 2] = _mm512_shuffle_f64x2(t[i], t[i + 2], 0xdd);
        u[i + 4] = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0x88);
        u[i + 6] = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 2; i++) {
        r[i] = _mm512_shuffle_f64x2(u[i], u[i + 4], 0x88);
        r[i + 4] = _mm512_shuffle_f64x2(u[i], u[i + 4], 0xdd);
        r[i + 2] = _mm512_shuffle_f64x2(u[i + 2], u[i + 6], 0x88);
        r[i + 6] = _mm512_shuffle_f64x2(u[i + 2], u[i + 6], 0xdd);
    }
}

INLINE void memory_fence(void) { _mm_sfence(); }
