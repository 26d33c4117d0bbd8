"""Ways in which a training loop silently loses its protection: none of them is silent."""
