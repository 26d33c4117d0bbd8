"""The ideas that turn a batch into importance."""
