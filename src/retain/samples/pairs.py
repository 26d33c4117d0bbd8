"""What a mask over pairs of positions says: which of them count, and which texts it keeps apart.

n samples, T positions; looks[k, i, j] is whether position i may look at position j. Padding is what
no other position looks at, as far as masks leave that open: many allow each position itself, so
that softmax does not divide by zero, and the last position of a causal mask is looked at by none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retain.errors import InputError


def kept_by(looks: Tensor) -> Tensor:
    """[n, T] of bools: the positions that are no padding.

    Raises:
        InputError: a row of which it cannot be told.
    """
    return read(looks)[0]


def read(looks: Tensor) -> tuple[Tensor, Tensor]:
    """[n, T] of bools: the positions that count, and those that may be padding or texts of one.

    The second are left out of the first: each sees itself alone, at an end of its row.

    Raises:
        InputError: a row of which it cannot be told.
    """
    everyone = looks.all(-1)
    # A padded query sees nothing; some implementations let it see everything, to spare softmax the
    # division by zero. It tells nothing then, unless it is the last one of a causal mask.
    causal = everyone[:, -1] & (everyone.sum(1) == 1)
    tells = ~everyone | (everyone.all(1) | causal)[:, None]
    looks = looks & tells[..., None]
    at = torch.arange(looks.shape[-1], device=looks.device)
    others = looks & (at[:, None] != at)
    seen, by_others, sees_others = looks.any(1), others.any(1), others.any(2)
    alone = seen & ~by_others & ~sees_others
    kept = seen & ~_dangling(looks, seen & ~by_others & sees_others)
    if bool(alone[seen].all()):
        return kept, torch.zeros_like(kept)  # every position by itself: nothing is said of padding
    ends = _runs_at_the_ends(alone, kept)
    return kept & ~ends, ends


def numbered(looks: Tensor, kept: Tensor) -> Tensor:
    """[n, T]: where, among the positions that count, a text begins; no text looks at another."""
    at = torch.arange(looks.shape[-1], device=looks.device)
    both = (looks | looks.mT) & kept[:, None] & kept[..., None] | (at[:, None] == at)
    # a text begins where neither a later position looks back nor an earlier one ahead
    reach = torch.where(both, at[:, None], -1).amax(-2)  # [n, T]: the last one joined with each
    farthest = reach.cummax(-1).values
    began = torch.ones_like(kept)
    began[:, 1:] = farthest[:, :-1] < at[1:]
    return began


def _dangling(looks: Tensor, unseen: Tensor) -> Tensor:
    """[n, T] of bools: positions that look at a text of which they are no part.

    `unseen` look at others, and no other looks at them. In a text that is read from left to right
    that is so of its last position, and of no second one; in one that is read in both directions,
    of none.
    """
    began = numbered(looks, looks.any(1) | looks.any(2))
    text = (began.flatten().cumsum(0) - 1).view_as(began)
    texts = int(text.max()) + 1

    def of_text(values: Tensor) -> Tensor:
        counts = torch.zeros(texts, dtype=torch.long, device=looks.device)
        return counts.index_add_(0, text.flatten(), values.flatten().long())[text]

    among = looks & ~unseen[:, None] & ~unseen[..., None]
    one_way = of_text((among != among.mT).any(-1)) > 0
    ahead = of_text(among.triu(1).any(-1)) > 0
    return unseen & ((of_text(unseen) > 1) | (ahead & ~one_way))


def _runs_at_the_ends(alone: Tensor, kept: Tensor) -> Tensor:
    """[n, T] of bools: those that are alone, or left out anyhow, from either end of a row on."""
    out = alone | ~kept
    left, right = out.cumprod(1).bool(), out.flip(1).cumprod(1).flip(1).bool()
    whole = left.all(1) & alone.any(1)
    if bool(whole.any()):  # a text of a single position: the others tell on which side padding is
        rest = ~whole[:, None]
        on_left, on_right = bool((left & rest).any()), bool((right & rest).any())
        if on_left == on_right:
            raise InputError(
                f"attention_mask lets each position of row {int(whole.nonzero()[0])} see itself "
                "alone: which of them are padding cannot be told. Say it with padding_mask=…, a "
                "function of the batch that gives bools [samples, positions]."
            )
        last = torch.zeros_like(out)
        last[:, -1 if on_left else 0] = True
        left, right = left & ~(whole[:, None] & last), right & ~(whole[:, None] & last)
    return alone & (left | right)
