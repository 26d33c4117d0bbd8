"""Rows that hold several samples, or parts of one, by the names under which that is said."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from retain.errors import InputError
from retain.samples import masks, pairs
from retain.samples.rows import BAGS, NOBODY, TEXTS, Rows

# [B, T]: the number of the text that a position belongs to
NUMBERS = ("seq_idx", "document_ids", "document_id", "doc_ids", "sequence_ids", "sequence_id")
# [texts + 1]: where each text begins, and the end
CUMULATED = ("cu_seq_lens_q", "cu_seq_lens", "cu_seqlens_q", "cu_seqlens")


def rows_of(inputs: Mapping[str, Tensor]) -> Rows | None:
    """Which sample each row belongs to, where the names of the inputs say that rows are no samples.

    Packed texts (`cu_seq_lens`, `seq_idx`, `document_ids`, an attention mask that numbers them, or
    `position_ids` that restart), graphs (`edge_index` and `batch`), and bags (`offsets`).
    """
    return _bags(inputs) or _graphs(inputs) or _texts(inputs)


def _bags(inputs: Mapping[str, Tensor]) -> Rows | None:
    """As nn.EmbeddingBag takes them: `offsets` say where in a flat input each bag begins."""
    offsets = inputs.get("offsets")
    if offsets is None or not masks.are_numbers(offsets) or offsets.ndim != 1 or len(offsets) == 0:
        return None
    flat = next(
        (
            t
            for name, t in inputs.items()
            if name != "offsets" and t.ndim == 1 and masks.are_numbers(t)
        ),
        None,
    )
    if flat is None or int(offsets[0]) != 0 or int(offsets[-1]) > len(flat):
        return None
    if bool((offsets.diff() < 0).any()):
        return None
    at = torch.arange(len(flat), device=offsets.device)
    owners = torch.searchsorted(offsets.contiguous(), at, right=True) - 1
    return Rows.of((owners,), len(offsets), what=BAGS)


def _graphs(inputs: Mapping[str, Tensor]) -> Rows | None:
    """As PyTorch Geometric has them: `batch` says to which graph each node belongs."""
    owner, edges = inputs.get("batch"), inputs.get("edge_index")
    if owner is None or edges is None or owner.ndim != 1 or not masks.are_numbers(owner):
        return None
    return of_nodes(inputs, owner.long(), ["batch"])


def of_nodes(inputs: Mapping[str, Tensor], owner: Tensor, numbers: list[str]) -> Rows:
    """Rows of nodes, and of the edges between them, if there are any.

    `numbers` are the inputs that hold the numbers of samples themselves.

    Raises:
        InputError: edges from one graph to another.
    """
    pairs = {
        key: t
        for key, t in inputs.items()
        if ("index" in key or "edge" in key) and _are_pairs(t, len(owner))
    }
    owners: tuple[Tensor, ...] = (owner,)
    named: dict[str, int] = {}
    for key, pair in pairs.items():
        across = int((owner[pair[0]] != owner[pair[1]]).sum())
        if across:
            raise InputError(
                f"{across} of the {pair.shape[1]} pairs in '{key}' go from one graph to another, "
                "so that the graphs of a batch influence each other. Importance is defined per "
                "sample: give whole graphs, or say with samples_of=… which nodes make up a sample."
            )
    edges = next((pair for key, pair in pairs.items() if "edge" in key), None)
    if edges is not None:
        owners = (owner, owner[edges[0]])
        named = {
            key: 1
            for key, t in inputs.items()
            if key.startswith("edge") and key not in pairs and t.shape[:1] == owners[1].shape
        }
    samples = int(owner.max()) + 1
    return Rows.of(
        owners,
        samples,
        named=named,
        numbers=dict.fromkeys(numbers, 0),
        indices=frozenset(pairs),
        what="nodes of graphs",
    )


def _are_pairs(values: Tensor, rows: int) -> bool:
    """Whether these are pairs of rows [2, pairs], of so many."""
    if values.ndim != 2 or len(values) != 2 or not masks.are_numbers(values):
        return False
    return values.numel() == 0 or (int(values.min()) >= 0 and int(values.max()) < rows)


def _texts(inputs: Mapping[str, Tensor]) -> Rows | None:
    found = _numbered(inputs) or _cumulated(inputs) or _restarting(inputs) or _blocks(inputs)
    if found is None:
        return None
    ids, numbers = found
    texts = int(ids.max()) + 1
    rows_with_any = int((ids != NOBODY).any(-1).sum()) if ids.ndim == 2 else 1
    if ids.ndim == 2 and texts <= rows_with_any:
        return None  # one text per row
    return Rows.of((ids,), texts, numbers=numbers, what=TEXTS)


def _numbered(inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, int]] | None:
    mask = inputs.get("attention_mask")
    if mask is not None and _is_grid(mask) and int(mask.max()) > 1:
        return _enumerated(mask, mask > 0), {"attention_mask": 1}
    for name in NUMBERS:
        if name in inputs and _is_grid(inputs[name]):
            return _by_numbers(inputs, name)
    return None


def _by_numbers(inputs: Mapping[str, Tensor], name: str) -> tuple[Tensor, dict[str, int]]:
    """By the numbers of texts in one input; what is below 0 is padding, and 0 after larger ones."""
    ids = inputs[name]
    kept = _kept(inputs, ids) & (ids >= 0)
    if bool(((ids == 0) & (ids.cummax(1).values > 0)).any()):
        kept = kept & (ids > 0)
    first = 0 if not bool(kept.any()) else min(1, int(ids[kept].min()))
    return _enumerated(ids, kept), {name: first}


def possible(inputs: Mapping[str, Tensor]) -> dict[str, Rows]:
    """What inputs of other names may say of packed texts: numbers, positions, lengths, ends.

    Whether they do, the model shows (barriers.py).
    """
    found = _measured(inputs)
    for name, values in inputs.items():
        if not _is_grid(values) or name in (*NUMBERS, "attention_mask", "position_ids"):
            continue
        ids, numbers = _by_numbers(inputs, name)
        if not _is_numbering(values, ids):
            ids, numbers = _by_restarts(inputs, values), {}
            if not _is_counting(values, ids):
                continue
        texts = int(ids.max()) + 1
        if texts > int((ids != NOBODY).any(1).sum()):
            found[name] = Rows.of((ids,), texts, numbers=numbers, what=TEXTS)
    return found


def _measured(inputs: Mapping[str, Tensor]) -> dict[str, Rows]:
    """By inputs of one dimension: the lengths of the texts in one row, or where each begins."""
    found = {}
    widths = {t.shape[1] for t in inputs.values() if t.ndim > 1 and t.shape[0] == 1}
    for name, values in inputs.items():
        if values.ndim != 1 or not masks.are_numbers(values) or len(values) < 2:
            continue
        begins_at_0 = int(values[0]) == 0
        lengths = values.diff() if begins_at_0 else values
        texts, total = len(lengths), int(lengths.sum())
        if texts < 2 or int(lengths.min()) < 1 or 2 * texts > total or total not in widths:
            continue
        ids = torch.arange(texts, device=values.device).repeat_interleave(lengths)[None]
        found[name] = Rows.of((ids,), texts, measures=frozenset({name}), what=TEXTS)
    return found


def counts_up(values: Tensor) -> bool:
    """Whether integers [n, T] go up in steps of one at most in each row, as numbers of texts do."""
    if values.ndim != 2 or not masks.are_numbers(values):
        return False
    steps = values.diff(dim=1)
    return bool(((steps >= 0) & (steps <= 1)).all()) and int(values.max()) < values.shape[1]


def _is_numbering(values: Tensor, ids: Tensor) -> bool:
    """Whether each text has a number of its own in its row, and is more than one position."""
    kept = ids != NOBODY
    texts = int(ids.max()) + 1
    if 2 * texts > int(kept.sum()):
        return False
    for row, own in zip(values, ids):
        numbers = row[own != NOBODY]
        if len(numbers.unique()) != len(own[own != NOBODY].unique()):
            return False
    return True


def _is_counting(values: Tensor, ids: Tensor) -> bool:
    """Whether the positions in each text count up from 0."""
    kept = ids != NOBODY
    inner = kept[:, 1:] & (ids[:, 1:] == ids[:, :-1])
    begins = kept.clone()
    begins[:, 1:] &= ~inner
    return (
        bool((values[begins] == 0).all())
        and bool((values.diff(dim=1)[inner] == 1).all())
        and 2 * (int(ids.max()) + 1) <= int(kept.sum())
    )


def _by_restarts(inputs: Mapping[str, Tensor], positions: Tensor) -> Tensor:
    """The texts [B, T] that begin where positions do not go on, among those that count."""
    kept = _kept(inputs, positions)
    at = torch.arange(positions.shape[1], device=kept.device).expand_as(kept)
    last = torch.where(kept, at, NOBODY).cummax(1).values[:, :-1]  # of those before, if any
    began = torch.ones_like(kept)
    began[:, 1:] = (positions[:, 1:] <= positions.gather(1, last.clamp(min=0))) | (last == NOBODY)
    return _numbers(began, kept)


def _cumulated(inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, int]] | None:
    for name in CUMULATED:
        ends = inputs.get(name)
        if ends is None or ends.ndim != 1 or not masks.are_numbers(ends) or len(ends) < 2:
            continue
        total = int(ends[-1])
        at = torch.arange(total, device=ends.device)
        ids = torch.searchsorted(ends.contiguous(), at.to(ends.dtype), right=True) - 1
        others = [t for key, t in inputs.items() if not key.startswith("cu_")]
        if any(t.shape[:2] == (1, total) for t in others):
            return ids[None], {}
        if any(t.ndim and len(t) == total for t in others):
            return ids, {}
    return None


def _restarting(inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, int]] | None:
    """Where `position_ids` do not go on, among the positions that count."""
    ids = inputs.get("position_ids")
    if ids is None or not _is_grid(ids):
        return None
    sizes = {t.shape[0] for t in inputs.values() if t.ndim > 1 and t.shape[1] == ids.shape[1]}
    if len(ids) == 1 and len(sizes - {1}) == 1:
        ids = ids.expand(max(sizes), -1)
    return _by_restarts(inputs, ids), {}


def _blocks(inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, int]] | None:
    """Where an attention mask over pairs of positions lets nothing look across, in either way."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim not in (3, 4) or mask.shape[-1] != mask.shape[-2]:
        return None
    if masks.of_several_texts(mask, inputs):
        return None
    looks = masks.pairs(mask)
    kept, single = pairs.read(looks)
    if bool(single.any()) and not _are_alike(inputs, single):
        kept = kept | single  # texts of one token, and no padding
    began = pairs.numbered(looks, kept)
    if bool(began[kept].all()):
        return None  # every position by itself: it says nothing of texts
    return _numbers(began, kept), {}


def _are_alike(inputs: Mapping[str, Tensor], at: Tensor) -> bool:
    """Whether the same token stands at all of these positions [n, T]."""
    grids = [t[at] for t in inputs.values() if t.shape == at.shape and _is_grid(t)]
    return all(len(tokens.unique()) == 1 for tokens in grids)


def _enumerated(values: Tensor, kept: Tensor) -> Tensor:
    """The number of the text at each position, where another value begins another text."""
    began = torch.ones_like(kept)
    began[:, 1:] = (values[:, 1:] != values[:, :-1]) | ~kept[:, :-1]
    return _numbers(began, kept)


def _numbers(began: Tensor, kept: Tensor) -> Tensor:
    began = began & kept
    return torch.where(kept, began.flatten().cumsum(0).view(began.shape) - 1, NOBODY)


def _kept(inputs: Mapping[str, Tensor], like: Tensor) -> Tensor:
    for mask in masks.of_encoder(inputs):
        if mask.shape == like.shape:
            return mask
    return torch.ones_like(like, dtype=torch.bool)


def _is_grid(values: Tensor) -> bool:
    return values.ndim == 2 and masks.are_numbers(values) and values.shape[1] > 1
