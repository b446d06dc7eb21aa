"""Cross-entropy for PyTorch: `torch.nn.functional.cross_entropy` on pyce's kernels.

    import pyce.torch

    loss = pyce.torch.cross_entropy(logits, labels)   # signature and semantics are PyTorch's
    loss.backward()

The kernels read the logits and write the gradient in the memory of the tensors. When a gradient
will be needed, it is computed together with the loss, in the pass over the logits that the loss
needs anyway, and the backward pass returns it; that of many float16 logits is computed in the
backward pass. CPU tensors only.
"""

# The modules, from the bottom up:
#
#   _public          what the public functions have in common
#   _tracing         which of PyTorch's mechanisms are active
#   _tensors         tensors as memory: checks, addresses, NumPy arrays
#   _compute         loss and gradient of tensors, computed by pyce
#   _autograd        the backward pass
#   _operators       the operators pyce::cross_entropy and pyce::cross_entropy_backward
#   _cross_entropy   the public function and module
#   _linear_layer    the products of a linear layer, chunk by chunk
#   _linear_compute  loss and gradients of a linear layer
#   _linear_autograd its backward pass and its operators
#   _linear          the public function and module of a linear layer's loss
#   _selective       log-probabilities of chosen classes
#   _vocab_parallel  the loss of logits whose classes several processes hold
#   _vocab_parallel_linear  the same for a linear layer
#   _patched         the context manager that replaces PyTorch's functions

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    from pyce._extras import advice

    raise ImportError(f"pyce.torch needs PyTorch: {advice('torch')}") from error

from pyce.torch._cross_entropy import CrossEntropyLoss, cross_entropy
from pyce.torch._linear import LinearCrossEntropyLoss, linear_cross_entropy
from pyce.torch._patched import patched
from pyce.torch._selective import selective_log_softmax
from pyce.torch._vocab_parallel import vocab_parallel_cross_entropy
from pyce.torch._vocab_parallel_linear import vocab_parallel_linear_cross_entropy

__all__ = [
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "cross_entropy",
    "linear_cross_entropy",
    "patched",
    "selective_log_softmax",
    "vocab_parallel_cross_entropy",
    "vocab_parallel_linear_cross_entropy",
]
