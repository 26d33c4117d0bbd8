"""The rooms of the local rule: which layers run and what follows them, and their sums."""
