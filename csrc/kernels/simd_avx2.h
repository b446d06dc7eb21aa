/* The vector operations of the kernels in AVX2 with FMA and F16C: each 64-byte vector is two registers.
 * simd_plain.h defines what each operation means.
 */
#define TARGET avx2
#define TARGET_NAME "avx2"
#define TARGET_SUPPORTED cpu_has(CPU_AVX2 | CPU_FMA)

#include "cpu_x86.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define TARGET_END _Pragma("clang attribute pop")
#else
#pragma GCC push_options
#define TARGET_END _Pragma("GCC pop_options")
#pragma GCC target("avx2,fma,f16c")
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
#endif
/* clang-format on */
#include <stdint.h>
#include <string.h>

#include "kernels.h"

/* Number of vectors in one step of the loops along a row: what fits the registers. */
#define VF_STEP 2
#define VD_STEP 2
/* Whether a step leaves no registers for constants and sums (see row_exponential in
   block.inc.h). HIDE(p) hides from the compiler what the pointer p points to. */
#define FEW_REGISTERS 1
#define HIDE(p) __asm__("" : "+r"(p))
/* The same where each lane has a normaliser of its own; and up to how many classes the pivots of rows
   in lanes are compared with each class. */
#define VF_LANE_STEP 1
#define VD_LANE_STEP 1
#define COMPARED_CLASSES 4

typedef struct {
    __m256 lo, hi;
} vf;
typedef struct {
    __m256d lo, hi;
} vd;
/* Masks are vectors of all-ones and all-zeros lanes. */
typedef vf vfm;
typedef vd vdm;

/* -- float ----------------------------------------------------------------------------------- */

INLINE __m256i lanes32(int n, int first) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n - first), index);
}
INLINE vf vf_of(__m256 lo, __m256 hi) {
    const vf a = {lo, hi};
    return a;
}

