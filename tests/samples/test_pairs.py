"""Masks over pairs of positions: which positions they keep, in every form that padding takes."""

from __future__ import annotations

import pytest
import torch

import retain
from retain.samples import masks, pairs

WIDTH = 9


def looks(lengths, *, causal, side, padded_query):
    """[n, WIDTH, WIDTH]: texts of these lengths, and what a padded position looks at."""
    found, kept = [], []
    for length in lengths:
        at = torch.arange(WIDTH)
        is_text = at < length if side == "right" else at >= WIDTH - length
        sees = is_text[:, None] & is_text
        nowhere = ~is_text[:, None].expand(WIDTH, WIDTH)
        if padded_query == "everything":
            sees = sees | nowhere
        if padded_query in ("the text", "the text and itself"):
            sees = sees | (nowhere & is_text)
        sees = sees & (at[:, None] >= at) if causal and padded_query != "everything" else sees
        if causal and padded_query == "everything":
            sees = (sees & (at[:, None] >= at)) | nowhere
        if padded_query in ("itself", "the text and itself"):
            sees = sees | torch.eye(WIDTH, dtype=torch.bool)
        found.append(sees)
        kept.append(is_text)
    return torch.stack(found), torch.stack(kept)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "padded_query", ["nothing", "everything", "itself", "the text", "the text and itself"]
)
@pytest.mark.parametrize("lengths", [(9, 6, 3), (7,), (9,), (2, 5), (6, 1)])
def test_what_is_padding_in_every_form(causal, side, padded_query, lengths):
    mask, expected = looks(lengths, causal=causal, side=side, padded_query=padded_query)
    added = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    for given in (mask, mask.long(), mask.float(), mask[:, None], added[:, None], added * 1.0):
        assert masks.kept_positions(given).equal(expected)


def test_a_window_is_no_padding():
    window = torch.ones(1, WIDTH, WIDTH).bool().tril().triu(-2)
    assert pairs.kept_by(window).all()
    assert pairs.kept_by(window | window.mT).all()
    prefix = torch.ones(1, WIDTH, WIDTH).bool().tril()
    prefix[:, :4, :4] = True
    assert pairs.kept_by(prefix).all()


def test_a_row_in_which_each_sees_itself_alone():
    """All rows: nothing is said of padding. One of several: the others tell on which side it is."""
    each = torch.eye(4, dtype=torch.bool)
    assert pairs.kept_by(each.expand(2, 4, 4)).all()
    with pytest.raises(retain.RetainError, match=r"row 1.*padding cannot be told.*padding_mask="):
        pairs.kept_by(torch.stack([torch.ones(4, 4).bool(), each]))
