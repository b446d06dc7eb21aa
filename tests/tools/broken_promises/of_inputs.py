"""Breaks of the lines in the section Inputs of docs/semantics.md."""

from __future__ import annotations

from breaks import Break

INPUTS = (
    Break(
        "Logits are float16, bfloat16",
        "pyce/_arguments.py",
        "    index %= ndim\n",
        "    index = max(index, 0)\n",
    ),
    Break(
        "Logits are float16, bfloat16",
        "pyce/_dtypes.py",
        'dtype.name == "bfloat16" and',
        'dtype.name == "no dtype" and',
    ),
    Break(
        "Arrays of any strides",
        "pyce/_arguments.py",
        "        array = _converted(array, native)\n",
        "        array = array.view(native)\n",
        ("test_layout_does_not_matter",),
    ),
    Break(
        "Arrays of any strides",
        "pyce/_backends/c.py",
        "if all(o == s * shape[d] for o, s in zip",
        "if any(o == s * shape[d] for o, s in zip",
    ),
    Break(
        "The logits are not copied",
        "pyce/_arguments.py",
        "        x: Array = logits\n",
        '        x: Array = np.require(logits, requirements="C")\n',
    ),
    Break(
        "Anything that NumPy converts",
        "pyce/_arguments.py",
        "array = _converted(array, _FLOAT64)  # Python integers",
        "array = array.astype(np.float32)  # Python integers",
    ),
    Break(
        "Anything that NumPy converts",
        "pyce/_arguments.py",
        "and bool(np.ma.is_masked(value))",
        "",
    ),
    Break(
        "A target of class indices has any integer dtype",
        "pyce/_arguments.py",
        'if t.dtype.kind in "iu":',
        'if t.dtype.kind in "i":',
    ),
    Break(
        "A target of class indices has any integer dtype",
        "pyce/_arguments.py",
        'return np.require(target, requirements=["C", "A"]).reshape(-1)',
        'return target.ravel(order="K")',
        ("test_targets_of_any_layout",),
    ),
    Break(
        "A target of probabilities has any of the four",
        "pyce/_arguments.py",
        'if array.dtype.kind not in "fV" or',
        'if array.dtype.kind not in "f" or',
    ),
    Break(
        "Probabilities are used as given",
        "pyce/_arguments.py",
        "    return t\n\n\ndef _as_target",
        "    return np.abs(t)\n\n\ndef _as_target",
    ),
    Break(
        "Probabilities are used as given",
        "csrc/kernels/finalize_f32.inc.h",
        "const vd all = vd_fma(soft_part, soft_sum, part);",
        "const vd all = vd_add(soft_part, part);",
    ),
    Break(
        "`weight` has the shape (C,)",
        "pyce/_arguments.py",
        'if array.dtype.kind not in "fiu" and',
        'if array.dtype.kind not in "f" and',
        ("test_weights_of_other_dtypes",),
    ),
    Break(
        "`weight` has the shape (C,)",
        "pyce/_arguments.py",
        'return np.require(array, requirements=["C", "A"]).reshape(shape)',
        'return np.abs(np.require(array, requirements=["C", "A"]).reshape(shape))',
        ("test_weights_are_used_as_given",),
    ),
    Break(
        "Half types are computed in float32",
        "csrc/kernels/half_types.h",
        "(bits >> 16) & 1)) >> 16",
        "(bits >> 16) | 1)) >> 16",
        ("test_half_types_are_float32_rounded_once",),
        backend="c-scalar",
        which="bfloat16",
        cases="random",
        dtype="bf16",
    ),
    Break(
        "Half types are computed in float32",
        "pyce/_backends/numpy.py",
        "out[...] = values.astype(dtype, copy=False).reshape(out.shape)",
        "out[...] = values.reshape(out.shape)",
    ),
    Break(
        "The loss is float64 for float64 logits",
        "pyce/_loss.py",
        "        return p.losses.reshape(p.positions)\n",
        "        return p.losses.reshape(p.positions).astype(np.float64)\n",
    ),
    Break(
        "lse, and therefore `logsumexp`, is float64",
        "pyce/_loss.py",
        "    return _run(p, with_grad=False), p.lse.reshape(p.positions)\n",
        "    return _run(p, with_grad=False), p.lse.reshape(p.positions).astype(p.logits.dtype)\n",
    ),
    Break(
        "Sums over classes and rows are accumulated in float64",
        "csrc/kernels/sums_f32.inc.h",
        "    s->lo = vd_add(s->lo, vf_widen_lo(a));\n",
        "    float f[16];\n"
        "    vf_store(f, a);\n"
        "    double d[8];\n"
        "    vd_store(d, s->lo);\n"
        "    for (int i = 0; i < 8; i++) d[i] = (float)d[i] + f[i];\n"
        "    s->lo = vd_load(d);\n",
        ("test_loss_and_gradient",),
    ),
    Break(
        "Sums over classes and rows are accumulated in float64",
        "csrc/run.c",
        "    double denominator = p->reduction == PYCE_MEAN ? weights.sum : 1;\n",
        "    double denominator = p->reduction == PYCE_MEAN ? (float)weights.sum : 1;\n",
        ("test_reductions",),
    ),
    Break(
        "`softmax` and `log_softmax` return the shape",
        "pyce/_softmax.py",
        "((1,) if keepdims else ())",
        "()",
    ),
    Break(
        "`out=` receives the gradient",
        "pyce/_arguments.py",
        "        out[...] = result\n    return out\n",
        "        pass\n    return out\n",
    ),
    Break(
        "`out` may be exactly the logits",
        "pyce/_arguments.py",
        "if _overlap(out, other) and not _same_memory(out, other):",
        "if _overlap(out, other):",
    ),
    Break(
        "`out` may be exactly the logits",
        "csrc/validate.c",
        "const int in_place = result && same_operand(p, &p->logits, &p->result);",
        "const int in_place = 0;",
    ),
    Break(
        "Only `out` is ever written",
        "pyce/_arguments.py",
        "    if out is None:\n        return np.empty(logits.shape, logits.dtype)\n",
        "    if out is None:\n        return logits if logits.flags.carray else logits.copy()\n",
    ),
    Break(
        "`grad_loss` multiplies the gradient",
        "pyce/_loss.py",
        '        p.grad_loss = real(grad_loss, "grad_loss")\n',
        '        p.grad_loss = abs(real(grad_loss, "grad_loss"))\n',
    ),
    Break(
        "`grad_loss` multiplies the gradient",
        "pyce/_loss.py",
        '        p.grad_loss = reals(grad_loss, p.positions, "grad_loss").reshape(-1)\n',
        '        p.grad_loss = reals(grad_loss, p.positions, "grad_loss").ravel("F")\n',
    ),
    Break(
        "`binary_cross_entropy` accepts logits of any shape",
        "pyce/_binary.py",
        'arguments.broadcast(weight, x.shape, "weight")',
        'arguments.broadcast(weight, x.shape, "weight", exact=True)',
    ),
    Break(
        "`binary_cross_entropy` accepts logits of any shape",
        "pyce/_arguments.py",
        '    if array.dtype.kind not in "fiub" and',
        '    if array.dtype.kind not in "fiu" and',
    ),
    Break(
        "Functions that Numba compiles can call",
        "pyce/numba/_c.py",
        'p["grad_loss"] = _DOUBLE(1.0)',
        'p["grad_loss"] = _DOUBLE(2.0)',
        ("test_the_short_call",),
    ),
    Break(
        "Functions that Numba compiles can call",
        "pyce/numba/_types.py",
        "    if out.dtype != logits.dtype:",
        "    if False:",
        ("test_types_that_do_not_fit",),
    ),
)