INLINE vf vf_set1(float a) { return vf_of(_mm256_set1_ps(a), _mm256_set1_ps(a)); }
INLINE vf vf_load(const float *p) { return vf_of(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE vf vf_loadn(const float *p, int n, float fill) {
    const __m256i lo = lanes32(n, 0), hi = lanes32(n, 8);
    const __m256 f = _mm256_set1_ps(fill);
    return vf_of(_mm256_blendv_ps(f, _mm256_maskload_ps(p, lo), _mm256_castsi256_ps(lo)),
                 _mm256_blendv_ps(f, _mm256_maskload_ps(p + 8, hi), _mm256_castsi256_ps(hi)));
}
INLINE void vf_store(float *p, vf a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
/* Masked stores of AVX2 take 12 cycles on some processors: parts of a vector are stored by halves. */
INLINE void store4n(float *p, int n, __m128 a) {
    if (n == 4) {
        _mm_storeu_ps(p, a);
        return;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)(void *)p, a);
        p += 2;
        a = _mm_movehl_ps(a, a);
    }
    if (n & 1) _mm_store_ss(p, a);
}
INLINE void store8n(float *p, int n, __m256 a) {
    if (n == 8) {
        _mm256_storeu_ps(p, a);
    } else if (n >= 4) {
        _mm_storeu_ps(p, _mm256_castps256_ps128(a));
        store4n(p + 4, n - 4, _mm256_extractf128_ps(a, 1));
    } else {
        store4n(p, n, _mm256_castps256_ps128(a));
    }
}
INLINE void vf_storen(float *p, int n, vf a) {
    if (n >= 8) {
        _mm256_storeu_ps(p, a.lo);
        store8n(p + 8, n - 8, a.hi);
    } else {
        store8n(p, n, a.lo);
    }
}
INLINE void vf_stream(float *p, vf a) {
    _mm256_stream_ps(p, a.lo);
    _mm256_stream_ps(p + 8, a.hi);
}

INLINE vf vf_add(vf a, vf b) { return vf_of(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
INLINE vf vf_sub(vf a, vf b) { return vf_of(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
INLINE vf vf_mul(vf a, vf b) { return vf_of(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
INLINE vf vf_fma(vf a, vf b, vf c) {
    return vf_of(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
INLINE vf vf_fnma(vf a, vf b, vf c) {
    return vf_of(_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi));
}
INLINE vf vf_max(vf a, vf b) { return vf_of(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
INLINE vfm vf_nlt(vf a, vf b) {
    return vf_of(_mm256_cmp_ps(a.lo, b.lo, _CMP_NLT_UQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_NLT_UQ));
}
INLINE vfm vf_eq(vf a, vf b) {
    return vf_of(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ));
}
INLINE vfm vf_lane(int lane) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return vf_of(_mm256_castsi256_ps(_mm256_cmpeq_epi32(index, _mm256_set1_epi32(lane))),
                 _mm256_castsi256_ps(_mm256_cmpeq_epi32(index, _mm256_set1_epi32(lane - 8))));
}
INLINE int vf_first(vfm m) {
    const unsigned bits = (unsigned)_mm256_movemask_ps(m.lo) | (unsigned)_mm256_movemask_ps(m.hi)
                                                                   << 8;
    return bits ? __builtin_ctz(bits) : -1;
}
INLINE vf vf_keep(vfm m, vf a) {
    return vf_of(_mm256_and_ps(m.lo, a.lo), _mm256_and_ps(m.hi, a.hi));
}
INLINE vf vf_drop(vfm m, vf a) {
    return vf_of(_mm256_andnot_ps(m.lo, a.lo), _mm256_andnot_ps(m.hi, a.hi));
}
INLINE vf vf_select(vfm m, vf a, vf b) {
    return vf_of(_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi));
}
INLINE __m256 raise_half(__m256 a, __m256 t) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(power));
}
INLINE vf vf_raise(vfm m, vf a, vf t) {
    return vf_keep(m, vf_of(raise_half(a.lo, t.lo), raise_half(a.hi, t.hi)));
}
INLINE float vf_reduce_max(vf a) {
    const __m256 b = _mm256_max_ps(a.lo, a.hi);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    c = _mm_max_ss(c, _mm_movehdup_ps(c));
    return _mm_cvtss_f32(c);
}

INLINE vd vd_of(__m256d lo, __m256d hi) {
    const vd a = {lo, hi};
    return a;
}
INLINE vd widen_half(__m256 a) {
    return vd_of(_mm256_cvtps_pd(_mm256_castps256_ps128(a)),
                 _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
}
INLINE vd vf_widen_lo(vf a) { return widen_half(a.lo); }
INLINE vd vf_widen_hi(vf a) { return widen_half(a.hi); }
INLINE vd vd_widen(const float *p) {
    return vd_of(_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4)));
}
INLINE __m256 narrow_half(vd a) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(a.lo)),
                                _mm256_cvtpd_ps(a.hi), 1);
}
INLINE vf vf_narrow(vd lo, vd hi) { return vf_of(narrow_half(lo), narrow_half(hi)); }

INLINE void transpose8(__m256 r[8]) {
    __m256 t[8], u[8];
    UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}
INLINE void vf_transpose(vf r[16]) {
    __m256 a[8], b[8], c[8], d[8];
    UNROLL
    for (int i = 0; i < 8; i++) {
        a[i] = r[i].lo;
        b[i] = r[i].hi;
        c[i] = r[i + 8].lo;
        d[i] = r[i + 8].hi;
    }
    transpose8(a);
    transpose8(b);
    transpose8(c);
    transpose8(d);
    UNROLL
    for (int i = 0; i < 8; i++) {
        r[i] = vf_of(a[i], c[i]);
        r[i + 8] = vf_of(b[i], d[i]);
    }
}

/* Rows i and i + 4 share a vector, so that no number crosses its half: 4×4 transposes of each half. */
INLINE void transpose4x4(__m256 r[4]) {
    const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
    r[0] = _mm256_shuffle_ps(a, c, 0x44);
    r[1] = _mm256_shuffle_ps(a, c, 0xee);
    r[2] = _mm256_shuffle_ps(b, d, 0x44);
    r[3] = _mm256_shuffle_ps(b, d, 0xee);
}
INLINE void transpose_rows(vf r[4], __m256 lo[4], __m256 hi[4]) {
    transpose4x4(lo);
    transpose4x4(hi);
    UNROLL
    for (int i = 0; i < 4; i++) r[i] = vf_of(lo[i], hi[i]);
}
INLINE __m256 join(__m128 lo, __m128 hi) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(lo), hi, 1);
}
INLINE __m128 load4n(const float *p, int n) {
    const __m128i lanes = _mm_cmpgt_epi32(_mm_set1_epi32(n), _mm_setr_epi32(0, 1, 2, 3));
    return n == 4 ? _mm_loadu_ps(p) : _mm_maskload_ps(p, lanes);
}
INLINE void vf_load_rows(vf r[4], const float *p, int64_t stride, int last) {
    __m256 lo[4], hi[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        const float *row = p + i * stride;
        lo[i] = join(_mm_loadu_ps(row), _mm_loadu_ps(row + 4 * stride));
        hi[i] = join(_mm_loadu_ps(row + 8 * stride), load4n(row + 12 * stride, i < 3 ? 4 : last));
    }
    transpose_rows(r, lo, hi);
}
INLINE void vf_store_rows(float *p, int64_t stride, const vf a[4], int last) {
    __m256 lo[4], hi[4];
    vf r[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        lo[i] = a[i].lo;
        hi[i] = a[i].hi;
    }
    transpose_rows(r, lo, hi);
    UNROLL
    for (int i = 0; i < 15; i++) {
        const __m256 half = i < 8 ? r[i % 4].lo : r[i % 4].hi;
        _mm_storeu_ps(p + i * stride,
                      i / 4 % 2 ? _mm256_extractf128_ps(half, 1) : _mm256_castps256_ps128(half));
    }
    store4n(p + 15 * stride, last, _mm256_extractf128_ps(r[3].hi, 1));
}

