"""The per-sample engine: Σₖ |∂sₖ/∂θ|ᵖ for any model, exactly, at the price of one backward pass.

The words, each for one thing, and the file that it lives in:

* score: sₖ, the number per sample that is differentiated: ‖F(xₖ)‖², a log-likelihood (scores/).
* graph: autograd's record of one forward pass (forward.py); its nodes are the operations that ran
  (graph.py, nodes.py, below.py). Backward passes over it weigh the scores and stop where they are
  told to (passes.py).
* frontier: of a parameter, the first operations after it whose gradients are separable, that is,
  every element of them belongs to one sample (frontier.py). A use is one input of such an operation
  that leads to parameters (uses.py).
* layout: which sample owns which element of a gradient at the frontier (layout.py). It is found by
  probing: passes in which each sample has a weight of its own.
* group: parameters and uses that have to be known together (groups.py).
* plan: frontier, layouts and groups of one graph; never changed. What passes along it have shown,
  so that the next need not look again, are its habits (plan.py).
* trust: how far a plan may be used for another batch. The rungs of its ladder: grown from a few
  samples, probed on this batch, verified on the whole batch, kept for others (trust.py, shares.py).
  A plan that stands on a rung is known. Operations that may lay out another batch in another way
  are wandering (wandering.py).
* contribution: what one use adds to the gradients of the samples, held in a form that is never
  n × P (contributions.py). Rules make them in closed form (rules/); powers of them are summed over
  the samples (summing.py, products.py) into a parameter's sum (sums.py).
* masked: without a rule, an operation's own backward, with the gradient masked to one sample.
* pulled back: brought from the frontier to the parameters, through what lies between, once for all
  samples or for each (pull_back.py). Where these are products and sums of parameters, contributions
  are carried back in the form in which they are held (carried.py, weighed.py).
* looped over: computed by a forward and backward of each sample (loop.py, reference.py), since
  nothing else is left, or is quicker. The reason is one of those in fallback.py: inseparable (it
  has no frontier), unaskable (an operation has no backward of its own), its sums differ, a hook, a
  backward inside a backward, the price.
* route: which of these ways a parameter went; "unused" if it is not in the graph, "no gradient" if
  nothing arrived (fallback.py).
* tally: what a batch comes to, the sums of all parameters with their routes, and which parameters
  are looped over (tally.py).
* price: what any of the ways costs, in plain passes (plain.py); timed and said (prices.py). What
  costs too many is dear (dear.py).
* together: of samples, in one operation; how many, the device's room decides (devices.py), and what
  fits into memory (halving.py).
* check: a few samples, and single ones of each kind of batch, against the truth: each by itself
  (check.py, truth.py, interaction.py, blame.py). A tie is where two truths differ and both are
  right (ties.py).
* precision: the type in which a graph ran, and what difference rounding explains there
  (precision.py, same.py); said in words by stated.py. Half precision is scaled (scaled.py), and
  what lies below its range is said (underflow.py).
* written: to weights, by a forward, so that other samples' outputs depend on it (written.py).
* lent: what the model's code and PyTorch's switches are, during a pass, and get back after it
  (lent.py, switches.py, scripted.py, hooks.py).

The way of a batch through these is told in engine.py, that of its one backward pass in backward.py;
what is timed once and kept, in quickest.py.
"""

from retain.per_sample.engine import PerSample
from retain.per_sample.fallback import WITHOUT_GRADIENT
from retain.per_sample.reference import sums_by_loop
from retain.per_sample.scores import Score

__all__ = ["WITHOUT_GRADIENT", "PerSample", "Score", "sums_by_loop"]
