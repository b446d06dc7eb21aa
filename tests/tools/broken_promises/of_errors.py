"""Breaks of the lines in the section Errors of docs/semantics.md."""

from __future__ import annotations

from breaks import Break

_ARGUMENTS, _BACKENDS = "pyce/_arguments.py", "pyce/_backends/__init__.py"
_SHARDS = "pyce/_shards.py"

ERRORS = (
    Break(
        "A label outside 0..C−1",
        "csrc/validate.c",
        "for (int64_t i = 0; i < n && status == PYCE_OK; i++) {",
        "for (int64_t i = 0; i < n; i++) {",
    ),
    Break(
        "A label outside 0..C−1",
        "csrc/kernels/elementwise.inc.h",
        "if (label != ignore && (label < 0 || label >= classes)) return i;",
        "if (label != ignore && (label < 0 || label >= classes)) return end - 1;",
    ),
    Break(
        "A label outside 0..C−1",
        "pyce/_problem.py",
        'f"target of row {row} is {value}, outside the valid range 0..{classes - 1} "',
        'f"target of row {row} is {value}, outside the valid range 1..{classes} "',
    ),
    Break(
        "After any error every output",
        _ARGUMENTS,
        '    native = _fits(out, "out", logits.shape, logits.dtype, given, what)\n',
        '    native = _fits(out, "out", logits.shape, logits.dtype, given, what)\n'
        "    if not np.shares_memory(out, logits):\n"
        "        out[...] = 0\n",
    ),
    Break(
        "After any error every output",
        _ARGUMENTS,
        '    native = _fits(out, "out", logits.shape, logits.dtype, given, what)\n    out =',
        "    if isinstance(out, np.ndarray) and out.flags.writeable:\n"
        "        out[...] = 0\n"
        '    native = _fits(out, "out", logits.shape, logits.dtype, given, what)\n    out =',
        ("test_unfit_out",),
    ),
    Break(
        "`vocab_parallel_cross_entropy`, `vocab_parallel_linear_cross_entropy`",
        _SHARDS,
        "            if name not in _OWN and described.get(name) != expected:\n",
        "            if name not in _OWN and False:\n",
    ),
    Break(
        "`vocab_parallel_cross_entropy`, `vocab_parallel_linear_cross_entropy`",
        _SHARDS,
        '        if "error" in one:\n',
        "        if False:\n",
    ),
    Break(
        "Logits of other dtypes",
        _ARGUMENTS,
        'if array.dtype.kind in "iub" and not hasattr(value, "dtype"):',
        'if array.dtype.kind in "iub":',
    ),
    Break(
        "Logits of other dtypes",
        _ARGUMENTS,
        '    if hasattr(value, "to_numpy"):',
        '    if hasattr(value, "no such method"):',
        ("test_frames_with_dtypes_of_pandas",),
    ),
    Break(
        "A masked array, or a list of them",
        _ARGUMENTS,
        "            return any(map(is_masked, value))\n",
        "            return False\n",
    ),
    Break(
        "A masked array, or a list of them",
        _ARGUMENTS,
        "ignore_index or the sample_weight 0",
        "ignored or the weight 0",
        ("test_masked_elements_are_refused",),
    ),
    Break(
        "Labels that are booleans, strings or None",
        _ARGUMENTS,
        '    }.get(kind, "")\n',
        '    }.get("", "")\n',
    ),
    Break(
        "Labels that are booleans, strings or None",
        _ARGUMENTS,
        "    if target.shape == shape:\n",
        "    if False:\n",
        ("test_one_hot_targets_of_integers",),
    ),
    Break(
        "Errors call an argument by its name",
        "pyce/_probabilities.py",
        'what="probs"',
        'what="logits"',
    ),
    Break(
        "A floating-point target of the shape of class indices",
        _ARGUMENTS,
        "    if array.shape == positions:\n",
        "    if False:\n",
    ),
    Break(
        "Targets, weights and factors that are not real numbers",
        _ARGUMENTS,
        '    if array.ndim == 0 and (is_number or array.dtype.kind == "O"):',
        "    if array.ndim == 0:",
    ),
    Break(
        "Targets, weights and factors that are not real numbers",
        _ARGUMENTS,
        '    if array.dtype.kind not in "fiu" and',
        '    if array.dtype.kind not in "fiub" and',
        ("test_weights_of_other_dtypes",),
    ),
    Break(
        "Shapes that do not match",
        _ARGUMENTS,
        '    if array.shape != shape:\n        raise ValueError(f"{what} must have shape',
        "    array = np.broadcast_to(array, shape)\n"
        '    if array.shape != shape:\n        raise ValueError(f"{what} must have shape',
    ),
    Break(
        "C = 0, logits without dimensions",
        _ARGUMENTS,
        "    if shape[index] == 0:\n",
        "    if False:\n",
    ),
    Break(
        "C = 0, logits without dimensions",
        _ARGUMENTS,
        "    if not -ndim <= index < ndim:\n",
        "    if False:\n",
        ("test_axis_out_of_range",),
    ),
    Break(
        "An unknown reduction, smoothing outside [0, 1]",
        _ARGUMENTS,
        "    if not 0.0 <= number <= 1.0:\n",
        "    if not 0.0 <= number:\n",
    ),
    Break(
        "An unknown reduction, smoothing outside [0, 1]",
        _ARGUMENTS,
        "reduction must be one of {', '.join(REDUCTIONS)}; got {value!r}",
        "unknown reduction {value!r}",
        ("test_unknown_reduction",),
    ),
    Break(
        "An unknown or unavailable backend",
        _BACKENDS,
        '    raise Unavailable(f"backend {name!r} is not available',
        "    if name != usable.partition(',')[0]:\n"
        "        return load(cast(BackendName, usable.partition(',')[0]))\n"
        '    raise Unavailable(f"backend {name!r} is not available',
        ("test_a_backend_that_is_not_available",),
    ),
    Break(
        "An unknown or unavailable backend",
        _BACKENDS,
        "{what} must be one of {', '.join(choices)}; got {name!r}",
        "{what} is unknown: {name!r}",
    ),
    Break(
        "A number of threads below 1",
        "pyce/_settings.py",
        '    _threads.ask(positive_number(n, "threads"))\n',
        "    _threads.ask(max(1, n.__index__()))\n",
    ),
    Break(
        "A number of threads below 1",
        "pyce/_threads.py",
        "    if not number:\n",
        "    if number is None:\n",
        ("test_bad_number_of_threads_in_the_environment",),
    ),
    Break(
        "`out` of another dtype, or not an array",
        _ARGUMENTS,
        "        if not flags.writeable:\n",
        "        if False:\n",
    ),
    Break(
        "`out` that overlaps the logits",
        _ARGUMENTS,
        '        if _overlap(out, other):\n            raise ValueError("out shares',
        '        if False:\n            raise ValueError("out shares',
    ),
    Break(
        "`out` that overlaps the logits",
        _ARGUMENTS,
        "if _overlap(out, other) and not _same_memory(out, other):",
        "if False:",
        ("test_out_that_overlaps_the_logits_in_part",),
    ),
    Break(
        "`binary_cross_entropy`: `TypeError` and `ValueError`",
        "pyce/_binary.py",
        'arguments.broadcast(target, x.shape, "target", exact=True)',
        'arguments.broadcast(target, x.shape, "target")',
        ("test_bernoulli_errors",),
    ),
    Break(
        "`binary_cross_entropy`: `TypeError` and `ValueError`",
        "pyce/_binary.py",
        "    arguments.reduction_name(reduction)\n",
        "",
        ("test_unknown_reduction",),
    ),
    Break(
        "In compiled code the same errors",
        "pyce/numba/_errors.py",
        'f"weight must have shape {expected}, got {shape}"',
        'f"weight of shape {shape}"',
        ("test_errors_leave_the_output",),
    ),
)