/* -- half types, widened to and rounded from float --------------------------------------------- */

INLINE __m256 from_f16(__m128i h) { return _mm256_cvtph_ps(h); }
INLINE __m128i to_f16(__m256 a) {
    return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE __m256 from_bf16(__m128i h) {
    const __m256i upper =
        _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 8, 9, -1,
                         -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(h), upper));
}
/* Rounded to bfloat16, which is the upper half of each number; the lower is 0. */
INLINE __m256i round_to_bf16(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    const __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    const __m256 all = _mm256_blendv_ps(_mm256_castsi256_ps(up), quiet, nan);
    return _mm256_srli_epi32(_mm256_castps_si256(all), 16);
}
INLINE __m128i to_bf16(__m256 a) {
    const __m256i all = round_to_bf16(a);
    return _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
INLINE __m256i vf_to_bf16(vf a) {
    const __m256i mixed = _mm256_packus_epi32(round_to_bf16(a.lo), round_to_bf16(a.hi));
    return _mm256_permute4x64_epi64(mixed, _MM_SHUFFLE(3, 1, 2, 0));
}

INLINE vf vf_load_f16(const uint16_t *p) {
    return vf_of(from_f16(_mm_loadu_si128((const __m128i *)p)),
                 from_f16(_mm_loadu_si128((const __m128i *)(p + 8))));
}
INLINE vf vf_loadn_f16(const uint16_t *p, int n, float fill) {
    uint16_t h[16] = {0};
    float f[16];
    memcpy(h, p, (size_t)n * sizeof *h);
    vf_store(f, vf_load_f16(h));
    return vf_loadn(f, n, fill);
}
INLINE void vf_store_f16(uint16_t *p, vf a) {
    _mm_storeu_si128((__m128i *)p, to_f16(a.lo));
    _mm_storeu_si128((__m128i *)(p + 8), to_f16(a.hi));
}
INLINE void vf_storen_f16(uint16_t *p, int n, vf a) {
    uint16_t h[16];
    vf_store_f16(h, a);
    memcpy(p, h, (size_t)n * sizeof *h);
}
INLINE void vf_stream_f16(uint16_t *p, vf a) {
    _mm_stream_si128((__m128i *)p, to_f16(a.lo));
    _mm_stream_si128((__m128i *)(p + 8), to_f16(a.hi));
}
INLINE vf vf_load_bf16(const uint16_t *p) {
    return vf_of(from_bf16(_mm_loadu_si128((const __m128i *)p)),
                 from_bf16(_mm_loadu_si128((const __m128i *)(p + 8))));
}
INLINE vf vf_loadn_bf16(const uint16_t *p, int n, float fill) {
    uint16_t h[16] = {0};
    float f[16];
    memcpy(h, p, (size_t)n * sizeof *h);
    vf_store(f, vf_load_bf16(h));
    return vf_loadn(f, n, fill);
}
INLINE void vf_store_bf16(uint16_t *p, vf a) { _mm256_storeu_si256((__m256i *)p, vf_to_bf16(a)); }
INLINE void vf_storen_bf16(uint16_t *p, int n, vf a) {
    uint16_t h[16];
    vf_store_bf16(h, a);
    memcpy(p, h, (size_t)n * sizeof *h);
}
INLINE void vf_stream_bf16(uint16_t *p, vf a) { _mm256_stream_si256((__m256i *)p, vf_to_bf16(a)); }

/* Four numbers at `lo` and `n` at `hi`. */
INLINE __m128i load_pair(const uint16_t *lo, const uint16_t *hi, int n) {
    uint64_t a, b = 0;
    memcpy(&a, lo, sizeof a);
    memcpy(&b, hi, (size_t)n * sizeof *hi);
    return _mm_set_epi64x((long long)b, (long long)a);
}
/* Rows i and i + 4 of the first eight rows are half[0][i], of the others half[1][i]. */
INLINE void store_halves(uint16_t *p, int64_t stride, const __m128i half[2][4], int last) {
    UNROLL
    for (int i = 0; i < 16; i++) {
        const __m128i pair = half[i / 8][i % 4];
        const int64_t row = i / 4 % 2 ? _mm_extract_epi64(pair, 1) : _mm_cvtsi128_si64(pair);
        memcpy(p + i * stride, &row, i < 15 ? sizeof row : (size_t)last * sizeof *p);
    }
}
INLINE void vf_load_rows_f16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    __m256 lo[4], hi[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        const uint16_t *row = p + i * stride;
        lo[i] = from_f16(load_pair(row, row + 4 * stride, 4));
        hi[i] = from_f16(load_pair(row + 8 * stride, row + 12 * stride, i < 3 ? 4 : last));
    }
    transpose_rows(r, lo, hi);
}
INLINE void vf_store_rows_f16(uint16_t *p, int64_t stride, const vf a[4], int last) {
    __m256 lo[4], hi[4];
    vf r[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        lo[i] = a[i].lo;
        hi[i] = a[i].hi;
    }
    transpose_rows(r, lo, hi);
    __m128i half[2][4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        half[0][i] = to_f16(r[i].lo);
        half[1][i] = to_f16(r[i].hi);
    }
    store_halves(p, stride, half, last);
}
INLINE void vf_load_rows_bf16(vf r[4], const uint16_t *p, int64_t stride, int last) {
    __m256 lo[4], hi[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        const uint16_t *row = p + i * stride;
        lo[i] = from_bf16(load_pair(row, row + 4 * stride, 4));
        hi[i] = from_bf16(load_pair(row + 8 * stride, row + 12 * stride, i < 3 ? 4 : last));
    }
    transpose_rows(r, lo, hi);
}
INLINE void vf_store_rows_bf16(uint16_t *p, int64_t stride, const vf a[4], int last) {
    __m256 lo[4], hi[4];
    vf r[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        lo[i] = a[i].lo;
        hi[i] = a[i].hi;
    }
    transpose_rows(r, lo, hi);
    __m128i half[2][4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        half[0][i] = to_bf16(r[i].lo);
        half[1][i] = to_bf16(r[i].hi);
    }
    store_halves(p, stride, half, last);
}

