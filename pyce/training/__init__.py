"""Training in NumPy: models, an optimizer, a training loop and a learning rate finder.

`lr_find` finds a learning rate for any model. `train` trains `LinearClassifier` and
`HiddenLayerClassifier` with `SGD`, and `evaluate` computes their loss and accuracy. `minibatches`
is for custom training loops. `presize` resizes images to one size; it needs Pillow.

>>> import numpy as np
>>> from pyce.training import SGD, LinearClassifier, train
>>> x = np.repeat(np.eye(3), 20, axis=0)
>>> y = np.repeat([2, 0, 1], 20)
>>> model = LinearClassifier(features=3, classes=3, seed=0)
>>> history = train(model, x, y, SGD(model.parameters, lr=1.0), epochs=5, seed=0, progress=False)
>>> print(history.accuracy[-1])
1.0

`import pyce` does not import this module.
"""

from pyce.training._loop import History, evaluate, minibatches, train
from pyce.training._lr_find import LRCurve, lr_find
from pyce.training._models import HiddenLayerClassifier, LinearClassifier
from pyce.training._presize import presize
from pyce.training._sgd import SGD

__all__ = [
    "SGD",
    "HiddenLayerClassifier",
    "History",
    "LRCurve",
    "LinearClassifier",
    "evaluate",
    "lr_find",
    "minibatches",
    "presize",
    "train",
]
