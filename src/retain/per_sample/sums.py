"""Where Σₖ|gₖ|ᵖ of one parameter grows: written once, then added to, never n copies."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from retain.parameters import summed_in
from retain.pieces import add_powers_


class Sum:
    """Σₖ|gₖ|ᵖ, shaped like the gradient; kept in float32, or float64 for float64 gradients."""

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, device: torch.device, power: int
    ) -> None:
        self.total = torch.empty(shape, dtype=summed_in(dtype), device=device)
        self.power = power
        self.empty = True
        self._bounded = True  # whether everything added is known to be finite

    def clear(self) -> None:
        """Begin again; the memory is kept."""
        self.empty = True
        self._bounded = True

    @property
    def surely_finite(self) -> bool:
        """Whether nothing that was added can have brought NaN or infinity."""
        return self.empty or self._bounded

    def result(self) -> Tensor:
        """The sum; zeros where nothing was added."""
        if self.empty:
            self.total.zero_()
            self.empty = False
        return self.total

    def raised_(self, gradient: Tensor) -> Tensor:
        """|g|ᵖ, in place."""
        return gradient.abs_() if self.power == 1 else gradient.square_()

    def raised(self, gradient: Tensor) -> Tensor:
        """|g|ᵖ, in the sum's own precision."""
        wide = gradient.to(self.total.dtype)
        return wide.abs() if self.power == 1 else wide.square()

    def over_samples_(self, gradients: Tensor) -> Tensor:
        """Σₖ|gₖ|ᵖ of gₖ [m, …], which may be written over."""
        if len(gradients) == 1:
            return self.raised_(gradients[0])
        if gradients.device.type == "cpu":
            return self.raised_(gradients).sum(0)
        return self.over_samples(gradients)

    def over_samples(self, gradients: Tensor) -> Tensor:
        """The same, never written: they may share memory with others."""
        if gradients.device.type == "cpu":  # where a norm over the first dimension is slow
            return self.raised(gradients).sum(0)
        wide = gradients.to(self.total.dtype)
        norm: Tensor = torch.linalg.vector_norm(wide, self.power, dim=0)
        return norm if self.power == 1 else norm.square_()

    def add_powers(self, gradients: Tensor, block: Tensor) -> None:
        """Add Σₖ|gₖ|ᵖ of gₖ [m, …], which may be written over, to a block of what is summed."""
        if len(gradients) == 1 and self.power == 2:
            block.addcmul_(gradients[0], gradients[0])
        else:
            block.add_(self.over_samples_(gradients))

    def put_powers(self, gradients: Tensor, block: Tensor) -> None:
        """Σₖ|gₖ|ᵖ in place of what the block holds; gₖ [m, …] may be written over, or be it."""
        if len(gradients) == 1:
            raised = self.raised_(gradients[0])
            if raised.data_ptr() != block.data_ptr():
                block.copy_(raised)
        elif gradients.device.type == "cpu":
            torch.sum(self.raised_(gradients), 0, out=block)
        else:
            block.copy_(self.over_samples(gradients))

    def add(self, powers: Tensor) -> None:
        """Add what has been raised to the power already."""
        self._bounded = False
        if self.empty:
            self.total.copy_(powers)
            self.empty = False
        else:
            self.total.add_(powers)

    def add_samples(self, gradients: Tensor) -> None:
        """Add Σₖ|gₖ|ᵖ of gₖ [n, …], all that there are; they are never written over."""
        raised = self.raised(gradients)
        self._bounded = False
        if self.empty:
            torch.sum(raised, 0, out=self.total)
            self.empty = False
        else:
            self.total.add_(raised.sum(0))

    def add_raised(self, gradient: Tensor) -> None:
        """Add |g|ᵖ of one sample, with no temporary as large as the gradient."""
        self._bounded = False
        if self.empty:
            self.raised_(self.total.copy_(gradient))
            self.empty = False
        else:
            add_powers_(self.total, gradient, self.power)

    def matrix(self, rows: int) -> Tensor:
        """The sum as a matrix to add to, such as a convolution's weight by output channels."""
        self._bounded = False
        return self.total.view(rows, -1)

    def add_rows(self, index_r: Tensor, powers_rd: Tensor) -> None:
        """Add rows, raised to the power already, in their places: those of an embedding."""
        self.result().view(-1, powers_rd.shape[1]).index_add_(0, index_r, powers_rd)
        self._bounded = False

    def add_product(self, left_rp: Tensor, right_rq: Tensor) -> None:
        """Add left ᵀ right; both hold r rows and have been raised to the power."""
        bounded, matrix = self._bounded, self.matrix(left_rp.shape[1])
        if self.empty:
            torch.mm(left_rp.T, right_rq, out=matrix)
            self.empty = False
        else:
            matrix.addmm_(left_rp.T, right_rq)
        # Σ left · right ≤ r · max left · max right: far fewer numbers to look at than the sum has
        small = left_rp.numel() + right_rq.numel() < matrix.numel()
        if small and bounded and len(left_rp) and matrix.device.type == "cpu":
            bound = len(left_rp) * float(left_rp.amax()) * float(right_rq.amax())
            self._bounded = bound < torch.finfo(matrix.dtype).max / 2


def not_finite(sums: Mapping[str, Sum | Tensor]) -> list[str]:
    """The names of those with NaN or infinity in them; the device is waited for once."""
    doubtful = {
        name: one.total if isinstance(one, Sum) else one
        for name, one in sums.items()
        if not (isinstance(one, Sum) and one.surely_finite)
    }
    if not doubtful:
        return []
    # one quick pass over each; a sum over all may overflow where no element does
    quick = [total.sum() for total in doubtful.values()]
    alike = [one.to(quick[0].device, quick[0].dtype) for one in quick]
    finite = map(math.isfinite, torch.stack(alike).tolist())
    return [
        name
        for (name, total), fine in zip(doubtful.items(), finite)
        if not fine and not bool(total.isfinite().all())
    ]