/* -- double ---------------------------------------------------------------------------------- */

INLINE __m256i lanes64(int n, int first) {
    const __m256i index = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n - first), index);
}

INLINE vd vd_set1(double a) { return vd_of(_mm256_set1_pd(a), _mm256_set1_pd(a)); }
INLINE vd vd_load(const double *p) { return vd_of(_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)); }
INLINE vd vd_loadn(const double *p, int n, double fill) {
    const __m256i lo = lanes64(n, 0), hi = lanes64(n, 4);
    const __m256d f = _mm256_set1_pd(fill);
    return vd_of(_mm256_blendv_pd(f, _mm256_maskload_pd(p, lo), _mm256_castsi256_pd(lo)),
                 _mm256_blendv_pd(f, _mm256_maskload_pd(p + 4, hi), _mm256_castsi256_pd(hi)));
}
INLINE void vd_store(double *p, vd a) {
    _mm256_storeu_pd(p, a.lo);
    _mm256_storeu_pd(p + 4, a.hi);
}
INLINE void vd_storen(double *p, int n, vd a) {
    _mm256_maskstore_pd(p, lanes64(n, 0), a.lo);
    _mm256_maskstore_pd(p + 4, lanes64(n, 4), a.hi);
}
INLINE void vd_stream(double *p, vd a) {
    _mm256_stream_pd(p, a.lo);
    _mm256_stream_pd(p + 4, a.hi);
}

