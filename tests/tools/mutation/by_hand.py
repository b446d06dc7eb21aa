"""Mutants written by hand: mistakes that the kernels and their callers must never have."""

from __future__ import annotations

_KERNELS = r"csrc/kernels/.*\.inc\.h"
_OTHERS = r"csrc/\w+\.c"
_PLAIN = r"csrc/kernels/simd_plain\.h"
_AVX2, _AVX512 = r"csrc/kernels/simd_avx2\.h", r"csrc/kernels/simd_avx512\.h"
_ARGUMENTS = r"pyce/_(arguments|problem)\.py"

# (regular expression of files, text that stands once in all of them, text instead, name)
BY_HAND = (
    # The class whose term the gradient takes from the others is in the sum itself.
    (
        _KERNELS,
        "sum_add(&sum, v_drop(at_pivot[j], v[j]));",
        "sum_add(&sum, v[j]);",
        "pivot not excluded",
    ),
    (
        _KERNELS,
        "return v_drop(v_eq(pivot, v_set1((real)c)), v_load(block + c * LANES));",
        "return v_load(block + c * LANES);",
        "pivot not excluded",
    ),
    (r"csrc/kernels/block\.inc\.h", "        e[pivot] = 0;", ";", "pivot not excluded"),
    (r"csrc/kernels/medium\.inc\.h", "            e[pivot] = 0;", ";", "pivot not excluded"),
    (_KERNELS, "        *at[i] = 0;", ";", "pivot not excluded"),
    # The pivot's exponential is not restored.
    (
        _KERNELS,
        "if (u->pivot >= 0 && u->kept) u->e[u->pivot] = u->pivot_e;",
        "",
        "pivot not restored",
    ),
    # Not the largest of all.
    (_KERNELS, "return v_max(m0, m1);", "return m0;", "wrong maximum"),
    (_KERNELS, "if (c < n) m0 = v_max(v_load(x + c * LANES), m0);", "", "wrong maximum"),
    (
        _KERNELS,
        "block_max(unit_row(job, u, i), n);",
        "block_max(unit_row(job, u, i), n - 1);",
        "wrong maximum",
    ),
    (
        _KERNELS,
        "return v_max(v_max(m0, m1), v_max(m2, m3));",
        "return v_max(v_max(m0, m1), m2);",
        "wrong maximum",
    ),
    (
        _KERNELS,
        "if (c < n) m1 = v_max(m_loadn(x + c, n - c, (real)-INFINITE), m1);",
        "",
        "wrong maximum",
    ),
    (_KERNELS, "if (blocks[k].max > max) {", "if (blocks[k].max < max) {", "wrong maximum"),
    # The last of the numbers that fill no vector.
    (
        _KERNELS,
        "m_loadn(row[i] + c, width, 0)",
        "m_loadn(row[i] + c, width - 1, 0)",
        "tail lane dropped",
    ),
    *(
        (
            rf"csrc/kernels/{name}\.inc\.h",
            "m_loadn(x + c, left, (real)-INFINITE);",
            "m_loadn(x + c, left - 1, (real)-INFINITE);",
            "tail lane dropped",
        )
        for name in ("block", "medium")
    ),
    *(
        (_PLAIN, old, old.replace("(size_t)n", "(size_t)(n - 1)"), "tail lane dropped")
        for size in ("float", "double")
        for old in (
            f"memcpy(r.a, m, (size_t)n * sizeof({size}));",
            f"memcpy(m, x.a, (size_t)n * sizeof({size}));",
        )
    ),
    *(
        (_PLAIN, old, old.replace("i < n", "i < n - 1"), "tail lane dropped")
        for half in ("f16", "bf16")
        for old in (
            f"for (int i = 0; i < n; i++) r.a[i] = from_{half}(p[i]);",
            f"for (int i = 0; i < n; i++) p[i] = to_{half}(x.a[i]);",
        )
    ),
    *(
        (
            _AVX2,
            f"_mm256_cmpgt_{old}(n - first), index);",
            f"_mm256_cmpgt_{old}(n - 1 - first), index);",
            "tail lane dropped",
        )
        for old in ("epi32(_mm256_set1_epi32", "epi64(_mm256_set1_epi64x")
    ),
    *(
        (_AVX2, old, old.replace("(size_t)n", "(size_t)(n - 1)"), "tail lane dropped")
        for half in ("f16", "bf16")
        for old in (
            f"memcpy(h, p, (size_t)n * sizeof *h);\n    vf_store(f, vf_load_{half}(h));",
            f"vf_store_{half}(h, a);\n    memcpy(p, h, (size_t)n * sizeof *h);",
        )
    ),
    *(
        (_AVX512, old, old.replace("(1u << n) - 1", "(1u << (n - 1)) - 1"), "tail lane dropped")
        for old in (
            "_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << n) - 1), p);",
            "_mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a);",
            "INLINE __mmask16 half_mask(int n) { return (__mmask16)((1u << n) - 1); }",
            "_mm512_mask_loadu_pd(_mm512_set1_pd(fill), (__mmask8)((1u << n) - 1), p);",
            "_mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), a);",
        )
    ),
    # Where blocks, or the vectors of a row, begin and end.
    (
        _KERNELS,
        "const vreal max = load_and_max(job, rows, first, n, room->x);",
        "const vreal max = load_and_max(job, rows, first - k, n, room->x);",
        "wrong block bound",
    ),
    (
        _KERNELS,
        "for (; c + STEP <= n; c += STEP) {",
        "for (; c + STEP - 1 <= n; c += STEP) {",
        "wrong block bound",
    ),
    (
        _KERNELS,
        "const int64_t left = job->p->classes - k * PYCE_BLOCK;",
        "const int64_t left = job->p->classes - k * PYCE_BLOCK - 1;",
        "wrong block bound",
    ),
    (
        _KERNELS,
        "return left < PYCE_BLOCK ? (int)left : PYCE_BLOCK;",
        "return left < PYCE_BLOCK ? (int)left : PYCE_BLOCK - 1;",
        "wrong block bound",
    ),
    (
        _KERNELS,
        "return c >= first && c < first + n ?",
        "return c > first && c < first + n ?",
        "wrong block bound",
    ),
    (
        r"csrc/kernels/kernels\.h",
        "return classes / PYCE_BLOCK + (classes % PYCE_BLOCK != 0);",
        "return classes / PYCE_BLOCK;",
        "wrong block bound",
    ),
    # A label that is the number of classes.
    (
        _KERNELS,
        "wrong |= label != ignore && (label < 0 || label >= classes);",
        "wrong |= label != ignore && (label < 0 || label > classes);",
        "label check off by one",
    ),
    (
        _KERNELS,
        "if (label != ignore && (label < 0 || label >= classes)) return i;",
        "if (label != ignore && (label < 0 || label > classes)) return i;",
        "label check off by one",
    ),
    *(
        (isa, old, old.replace(right, wrong), "label check off by one")
        for bits in (64, 32)
        for isa, right, wrong, old in (
            (
                _PLAIN,
                ">= classes",
                "> classes",
                f"CALLED int scan_labels{bits}(const int{bits}_t *p, int64_t n, int64_t ignore, "
                "int64_t classes,\n                         int64_t *valid) {\n    int wrong = 0;\n"
                "    for (int64_t i = 0; i < n; i++) {\n        *valid += p[i] != ignore;\n"
                "        wrong |= p[i] != ignore && (p[i] < 0 || p[i] >= classes);",
            ),
            (
                _AVX2,
                "(top, l)",
                "(_mm256_add_epi64(top, _mm256_set1_epi64x(1)), l)",
                f"const __m256i l = load_labels{bits}(p + i);\n"
                "        const __m256i ignored = _mm256_cmpeq_epi64(l, none);\n"
                "        const __m256i right =\n"
                "            _mm256_andnot_si256(_mm256_cmpgt_epi64(zero, l), "
                "_mm256_cmpgt_epi64(top, l));",
            ),
            (
                _AVX512,
                "cmpge",
                "cmpgt",
                f"const __m512i l = load_labels{bits}(p + i);\n"
                "        const __mmask8 counts = _mm512_cmpneq_epi64_mask(l, none);\n"
                "        *valid += __builtin_popcount(counts);\n"
                "        wrong |= _mm512_mask_cmpge_epu64_mask(counts, l, top);",
            ),
        )
    ),
    (_ARGUMENTS, "(labels >= self.classes)", "(labels > self.classes)", "label check off by one"),
    (_ARGUMENTS, "(labels < 0)", "(labels <= 0)", "label check off by one"),
    (_ARGUMENTS, "(fits >= classes)", "(fits > classes)", "label check off by one"),
)
