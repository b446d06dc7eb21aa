"""What mutate.py does not make up itself: mutants by hand, and where none can be seen.

Single ones that no test can see are in equivalent_mutants.txt.
"""

from __future__ import annotations

_KERNELS = "csrc/kernels/"
_LANES, _SHORT, _WIDE = (f"{_KERNELS}{name}.inc.h" for name in ("lanes", "short", "wide"))
_SCALAR, _AVX2, _AVX512 = (f"{_KERNELS}simd_{isa}.h" for isa in ("scalar", "avx2", "avx512"))
_ARGUMENTS, _PROBLEM = "pyce/_arguments.py", "pyce/_problem.py"

# (file, what it says once, what it says instead, name)
NAMED = (
    # The class whose term the gradient takes from the others is in the sum itself.
    (_LANES, "v[j] = F(drop)(mine, v[j]);", "", "target not excluded"),
    (
        _LANES,
        "return F(drop)(F(eq)(own, F(set1)((REAL)c)), F(load)(tile + c * W));",
        "return F(load)(tile + c * W);",
        "target not excluded",
    ),
    (_SHORT, "NAME(drop_own)(v, own - c);\n        }", "}", "target not excluded"),
    (_SHORT, "if (own >= c) NAME(drop_own)(v, own - c);", "", "target not excluded"),
    (_WIDE, "v[j] = F(drop)(F(lane)(own - j * W), v[j]);", ";", "target not excluded"),
    # Not the largest of all.
    (_LANES, "return F(max)(m0, m1);", "return m0;", "wrong maximum"),
    (_LANES, "if (c < n) m0 = F(max)(F(load)(x + c * W), m0);", "", "wrong maximum"),
    (
        _SHORT,
        "NAME(block_max)(NAME(short_row)(job, unit, i), n);",
        "NAME(block_max)(NAME(short_row)(job, unit, i), n - 1);",
        "wrong maximum",
    ),
    (
        _WIDE,
        "return F(max)(F(max)(m0, m1), F(max)(m2, m3));",
        "return F(max)(F(max)(m0, m1), m2);",
        "wrong maximum",
    ),
    (
        _WIDE,
        "if (c < n) m1 = F(max)(LOADN(x + c, n - c, (REAL)-INFINITE), m1);",
        "",
        "wrong maximum",
    ),
    (_WIDE, "if (blocks[k].max > max) {", "if (blocks[k].max < max) {", "wrong maximum"),
    # The last of the numbers that fill no vector.
    (_LANES, "LOADN(row[i] + c, width, 0)", "LOADN(row[i] + c, width - 1, 0)", "tail lane dropped"),
    (
        _SHORT,
        "v[j] = LOADN(x + c + j * W, last, (REAL)-INFINITE);",
        "v[j] = LOADN(x + c + j * W, last - 1, (REAL)-INFINITE);",
        "tail lane dropped",
    ),
    (
        _WIDE,
        "LOAD(x + j * W) : LOADN(x + j * W, left, (REAL)-INFINITE);",
        "LOAD(x + j * W) : LOADN(x + j * W, left - 1, (REAL)-INFINITE);",
        "tail lane dropped",
    ),
    (
        _SCALAR,
        "memcpy(r.a, m, (size_t)n * sizeof(T));",
        "memcpy(r.a, m, (size_t)(n - 1) * sizeof(T));",
        "tail lane dropped",
    ),
    (
        _SCALAR,
        "memcpy(m, x.a, (size_t)n * sizeof(T));",
        "memcpy(m, x.a, (size_t)(n - 1) * sizeof(T));",
        "tail lane dropped",
    ),
    (
        _SCALAR,
        "for (int i = 0; i < n; i++) r.a[i] = from_##type(p[i]);",
        "for (int i = 0; i < n - 1; i++) r.a[i] = from_##type(p[i]);",
        "tail lane dropped",
    ),
    (
        _SCALAR,
        "for (int i = 0; i < n; i++) p[i] = to_##type(x.a[i]);",
        "for (int i = 0; i < n - 1; i++) p[i] = to_##type(x.a[i]);",
        "tail lane dropped",
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
    (
        _AVX2,
        "memcpy(h, p, (size_t)n * sizeof *h);",
        "memcpy(h, p, (size_t)(n - 1) * sizeof *h);",
        "tail lane dropped",
    ),
    (
        _AVX2,
        "memcpy(p, h, (size_t)n * sizeof *h);",
        "memcpy(p, h, (size_t)(n - 1) * sizeof *h);",
        "tail lane dropped",
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
        _LANES,
        "const V max = NAME(load_max)(job, &rows, k * PYCE_BLOCK, size, room->x);",
        "const V max = NAME(load_max)(job, &rows, k * (PYCE_BLOCK - 1), size, room->x);",
        "wrong block bound",
    ),
    (
        _SHORT,
        "const int count = (n - c + W - 1) / W, last",
        "const int count = (n - c) / W, last",
        "wrong block bound",
    ),
    (
        _WIDE,
        "const int64_t left = job->p->classes - k * PYCE_BLOCK;",
        "const int64_t left = job->p->classes - k * PYCE_BLOCK - 1;",
        "wrong block bound",
    ),
    (
        _WIDE,
        "return left < PYCE_BLOCK ? (int)left : PYCE_BLOCK;",
        "return left < PYCE_BLOCK ? (int)left : PYCE_BLOCK - 1;",
        "wrong block bound",
    ),
    (
        _WIDE,
        "return c >= first && c < first + n ?",
        "return c > first && c < first + n ?",
        "wrong block bound",
    ),
    (
        "csrc/pyce.c",
        "job->blocks = (p->classes + PYCE_BLOCK - 1) / PYCE_BLOCK;",
        "job->blocks = p->classes / PYCE_BLOCK;",
        "wrong block bound",
    ),
    # A label that is the number of classes.
    (
        _KERNELS + "elementwise.inc.h",
        "wrong |= label != ignore && (label < 0 || label >= classes);",
        "wrong |= label != ignore && (label < 0 || label > classes);",
        "label check off by one",
    ),
    (
        _KERNELS + "elementwise.inc.h",
        "if (label != ignore && (label < 0 || label >= classes)) return i;",
        "if (label != ignore && (label < 0 || label > classes)) return i;",
        "label check off by one",
    ),
    (_SCALAR, "p[i] >= classes", "p[i] > classes", "label check off by one"),
    (
        _AVX2,
        "_mm256_cmpgt_epi64(top, l)",
        "_mm256_cmpgt_epi64(_mm256_add_epi64(top, _mm256_set1_epi64x(1)), l)",
        "label check off by one",
    ),
    (
        _AVX512,
        "_mm512_mask_cmpge_epu64_mask",
        "_mm512_mask_cmpgt_epu64_mask",
        "label check off by one",
    ),
    (_PROBLEM, "(labels >= self.classes)", "(labels > self.classes)", "label check off by one"),
    (_PROBLEM, "(labels < 0)", "(labels <= 0)", "label check off by one"),
    (_ARGUMENTS, "(fits >= classes)", "(fits > classes)", "label check off by one"),
)

# (file, function, reason): survivors within functions that decide how, but not what.
EQUIVALENT_WITHIN: tuple[tuple[str, str, str], ...] = (
    (_LANES, "fetch", "what is fetched ahead"),
    ("csrc/pyce.c", "find_last_cache", "how large the cache is taken to be"),
    ("csrc/pyce.c", "grain_of", "how rows are dealt to threads"),
    ("csrc/pyce.c", "threads_for", "how many threads are worth it"),
)