INLINE vd vd_add(vd a, vd b) { return vd_of(_mm256_add_pd(a.lo, b.lo), _mm256_add_pd(a.hi, b.hi)); }
INLINE vd vd_sub(vd a, vd b) { return vd_of(_mm256_sub_pd(a.lo, b.lo), _mm256_sub_pd(a.hi, b.hi)); }
INLINE vd vd_mul(vd a, vd b) { return vd_of(_mm256_mul_pd(a.lo, b.lo), _mm256_mul_pd(a.hi, b.hi)); }
INLINE vd vd_div(vd a, vd b) { return vd_of(_mm256_div_pd(a.lo, b.lo), _mm256_div_pd(a.hi, b.hi)); }
INLINE vd vd_fma(vd a, vd b, vd c) {
    return vd_of(_mm256_fmadd_pd(a.lo, b.lo, c.lo), _mm256_fmadd_pd(a.hi, b.hi, c.hi));
}
INLINE vd vd_fnma(vd a, vd b, vd c) {
    return vd_of(_mm256_fnmadd_pd(a.lo, b.lo, c.lo), _mm256_fnmadd_pd(a.hi, b.hi, c.hi));
}
INLINE vd vd_max(vd a, vd b) { return vd_of(_mm256_max_pd(a.lo, b.lo), _mm256_max_pd(a.hi, b.hi)); }
INLINE vdm vd_nlt(vd a, vd b) {
    return vd_of(_mm256_cmp_pd(a.lo, b.lo, _CMP_NLT_UQ), _mm256_cmp_pd(a.hi, b.hi, _CMP_NLT_UQ));
}
INLINE vdm vd_eq(vd a, vd b) {
    return vd_of(_mm256_cmp_pd(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_pd(a.hi, b.hi, _CMP_EQ_OQ));
}
INLINE vdm vd_lane(int lane) {
    const __m256i index = _mm256_setr_epi64x(0, 1, 2, 3);
    return vd_of(_mm256_castsi256_pd(_mm256_cmpeq_epi64(index, _mm256_set1_epi64x(lane))),
                 _mm256_castsi256_pd(_mm256_cmpeq_epi64(index, _mm256_set1_epi64x(lane - 4))));
}
INLINE int vd_first(vdm m) {
    const unsigned bits = (unsigned)_mm256_movemask_pd(m.lo) | (unsigned)_mm256_movemask_pd(m.hi)
                                                                   << 4;
    return bits ? __builtin_ctz(bits) : -1;
}
INLINE vd vd_keep(vdm m, vd a) {
    return vd_of(_mm256_and_pd(m.lo, a.lo), _mm256_and_pd(m.hi, a.hi));
}
INLINE vd vd_drop(vdm m, vd a) {
    return vd_of(_mm256_andnot_pd(m.lo, a.lo), _mm256_andnot_pd(m.hi, a.hi));
}
INLINE vd vd_select(vdm m, vd a, vd b) {
    return vd_of(_mm256_blendv_pd(b.lo, a.lo, m.lo), _mm256_blendv_pd(b.hi, a.hi, m.hi));
}
INLINE vd vd_fma_keep(vdm m, vd a, vd b, vd c) { return vd_keep(m, vd_fma(a, b, c)); }
/* Four of eight doubles, by the halves of their bits: `low` and `high` are those of the table. */
INLINE __m256d lookup_half_d(__m256d t, __m256i low, __m256i high) {
    const __m256i index = _mm256_castps_si256(_mm256_moveldup_ps(_mm256_castpd_ps(t)));
    return _mm256_castsi256_pd(_mm256_blend_epi32(_mm256_permutevar8x32_epi32(low, index),
                                                  _mm256_permutevar8x32_epi32(high, index), 0xaa));
}
INLINE vd vd_lookup(vd t, const double *table) {
    const __m256 a = _mm256_load_ps((const float *)(const void *)table);
    const __m256 b = _mm256_load_ps((const float *)(const void *)(table + 4));
    /* 0 1 4 5 2 3 6 7 to 0 … 7 */
    const __m256i low =
        _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), 0xd8);
    const __m256i high =
        _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8);
    return vd_of(lookup_half_d(t.lo, low, high), lookup_half_d(t.hi, low, high));
}
INLINE __m256d raise_half_d(__m256d a, __m256d t) {
    const __m256i up = _mm256_slli_epi64(_mm256_castpd_si256(t), 49);
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(a), up));
}
INLINE vd vd_raise(vd a, vd t) { return vd_of(raise_half_d(a.lo, t.lo), raise_half_d(a.hi, t.hi)); }
INLINE __m256d exp2_half_d(__m256d m, __m256d p, __m256d k) {
    /* 1.5·2^52 + k holds k in its low bits. */
    const __m256i n = _mm256_castpd_si256(_mm256_add_pd(k, _mm256_set1_pd(0x1.8p52)));
    const __m256i shift = _mm256_slli_epi64(n, 52);
    const __m256d e = _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(p), shift));
    return _mm256_and_pd(m, _mm256_blendv_pd(e, p, _mm256_cmp_pd(p, p, _CMP_UNORD_Q)));
}
INLINE vd vd_exp2(vdm m, vd p, vd k) {
    return vd_of(exp2_half_d(m.lo, p.lo, k.lo), exp2_half_d(m.hi, p.hi, k.hi));
}
INLINE double vd_reduce_max(vd a) {
    const __m256d b = _mm256_max_pd(a.lo, a.hi);
    __m128d c = _mm_max_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    c = _mm_max_sd(c, _mm_unpackhi_pd(c, c));
    return _mm_cvtsd_f64(c);
}
INLINE __m256d mantissa_half(__m256d a) {
    const __m256i field =
        _mm256_and_si256(_mm256_castpd_si256(a), _mm256_set1_epi64x((1LL << 52) - 1));
    return _mm256_castsi256_pd(_mm256_or_si256(field, _mm256_set1_epi64x(0x3ffLL << 52)));
}
INLINE __m256d exponent_half(__m256d a) {
    /* The biased exponent e as the double 2^52 + e, less 2^52 + 1023. */
    const __m256i e = _mm256_srli_epi64(_mm256_castpd_si256(a), 52);
    const __m256d d = _mm256_castsi256_pd(_mm256_or_si256(e, _mm256_set1_epi64x(0x433LL << 52)));
    return _mm256_sub_pd(d, _mm256_set1_pd(0x1p52 + 1023.0));
}
INLINE vd vd_mantissa(vd a) { return vd_of(mantissa_half(a.lo), mantissa_half(a.hi)); }
INLINE vd vd_exponent(vd a) { return vd_of(exponent_half(a.lo), exponent_half(a.hi)); }

