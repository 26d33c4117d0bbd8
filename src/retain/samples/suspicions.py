"""What may be padding though no mask says so: said once, with the way to say what is meant."""

from __future__ import annotations

from torch import Tensor

from retain.samples import masks
from retain.samples.batches import Batch
from retain.samples.containers import Path
from retain.samples.packing import counts_up
from retain.samples.probe import ModelProbe
from retain.samples.rows import Rows
from retain.saying import warn

SEQUENCE = 16  # numbers in a row of floats that may be a sequence, such as a sound
ENDS = ((-1, -2), (0, 1))  # positions at either end


class Suspicions:
    """Says once of each kind what looks like padding, and would count."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._harmless: set[object] = set()  # kinds of batches whose outputs have no positions

    # ---- masks that do not fit ----

    def of_output(self, batch: Batch, shape: tuple[int, ...]) -> None:
        """An output of this shape has other positions than any mask."""
        if "unmasked" in self._told:
            return
        if batch.follows_unmasked_decoder:
            self._of_decoder(batch)
            return
        if all(bool(mask.all()) for mask in batch.masks()):
            return
        self._told.add("unmasked")
        if len(shape) == 2:
            long = next(len(mask[0]) for mask in batch.masks() if not shape[1] % len(mask[0]))
            each = shape[1] // long
            warn(
                f"A mask excludes positions, but the output {shape} has all of them in one row, "
                f"{each} numbers for each, and all of these count. Give it its positions back: "
                f"output=lambda returned: returned.unflatten(1, ({long}, {each})), or ({each}, "
                f"{long}) if it has all positions {each} times."
            )
            return
        warn(
            f"A mask excludes positions, but the output {shape} has other positions, and all of "
            "them count. If some are padding, say which with padding_mask=…, a function of the "
            f"batch that returns bools [{shape[0]}, {shape[1]}]."
        )

    def _of_decoder(self, batch: Batch) -> None:
        """Outputs follow what the decoder reads, of which no mask says what is padding."""
        for path, tensor in batch.inputs().items():
            if path[-1] not in masks.OF_DECODER or tensor.ndim != 2:
                continue
            token = masks.looks_padded(tensor[:, 1:])  # the first one may be the same
            if token is not None:
                self._told.add("unmasked")
                warn(
                    f"The rows of '{path[-1]}' look padded: they end in {token}, in runs of "
                    "several lengths. The output follows them, and no decoder_attention_mask says "
                    "so: this padding counts like text. Pass decoder_attention_mask, or say where "
                    "there is padding with padding_mask=…."
                )

    # ---- packed texts ----

    def of_packed(self, batch: Batch, rows: Rows) -> None:
        """Packed texts at the end of a row in which the same token stands again and again."""
        if "packed" in self._told or batch.masks():
            return
        ids = rows.owners[0]
        for path, tokens in batch.inputs().items():
            if tokens.shape != ids.shape or not masks.are_numbers(tokens) or counts_up(tokens):
                continue
            token = masks.looks_like_padded_texts(tokens, ids)
            if token is not None:
                self._told.add("packed")
                warn(
                    f"The packed texts in '{path[-1]}' end (or begin) in {token} again and again, "
                    "and that counts as a text of its own. If that is padding, leave it out of the "
                    "batch: packed texts need none; or say whose rows they are, and −1 for "
                    "padding, with samples_of=…."
                )
                return

    def of_numbering(self, name: str, rows: Rows) -> None:
        """An input of a name that says nothing of texts was found to keep them apart."""
        warn(
            f"'{name}' numbers {rows.samples} texts in {len(rows.owners[0])} row(s), and the model "
            "keeps them apart: each of them counts as a sample. If a row is a sample, say so with "
            "samples_of=lambda batch: …, the number of a sample for each row (0, 1, 2, …)."
        )

    # ---- no mask at all ----

    def of_batch(self, batch: Batch, probe: ModelProbe) -> None:
        """No mask is known, and rows look padded, or an input looks like a mask."""
        if "padded" in self._told or batch.rows is not None:
            return
        rows = {
            path: tensor
            for path, tensor in batch.inputs().items()
            if path not in batch.shared and tensor.shape[:1] == (batch.samples,)
        }
        for name, (said, how) in self._like_masks(batch, rows).items():
            kind = (name, frozenset(rows))
            if kind in self._harmless:
                return
            output, _ = probe.tried(batch)
            if output is None or output.ndim < 3:
                self._harmless.add(kind)
                return
            self._told.add("padded")
            warn(
                f"'{name}' {said}, but under a name that is not known: every position of the "
                f"output {tuple(output.shape)} counts, padding too, and importance depends on how "
                f"far a sample was padded. Say where there is padding with padding_mask={how}."
            )
            return
        for path, tensor in rows.items():
            token = self._padding_in(tensor)
            if token is not None:
                self._told.add("padded")
                warn(
                    f"The rows of '{path[-1]}' look padded: they end (or begin) in {token}, in "
                    "runs of several lengths, and no mask says so. Padding then counts like text, "
                    "and importance depends on how far a sample was padded. Pass attention_mask (a "
                    "tokenizer gives it), or say where there is padding with padding_mask=…."
                )
                return

    def _like_masks(self, batch: Batch, rows: dict[Path, Tensor]) -> dict[str, tuple[str, str]]:
        """What looks like a mask or like lengths, by name; and how to say what it means."""
        found = {}
        widths = {tensor.shape[1] for tensor in rows.values() if tensor.ndim > 1}
        for path, tensor in rows.items():
            name = str(path[-1])
            if masks.looks_like_mask(tensor, name):
                found[name] = (
                    f"{tuple(tensor.shape)} looks like a mask of padding",
                    f"lambda batch: batch[{name!r}] == 0 (or == 1, if it is 1 where there is "
                    "padding)",
                )
        for path in [*rows, *batch.lists]:
            name, part = str(path[-1]), batch.part(path)
            lengths = _numbers_in(part) if "len" in name else []
            if lengths and max(lengths) in widths and min(lengths) < max(lengths):
                found[name] = (
                    f"holds lengths, of at most {max(lengths)}",
                    f"lambda batch: torch.arange({max(lengths)}) >= "
                    f"torch.as_tensor(batch[{name!r}])[:, None]",
                )
        return found

    def _padding_in(self, tensor: Tensor) -> str | None:
        """What seems to pad the rows of an input, in words."""
        if masks.are_numbers(tensor):
            token = None if counts_up(tensor) else masks.looks_padded(tensor)
            return None if token is None else str(token)
        is_sound = tensor.ndim == 2 and tensor.shape[1] >= SEQUENCE
        if not tensor.is_floating_point() or not (is_sound or tensor.ndim == 3):
            return None
        if tensor.shape[1] < 3 or not any(_ends_alike(tensor, *ends) for ends in ENDS):
            return None  # quickly: unique is slow
        frames = tensor if tensor.ndim == 3 else tensor[..., None]
        _, numbers = frames.detach().flatten(0, 1).unique(dim=0, return_inverse=True)
        token = masks.looks_padded(numbers.view(frames.shape[:2]))
        return None if token is None else "one and the same frame"


def _ends_alike(frames: Tensor, end: int, inner: int) -> bool:
    """Whether in any row of [n, T] or [n, T, d] the same stands at these two positions."""
    alike = frames[:, end] == frames[:, inner]
    return bool(alike.any() if alike.ndim == 1 else alike.all(-1).any())


def _numbers_in(part: object) -> list[int]:
    """The whole numbers in a tensor [n] or a list; none if there are others."""
    if isinstance(part, Tensor):
        return part.tolist() if part.ndim == 1 and masks.are_numbers(part) else []
    is_list = isinstance(part, (list, tuple)) and all(type(one) is int for one in part)
    return list(part) if is_list else []  # type: ignore[call-overload]
