"""What one sample is: in a batch of any shape, and in what a model returns for it.

`batches` takes what a loader hands out apart and calls the model with it, `outputs` names what of
the model's answer counts, and ‖F‖² of it per sample. `masks`, `packing` and `rows` say which
positions count, where a text ends in a row that holds several, and which sample a row belongs to;
`pairs` reads masks over pairs of positions. `containers`, `calls` and `owners` find tensors and
samples in any nesting. `probe` tries, on a few samples, whether samples stay apart at all, and
`barriers` whether texts in a row do. `suspicions` says what looks like padding without a mask.
`reader` goes through a loader with all of it.
"""
