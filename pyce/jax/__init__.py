"""Cross-entropy for JAX: Optax's functions on pyce's kernels.

    import pyce.jax

    losses = pyce.jax.softmax_cross_entropy_with_integer_labels(logits, labels)

Names, arguments and results are Optax's. XLA calls the C kernels through its foreign function
interface, under `jit`, `grad`, `vmap`, `checkpoint` and `scan`. The kernels read and write XLA's
buffers; arrays are copied only where axes are moved, masks are applied or labels are converted. A
gradient is computed only when JAX differentiates, if possible together with the loss. CPU only.
"""

# The modules, from the bottom up:
#
#   _ffi       registers the handler of csrc/xla_ffi.c with XLA, and calls it
#   _autodiff  losses of rows as a differentiable function
#   _losses    the public functions: arguments, axes and masks

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    from pyce._extras import advice

    raise ImportError(f"pyce.jax needs JAX: {advice('jax')}") from error

from pyce.jax._losses import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels

__all__ = ["softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"]
