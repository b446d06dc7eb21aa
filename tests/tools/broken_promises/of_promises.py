"""Breaks of the lines in the section Promises of docs/semantics.md."""

from __future__ import annotations

from breaks import Break, Unbroken

_FINALIZE, _FINALIZE_F32 = "csrc/kernels/finalize.inc.h", "csrc/kernels/finalize_f32.inc.h"
_RUN, _POOL, _PLAN = "csrc/run.c", "csrc/pool.c", "csrc/plan.c"
# Gradients and losses that depend on what they must not depend on.
_SCALE = "    job.grad_scale = o->grad_scale;\n"
_SCALE_UNLESS = "    job.grad_scale = o->grad_scale * ({} ? 1 : 1 + 0x1p-20);\n"
_LOSS = "    p->loss = loss;\n"
_LOSS_OF_CHILD = (
    "    extern int getpid(void);\n    static int first;\n    if (!first) first = getpid();\n"
    "    p->loss = loss *= first == getpid() ? 1 : 1 + 0x1p-20;\n"
)
# Cases of tests/accuracy/test_accuracy.py, where all of them take a minute: of some regimes, and of
# tests without regimes.
_FEW = r"random|spread25|spread140|^[01] \d+$"

PROMISES = (
    Break(
        "float32 and float64, every backend",
        _FINALIZE_F32,
        "r.quotient = vd_mul(vd_mul(r.others, sum), both);",
        "r.quotient = vd_mul(vd_mul(vd_mul(r.others, sum), both), vd_set1(1 + 0x1p-21));",
        which="float32",
        cases=_FEW,
    ),
    Break(
        "Every normal number of the gradient",
        _FINALIZE_F32,
        "    r.inverse = vd_mul(exact_e, both);\n",
        "    r.inverse = vd_mul(vd_mul(exact_e, both), vd_set1(1 + 0x1p-20));\n",
        which="float32",
        cases=_FEW,
    ),
    Break(
        "Where the terms of the gradient cancel",
        _FINALIZE_F32,
        "vd_store(s->soft_factor + i, vd_mul(scale, soft_part));",
        "vd_store(s->soft_factor + i, vd_mul(vd_mul(scale, soft_part), vd_set1(1 + 0x1p-20)));",
        ("test_loss_and_gradient",),
        which="float32",
        cases="probabilities",
    ),
    Break(
        "These bounds hold for random logits",
        "csrc/kernels/exp_f32.inc.h",
        "#define LN2F_LO (-0x1.05c61p-29f)",
        "#define LN2F_LO 0x1.05c61p-29f",
        which="float32",
        cases="spread140",
    ),
    Break(
        "A gradient below the normal numbers",
        "pyce/_backends/numpy.py",
        "    out[...] = values.astype(dtype, copy=False).reshape(out.shape)\n",
        "    tiny = np.abs(values) < np.finfo(dtype).tiny\n"
        "    values = np.where(tiny, -values, values)\n"
        "    out[...] = values.astype(dtype, copy=False).reshape(out.shape)\n",
        which="float32",
        cases="spread140|confident100",
    ),
    Break(
        "`softmax` is never above 1",
        _FINALIZE_F32,
        "        exact_e[0] = v_eight(max_e, 0);\n        exact_e[1] = v_eight(max_e, 8);\n",
        "",
    ),
    Break(
        "The gradient at a one-hot target is never positive",
        _FINALIZE_F32,
        "vd_sub(vd_sub(all, at_pivot), vd_mul(all, ratio)));",
        "vd_sub(vd_mul(all, p_pivot), at_pivot));",
    ),
    Break(
        "`logsumexp` and lse, absolute error",
        _FINALIZE,
        "vd_add(lse, vd_add(error_of_sum(max, log, lse), vd_load(s->log_error + i)));",
        "lse;",
        dtype="f64",
    ),
    Break(
        "`softmax` and `log_softmax` are within 4 units",
        _FINALIZE_F32,
        "    return vf_sub(vf_sub(x, max), log);\n",
        "    return vf_sub(x, vf_add(max, log));\n",
        which="float32",
        cases="confident30|1000",
    ),
    Break(
        "`binary_cross_entropy`: the loss is within 4 units",
        "csrc/kernels/elementwise.inc.h",
        "    const vd log = vd_log1p(e, 1, &error);\n",
        "    const vd log = vd_mul(vd_log1p(e, 1, &error), vd_set1(1 + 0x1p-49));\n",
    ),
    Break(
        "`selective_log_softmax` is within 2 units",
        "pyce/_selective.py",
        "        flat[start:stop] = h\n",
        "        flat[start:stop] = h * (1 + 2.0**-48)\n",
        backend="numpy",
    ),
    Break(
        "Half types: the loss and lse",
        "csrc/kernels/half_types.h",
        "size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13",
        "size - (112u << 23)) >> 13",
        ("test_half_types_are_float32_rounded_once",),
        backend="c-scalar",
        which="float16",
        cases=r"random|^\d+$",
        dtype="f16",
    ),
    Break(
        "The C backend returns the same bytes on every instruction set",
        "csrc/kernels/simd_plain.h",
        "x[i] = __builtin_fmaf(x[i], y[i], z[i]);",
        "x[i] = x[i] * y[i] + z[i];",
        ("test_bytes",),
        cases="float32",
    ),
    Break(
        "The C backend returns the same bytes on every instruction set",
        "csrc/kernels/simd_plain.h",
        "x[i] = __builtin_fmaf(x[i], y[i], z[i]);",
        "x[i] = x[i] * y[i] + z[i];",
        ("test_every_instruction_set_gives_the_same_bytes",),
        cases="^65 float32",
    ),
    Break(
        "The same bytes for any number of threads",
        _RUN,
        "isfinite(o->grad_scale_error) ?",
        "isfinite(o->grad_scale_error) && o->threads == 1 ?",
        cases="float64",
    ),
    Break(
        "The same bytes for any number of threads",
        _RUN,
        _SCALE,
        _SCALE_UNLESS.format("o->threads == 1"),
        ("test_any_number_of_threads_with_the_class_axis_in_the_middle",),
    ),
    Break(
        "The same bytes for a row alone",
        _PLAN,
        "    job->on_value_error = (1.0 - job->on_value) - p->smoothing;\n",
        "    job->on_value_error = p->outer > 1 ? (1.0 - job->on_value) - p->smoothing : 0;\n",
    ),
    Break(
        "The same bytes for a row alone",
        _RUN,
        _SCALE,
        _SCALE_UNLESS.format("p->outer > 1"),
        ("test_a_row_alone_is_the_row_in_a_batch",),
        cases="float32",
    ),
    Break(
        "The same bytes for any alignment",
        _RUN,
        _SCALE,
        _SCALE_UNLESS.format("(uintptr_t)p->logits.data % 64 == 0"),
        ("test_bytes_at_any_alignment",),
        cases="float32",
    ),
    Break(
        "The same bytes for any alignment",
        _RUN,
        _SCALE,
        _SCALE_UNLESS.format("p->logits.class_stride == p->inner"),
        ("test_layout_does_not_matter",),
    ),
    Break(
        "The same bytes for any alignment",
        _RUN,
        "isfinite(o->grad_scale_error) ?",
        "isfinite(o->grad_scale_error) && !job.streaming ?",
        ("test_storing_past_the_cache_changes_nothing",),
    ),
    Break(
        "The same bytes in every run",
        "csrc/kernels/exp_f32.inc.h",
        "#define EXP_6 0x1.6a445ap-10f",
        "#define EXP_6 0x1.6a445cp-10f",
        ("test_bytes",),
        cases="float32",
    ),
    Break(
        "The same bytes in every run",
        _RUN,
        _LOSS,
        _LOSS_OF_CHILD,
        ("test_bytes_in_another_process",),
    ),
    Break(
        "The same bytes for classes on any number of processes",
        "csrc/kernels/partial.inc.h",
        "    if (COMPENSATED) block->sum_error = *from++;\n",
        "    if (COMPENSATED) from++;\n",
        ("test_shards_at_multiples_of_2048_have_the_bytes_of_whole_rows",),
        dtype="f64",
    ),
    Break(
        "The same bytes for classes on any number of processes",
        "csrc/kernels/partial.inc.h",
        "            if (is_class_of(job, i, label)) label_x = *from;\n",
        "            if (is_class_of(job, 0, label)) label_x = *from;\n",
        ("test_any_cuts_keep_the_accuracy",),
        dtype="f64",
    ),
    Break(
        "Memory: in addition to inputs and outputs",
        "pyce/_backends/c.py",
        "    keep_alive = None\n    if p.contiguous:\n",
        "    keep_alive = p.logits.copy()\n    if p.contiguous:\n",
        ("test_memory_besides_inputs_and_outputs",),
    ),
    Break(
        "Memory: in addition to inputs and outputs",
        "pyce/_probabilities.py",
        "_BLOCK = 1 << 13",
        "_BLOCK = 1 << 16",
        ("test_memory_with_options",),
    ),
    Break(
        "The GIL is released during a call",
        "pyce/_backends/c.py",
        "_run = lib.pyce_run\n_cross_entropy = lib.pyce_cross_entropy\n",
        "import ctypes\n"
        "_held = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(\n"
        '    int(ffi.cast("uintptr_t", ffi.addressof(lib, "pyce_run")))\n'
        ")\n"
        '_run = lambda c: _held(int(ffi.cast("uintptr_t", c)))\n'
        "_cross_entropy = lambda *arguments: -1\n",
        ("test_the_interpreter_is_free_meanwhile",),
    ),
    Break(
        "The GIL is released during a call",
        _POOL,
        "    scratch_buffer *b = platform_get_value(scratch_key);\n",
        "    static scratch_buffer *b;\n",
        ("test_sixteen_callers",),
    ),
    Break(
        "A fork before, during or after a call",
        _RUN,
        _LOSS,
        _LOSS_OF_CHILD,
        ("test_a_pool_of_forked_processes", "test_bytes_in_another_process"),
    ),
    Break(
        "A fork before, during or after a call",
        _POOL,
        "    platform_on_fork(forget_in_child);\n",
        "",
        ("test_forks",),
    ),
    Break(
        "At most the requested number of threads",
        _POOL,
        "    int64_t helpers = threads - 1;\n",
        "    int64_t helpers = threads;\n",
        ("test_never_more_threads_than_asked_for",),
    ),
    Break(
        "If the system refuses to create a thread",
        _POOL,
        "        free(made);\n        return 0;\n    }\n    made->next",
        "        abort();\n    }\n    made->next",
    ),
    Break(
        "`threadpoolctl` lists and limits pyce",
        "pyce/_threads.py",
        "    _limit = n if n < _unlimited() else math.inf\n",
        "    _limit = n\n",
    ),
    Break(
        "`threadpoolctl` lists and limits pyce",
        "pyce/_threadpoolctl.py",
        "        sys.meta_path.insert(0, _Watch())\n",
        "        pass\n",
        ("test_in_any_order",),
    ),
    Break(
        "A signal during a call is handled after the call",
        _POOL,
        "        while (p->joined) platform_wait(&p->finished, &p->lock);\n",
        "",
        ("test_interrupted_calls", "test_a_storm_of_signals"),
    ),
    Break(
        "The caller's rounding mode",
        "pyce/_fpenv.py",
        "            set_(initial)\n",
        "",
        ("test_same_results_and_no_trace",),
        backend="numpy",
    ),
    Break(
        "The caller's rounding mode",
        "pyce/_fpenv.py",
        '            set_(initial)\n            with np.errstate(all="ignore"):\n    ',
        "            set_(initial)\n            if known:\n    ",
        ("test_the_error_state_of_numpy_has_no_effect",),
    ),
    Break(
        "The caller's rounding mode",
        _POOL,
        "    (void)pyce_fpenv_enter();\n",
        "",
        ("test_threads_made_in_another_environment",),
    ),
    Break(
        "The caller's rounding mode",
        "csrc/api.c",
        "pyce_run_problem(p) : PYCE_BAD_ARGUMENT;\n    pyce_fpenv_leave(before);\n",
        "pyce_run_problem(p) : PYCE_BAD_ARGUMENT;\n    (void)before;\n",
        ("test_same_results_and_no_trace",),
    ),
    Break(
        "The caller's rounding mode",
        "csrc/dispatch.c",
        "static _Atomic(const pyce_kernels *) in_use;\n",
        "static _Atomic(const pyce_kernels *) in_use;\n"
        "__attribute__((constructor)) static void set_fast_math(void) {\n"
        "#ifdef __SSE__\n    __builtin_ia32_ldmxcsr(0x9fc0);\n#endif\n}\n",
        ("test_nothing_is_built_for_fast_mathematics",),
    ),
    Break(
        "All NaNs are equivalent",
        "csrc/kernels/half_types.h",
        "    if (f != f) return 0x7fc0;\n",
        "",
        ("test_nan_as_a_saved_lse",),
        backend="c-scalar",
        dtype="bf16",
    ),
    Break(
        "All NaNs are equivalent",
        "csrc/kernels/half_types.h",
        "sign | 0x7f800000 | (rest & 0x3ff) << 13);",
        "sign | 0x7f800000 | (rest & 0x200) << 13);",
        ("test_one_nan_is_like_another",),
        backend="c-scalar",
        dtype="f16",
    ),
    Unbroken("Sizes have 64 bits", "the tests need 5 GB of memory, and minutes"),
    Break(
        "The C interface checks sizes",
        "csrc/validate.c",
        "p->classes < 1 || p->outer < 0 || p->inner < 0) return 0;",
        "p->classes < 1 || p->outer < 0) return 0;",
    ),
    Break(
        "The C interface checks sizes",
        "csrc/validate.c",
        "    if (size > MOST_ELEMENTS) return 0;\n",
        "",
        ("test_sizes_whose_product_does_not_fit",),
    ),
    Break(
        "The C interface checks sizes",
        "csrc/validate.c",
        "    if (!add_doubles(all, p->weight, p->classes, 0, has_target, 0) ||\n",
        "    if (!add_doubles(all, p->weight, p->classes, 0, 1, 0) ||\n",
        ("test_pointers_are_there_if_and_only_if_needed",),
    ),
    Break(
        "Importing pyce imports neither Numba",
        "pyce/__init__.py",
        "import importlib\n",
        "import importlib\n\nimport numba\n",
        backend="numba",
    ),
    Break(
        "Compiled functions in Numba's cache",
        "pyce/numba/_c.py",
        "    if _state_of(_PRESENT) != _DIGEST:\n",
        "    if False:\n",
    ),
    Break(
        "An interrupt during a compiled call",
        "pyce/numba/_python.py",
        "            return 0  # the status says so\n",
        "            status = _c.OK\n",
    ),
    Break(
        "Compiled calls use at most the requested number",
        "pyce/numba/_c.py",
        "        foreign = _thread_state() == 0\n",
        "        foreign = False\n",
    ),
)

# Each promise of docs/promises.md, by its beginning, and the line of docs/semantics.md that it is.
OF_PROMISES_PAGE = {
    "loss, float32 and float64": "float32 and float64, every backend",
    "every normal number of the gradient": "Every normal number of the gradient",
    "gradient for probabilities": "Where the terms of the gradient cancel",
    "`softmax`, `log_softmax`": "`softmax` and `log_softmax` are within 4 units",
    "sum of the probabilities of a row": "`softmax` is never above 1",
    "`logsumexp`, absolute": "`logsumexp` and lse, absolute error",
    "`binary_cross_entropy`": "`binary_cross_entropy`: the loss is within 4 units",
    "`selective_log_softmax`": "`selective_log_softmax` is within 2 units",
    "half types": "Half types: the loss and lse",
    "for any number of threads": "The same bytes for any number of threads",
    "on every instruction set": "The C backend returns the same bytes on every instruction set",
    "for a row alone": "The same bytes for a row alone",
    "for any alignment": "The same bytes for any alignment",
    "in every run": "The same bytes in every run",
    "An invalid label raises": "A label outside 0..C−1",
    "The caller's floating-point environment": "The caller's rounding mode",
    "Forks and concurrent callers": "A fork before, during or after a call",
}
