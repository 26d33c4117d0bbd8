"""Σₖ|Lₖᵀ Rₖ|ᵖ: the products in which most of the time is spent, a piece of memory at a time.

On a CPU that piece stays in the cache: one sample after another, of a large weight a block of rows,
each product written over the one before, raised and added while it is still there. On an
accelerator it is a share of the memory, and as many samples as fit go together.
"""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor

from retain.per_sample import devices
from retain.per_sample.contributions import Lookups, Patches
from retain.per_sample.sums import Sum
from retain.pieces import BLOCK, together

SEVERAL = 4  # fewer products than this are quicker one by one than as a batch, on a CPU


def add_products(
    left_ntp: Tensor, right_ntq: Tensor, total: Sum, lookups: Lookups | None = None
) -> None:
    """Add Σₖ |Lₖᵀ Rₖ + Eₖ|ᵖ, where E are the look-ups of the same p × q table, if there are any."""
    (n, _, p), q = left_ntp.shape, right_ntq.shape[2]
    held = devices.room(left_ntp.device) or BLOCK
    rows = max(1, min(p, held // q))
    each = _samples(n, rows * q, left_ntp.device)
    found = None if lookups is None else _InTable(lookups, p)
    piece = left_ntp.new_empty(each * rows * q)
    fresh, matrix = total.empty, total.matrix(p)
    for top in range(0, p, rows):
        block = matrix[top : top + rows]
        for k in range(0, n, each):
            left, right = left_ntp[k : k + each, :, top : top + rows], right_ntq[k : k + each]
            first = fresh and k == 0
            # what is made first may be made in its place
            held_here = block if first and len(left) == 1 else piece
            gradients = held_here.view(-1)[: len(left) * block.numel()].view(-1, *block.shape)
            # gₖ = Lₖᵀ Rₖ
            _multiply(left.mT, right, gradients)
            if found is not None:
                found.add(k, k + len(left), top, gradients)
            if first:
                total.put_powers(gradients, block)
            else:
                total.add_powers(gradients, block)
    total.empty = False


def add_patches(contribution: Patches, total: Sum) -> None:
    """Add Σₖ |Dₖ Cₖ|ᵖ: of the patches C, those of as many samples as are taken together exist."""
    n, groups, p, t = contribution.still_ngpt.shape
    powers = total.total.new_empty(groups, p, total.total[0].numel())
    q = powers.shape[2]
    each = _samples(n, groups * max(p, t) * q, powers.device)
    piece = powers.new_empty(each * powers.numel())
    for k in range(0, n, each):
        still = contribution.still_ngpt[k : k + each].to(powers.dtype)
        gradients = piece[: len(still) * powers.numel()].view(-1, p, q)
        columns = contribution.columns(k, k + each).to(powers.dtype)
        _multiply(still.flatten(0, 1), columns.flatten(0, 1), gradients)
        if k == 0:
            total.put_powers(gradients.view(-1, *powers.shape), powers)
        else:
            total.add_powers(gradients.view(-1, *powers.shape), powers)
    total.add(contribution.as_weights(powers[None])[0])


def _samples(n: int, numbers: int, device: torch.device) -> int:
    """How many samples to take together, if each makes so many numbers."""
    held = devices.room(device)
    fitting = together(n, numbers, held or BLOCK)
    return 1 if held is None and fitting < SEVERAL else fitting


def _multiply(left_bpt: Tensor, right_btq: Tensor, out_bpq: Tensor) -> None:
    if len(out_bpq) == 1:
        torch.mm(left_bpt[0], right_btq[0], out=out_bpq[0])
    else:
        torch.bmm(left_bpt, right_btq, out=out_bpq)


class _InTable:
    """Look-ups in order of sample and token, so that those of a block are neighbours."""

    def __init__(self, lookups: Lookups, vocabulary: int) -> None:
        keys = lookups.owner_r * vocabulary + lookups.tokens_r  # nobody's are below 0
        self._keys, order = keys.sort()
        self._values = lookups.values_rd[order]
        self._vocabulary = vocabulary
        self._listed = self._keys.tolist()  # the device is waited for once

    def add(self, start: int, stop: int, top: int, gradients_mrd: Tensor) -> None:
        """Add those of samples `start` to `stop` to a block of rows that begins with `top`.

        Either the block is the whole table, or it is of one sample.
        """
        first = start * self._vocabulary + top
        last = (stop - 1) * self._vocabulary + top + gradients_mrd.shape[1]
        found = slice(bisect_left(self._listed, first), bisect_left(self._listed, last))
        rows = gradients_mrd.flatten(0, 1)
        rows.index_add_(0, self._keys[found] - first, self._values[found].to(rows.dtype))
