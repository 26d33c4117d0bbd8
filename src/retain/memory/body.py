"""What the user holds: Ω, θ*, and the verbs that make and use them."""

from __future__ import annotations

from retain.memory.footprint import Footprint
from retain.memory.observing import Observing
from retain.memory.persistence import Persistence
from retain.memory.protecting import Protecting


class Memory(Observing, Protecting, Persistence):
    """What MAS, LocalMAS, EWC and SI have in common: all but where Ω comes from.

    Args:
        model: the network, of any kind; nothing is put on it.
        strength: λ, how hard the weights are held.
        include: names or patterns of the parameters to protect; all by default.
        exclude: names or patterns of parameters to leave free.
        dtype: in which Ω and θ* are kept; by default Ω in single precision, θ* as the weights are.
        device: where Ω and θ* are kept; by default with the weights.
        offload: a folder on a fast disk, where Ω and θ* are kept and read at each step.

    Raises:
        InputError: a strength that is negative or not finite, or patterns that match nothing.
        ModelError: a model without trainable parameters.
    """

    def footprint(self) -> Footprint:
        """How many bytes this memory takes, on this process, before they are taken: print it.

        `EWC` keeps an Ω and a θ* for each task; `SI` observes steps.

        Examples:
            >>> print(retain.MAS(model).footprint())
            the protected weights     300 bytes
            sums while observing      600 bytes
            Ω                         300 bytes
            θ*                        300 bytes
        """
        return Footprint.of(self.selection.trainable(self.model), self.storage)
