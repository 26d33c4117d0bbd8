"""λ Σ Ω (θ − θ*)² in its forms: a value, a gradient, and a proximal step, plain or adaptive.

`parts` has each of them for one parameter, in parts that need no temporary as large as it; `many`
for many parameters, in a few kernels for all those that are small; `loss` for autograd. None waits
for an accelerator: what a device alone knows (a learning rate, a count of steps) may stay there,
as a tensor without dimensions.
"""

from retain.penalty.hold import LEAST, Hold, Metric, Number, in_full, on_host
from retain.penalty.loss import Penalty, PenaltyChunks
from retain.penalty.many import Chunks, add_gradients, proximals_, values
from retain.penalty.parts import PART, add_gradient, proximal_, value

__all__ = [
    "LEAST",
    "PART",
    "Chunks",
    "Hold",
    "Metric",
    "Number",
    "Penalty",
    "PenaltyChunks",
    "add_gradient",
    "add_gradients",
    "in_full",
    "on_host",
    "proximal_",
    "proximals_",
    "value",
    "values",
]
