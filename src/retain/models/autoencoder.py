"""The under-complete auto-encoder of EBLL (Rannen Triki et al. 2017, eq. 3)."""

from __future__ import annotations

from torch import Tensor, nn

from retain.models.seeded import seeded


class AutoEncoder(nn.Module):
    """A sigmoid encoder to `code` numbers and a linear decoder back to `dim`.

    Args:
        dim: features that are encoded.
        code: numbers that they are squeezed into.
        seed: of the initialisation.
    """

    def __init__(self, dim: int, code: int, *, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.encoder = nn.Linear(dim, code)
            self.decoder = nn.Linear(code, dim)

    def encode(self, features: Tensor) -> Tensor:
        """The codes [n, code] of features [n, dim], each number in (0, 1)."""
        # code = σ(W_enc f)
        code: Tensor = self.encoder(features).sigmoid()
        return code

    def forward(self, features: Tensor) -> Tensor:
        """The features [n, dim] as their codes keep them."""
        # r(f) = W_dec σ(W_enc f)
        reconstructed: Tensor = self.decoder(self.encode(features))
        return reconstructed
