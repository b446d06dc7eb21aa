"""Breaks of the lines in the section JAX of docs/semantics.md."""

from __future__ import annotations

from breaks import Break

_LOSSES, _AUTODIFF, _FFI = "pyce/jax/_losses.py", "pyce/jax/_autodiff.py", "pyce/jax/_ffi.py"
_XLA = "csrc/xla_ffi.c"

JAX = (
    Break(
        "Optax's documented examples and test values hold",
        _LOSSES,
        "    if not _are_adjacent(axes):\n        return (*_batch(shape, axes), classes), -1\n",
        "",
        ("test_same_as_optax",),
    ),
    *(
        Break(
            "Optax's documented examples and test values hold",
            _XLA,
            "        .ignore_index = INT64_MIN,\n",
            "        .ignore_index = INT64_MIN,\n        .smoothing = 0x1p-8,\n",
            (test,),
        )
        for test in ("test_values_of_optax", "test_same_as_numpy")
    ),
    Break(
        "The loss has the dtype of the logits",
        _LOSSES,
        "        return losses(_fold(x, axes), y, class_axis).reshape(batch).astype(x.dtype)\n",
        "        return losses(_fold(x, axes), y, class_axis).reshape(batch)\n",
        ("test_dtypes",),
    ),
    Break(
        "The loss has the dtype of the logits",
        _FFI,
        "    return jnp.float64 if dtype == jnp.float64 else jnp.float32\n",
        "    return jnp.float32\n",
        ("test_float64_and_int64",),
    ),
    Break(
        "Derivatives of any order",
        _AUTODIFF,
        "        result += p * (x_dot - total(p * x_dot))\n",
        "        result += p * x_dot\n",
    ),
    Break(
        "`jit`, `vmap`, `lax.scan`, `jax.checkpoint`",
        _FFI,
        '    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))\n',
        "    return frozenset()\n",
        ("test_four_devices",),
    ),
    Break(
        "`jit`, `vmap`, `lax.scan`, `jax.checkpoint`",
        _AUTODIFF,
        "        guess = jnp.full(shape, 1 / (1 if size == 0 else size), logits.dtype)\n",
        "        guess = jnp.full(shape, 1 / max(1, size), logits.dtype)\n",
        ("test_export_with_a_symbolic_number_of_rows",),
    ),
    Break(
        "`jit`, `vmap`, `lax.scan`, `jax.checkpoint`",
        _AUTODIFF,
        "batching.bdim_at_front(x, a, size)",
        "(batching.bdim_at_front(x, a, size) if a is None else x)",
        ("test_vmap_scan_checkpoint_and_donation",),
    ),
    Break(
        "A row has the same gradient, byte for byte",
        _XLA,
        "    return !signbit(factor) && factor == fabs(number);\n",
        "    return 1;\n",
        (
            "test_a_row_has_the_same_gradient_whatever_the_cotangents_of_others",
            "test_a_forward_pass_leaves_out_its_gradient_after_wrong_guesses",
        ),
    ),
    Break(
        "A row has the same gradient, byte for byte",
        _XLA,
        "        p->sample_weight = wide;\n",
        "        p->grad_losses = wide;\n",
        ("test_rows_whose_losses_are_not_used_have_no_gradient",),
    ),
    Break(
        "A row has the same gradient, byte for byte",
        _XLA,
        "        p->grad_loss = first;\n",
        "        p->grad_loss = first * (1 + 0x1p-20);\n",
        ("test_a_right_guess_of_the_cotangent_changes_no_byte",),
    ),
    Break(
        "A row has the same gradient, byte for byte",
        _XLA,
        "((float *)used)[i] = -((const float *)guess)[i];",
        "((float *)used)[i] = ((const float *)guess)[i] * (i ? 1 : -1);",
        ("test_saved_gradients_of_vmap_are_taken_apart",),
    ),
    Break(
        "Labels −C to −1 count from the last class",
        _XLA,
        "        if (label < 0 && label >= -p->classes) label += p->classes;\n",
        "",
    ),
    Break(
        "Labels −C to −1 count from the last class",
        _XLA,
        'pyce_set_number(p->losses, dtype_of_losses(p), row, __builtin_nan(""));',
        "pyce_set_number(p->losses, dtype_of_losses(p), row, 0);",
    ),
    Break(
        "`where` leaves elements out of the sums",
        _LOSSES,
        "        return jnp.where(usual, loss, lse - x_y)\n",
        "        return loss\n",
        ("test_masks",),
    ),
    Break(
        "`where` leaves elements out of the sums",
        _LOSSES,
        "return jnp.where(mask, logits, jnp.where(some, -jnp.inf, 0).astype(logits.dtype))",
        "return logits + jnp.where(mask, 0, jnp.where(some, -jnp.inf, 0)).astype(logits.dtype)",
        ("test_rows_without_logits_have_finite_derivatives",),
    ),
    Break(
        "Other dtypes: `TypeError`. Shapes that do not match",
        _LOSSES,
        "    if len(set(axes)) < len(axes):\n",
        "    if False:\n",
    ),
    Break(
        "A JAX whose foreign function interface",
        _FFI,
        "    if found and int(found[1]) != _MAJOR:\n",
        "    if False:\n",
        ("test_an_unknown_major_version_is_refused_at_import",),
    ),
    Break(
        "A JAX whose foreign function interface",
        _FFI,
        "except ImportError as error:\n",
        "except AttributeError as error:\n",
        ("test_without_the_extension",),
    ),
    Break(
        "A JAX whose foreign function interface",
        _XLA,
        "    metadata->traits = 0;\n",
        "",
        ("test_the_handler_tells_its_version",),
    ),
    Break(
        "A JAX whose foreign function interface",
        _XLA,
        "(api->version.major != XLA_MAJOR || api->version.minor < XLA_MINOR)",
        "(api->version.minor < XLA_MINOR)",
        ("test_the_handler_refuses_what_it_does_not_know",),
    ),
)
