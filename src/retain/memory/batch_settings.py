"""How a memory that learns from data reads its batches: settings that may be functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from retain.samples.owners import PaddingMask, SamplesOf
from retain.samples.reader import LOST, Reader

# Arguments of the constructors, and where a plain form of them is found.
READING: Mapping[str, str] = {
    "batch_dim": "_batch_dim",
    "samples_of": "_samples_of",
    "padding_mask": "_padding_mask",
}


class ReadsBatches:
    """What MAS, LocalMAS and EWC have in common where they read data."""

    _reader: Reader
    _arguments: ClassVar[Mapping[str, str]] = READING

    @property
    def samples_of(self) -> SamplesOf:
        """Which sample each row belongs to, where rows are no samples; may be set at any time.

        Examples:
            >>> memory = retain.MAS(model)
            >>> memory.samples_of = lambda rows: [0, 0, 0, 0, 1, 1, 1, 1]  # 4 rows are a sample
            >>> memory.observe([x]).observed.samples
            2
        """
        return self._reader.samples_of

    @samples_of.setter
    def samples_of(self, given: SamplesOf) -> None:
        self._reader = Reader(
            batch_dim=self._batch_dim, samples_of=given, padding_mask=self.padding_mask
        )

    @property
    def padding_mask(self) -> PaddingMask:
        """[n, T] of bools, True where there is padding; may be set at any time.

        Examples:
            >>> memory = retain.MAS(model)
            >>> memory.padding_mask = "pad"  # the batch's entry of that name: True is padding
            >>> memory.padding_mask
            'pad'
        """
        return self._reader.padding_mask

    @padding_mask.setter
    def padding_mask(self, given: PaddingMask) -> None:
        self._reader = Reader(
            batch_dim=self._batch_dim, samples_of=self.samples_of, padding_mask=given
        )

    # ---- as a file or a state holds them ----

    @property
    def _batch_dim(self) -> int:
        return self._reader.batch_dim

    @_batch_dim.setter
    def _batch_dim(self, given: int) -> None:
        self._reader = Reader(
            batch_dim=given, samples_of=self.samples_of, padding_mask=self.padding_mask
        )

    @property
    def _samples_of(self) -> str | None:
        return LOST if callable(self.samples_of) else self.samples_of

    @_samples_of.setter
    def _samples_of(self, given: str | None) -> None:
        if not (given == LOST and callable(self.samples_of)):  # functions stay as they are
            self.samples_of = given

    @property
    def _padding_mask(self) -> str | None:
        return LOST if callable(self.padding_mask) else self.padding_mask

    @_padding_mask.setter
    def _padding_mask(self, given: str | None) -> None:
        if not (given == LOST and callable(self.padding_mask)):
            self.padding_mask = given