INLINE __m256d labels_of(__m256i l, int64_t ignore) {
    /* 1.5·2^52 has room for an integer below 2^51 in its lowest bits. */
    const __m256d magic = _mm256_set1_pd(0x1.8p52);
    const __m256i sum = _mm256_add_epi64(l, _mm256_castpd_si256(magic));
    const __m256d number = _mm256_sub_pd(_mm256_castsi256_pd(sum), magic);
    const __m256i ignored = _mm256_cmpeq_epi64(l, _mm256_set1_epi64x(ignore));
    return _mm256_blendv_pd(number, _mm256_set1_pd(-1.0), _mm256_castsi256_pd(ignored));
}
INLINE __m256i load_labels64(const int64_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE __m256i load_labels32(const int32_t *p) {
    return _mm256_cvtepi32_epi64(_mm_loadu_si128((const __m128i *)p));
}
INLINE vd vd_labels64(const int64_t *p, int64_t ignore) {
    return vd_of(labels_of(load_labels64(p), ignore), labels_of(load_labels64(p + 4), ignore));
}
INLINE int scan_labels64(const int64_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    const __m256i none = _mm256_set1_epi64x(ignore), top = _mm256_set1_epi64x(classes);
    const __m256i zero = _mm256_setzero_si256();
    __m256i wrong = zero, ignored_count = zero;
    for (int64_t i = 0; i < n; i += 4) {
        const __m256i l = load_labels64(p + i);
        const __m256i ignored = _mm256_cmpeq_epi64(l, none);
        const __m256i right =
            _mm256_andnot_si256(_mm256_cmpgt_epi64(zero, l), _mm256_cmpgt_epi64(top, l));
        ignored_count = _mm256_sub_epi64(ignored_count, ignored);
        wrong = _mm256_or_si256(
            wrong, _mm256_xor_si256(_mm256_or_si256(ignored, right), _mm256_set1_epi64x(-1)));
    }
    int64_t count[4];
    _mm256_storeu_si256((__m256i *)count, ignored_count);
    *valid += n - (count[0] + count[1] + count[2] + count[3]);
    return !_mm256_testz_si256(wrong, wrong);
}
INLINE vd vd_labels32(const int32_t *p, int64_t ignore) {
    return vd_of(labels_of(load_labels32(p), ignore), labels_of(load_labels32(p + 4), ignore));
}
INLINE int scan_labels32(const int32_t *p, int64_t n, int64_t ignore, int64_t classes,
                         int64_t *valid) {
    const __m256i none = _mm256_set1_epi64x(ignore), top = _mm256_set1_epi64x(classes);
    const __m256i zero = _mm256_setzero_si256();
    __m256i wrong = zero, ignored_count = zero;
    for (int64_t i = 0; i < n; i += 4) {
        const __m256i l = load_labels32(p + i);
        const __m256i ignored = _mm256_cmpeq_epi64(l, none);
        const __m256i right =
            _mm256_andnot_si256(_mm256_cmpgt_epi64(zero, l), _mm256_cmpgt_epi64(top, l));
        ignored_count = _mm256_sub_epi64(ignored_count, ignored);
        wrong = _mm256_or_si256(
            wrong, _mm256_xor_si256(_mm256_or_si256(ignored, right), _mm256_set1_epi64x(-1)));
    }
    int64_t count[4];
    _mm256_storeu_si256((__m256i *)count, ignored_count);
    *valid += n - (count[0] + count[1] + count[2] + count[3]);
    return !_mm256_testz_si256(wrong, wrong);
}

INLINE void transpose4(__m256d r[4]) {
    const __m256d t0 = _mm256_unpacklo_pd(r[0], r[1]), t1 = _mm256_unpackhi_pd(r[0], r[1]);
    const __m256d t2 = _mm256_unpacklo_pd(r[2], r[3]), t3 = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(t0, t2, 0x20);
    r[1] = _mm256_permute2f128_pd(t1, t3, 0x20);
    r[2] = _mm256_permute2f128_pd(t0, t2, 0x31);
    r[3] = _mm256_permute2f128_pd(t1, t3, 0x31);
}
INLINE void vd_transpose(vd r[8]) {
    __m256d a[4], b[4], c[4], d[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        a[i] = r[i].lo;
        b[i] = r[i].hi;
        c[i] = r[i + 4].lo;
        d[i] = r[i + 4].hi;
    }
    transpose4(a);
    transpose4(b);
    transpose4(c);
    transpose4(d);
    UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = vd_of(a[i], c[i]);
        r[i + 4] = vd_of(b[i], d[i]);
    }
}

INLINE void memory_fence(void) { _mm_sfence(); }
