"""The local rule: Σₖ |∂‖y_l‖²/∂θ| of every layer's own output, by forward passes alone (l-MAS).

A forward pass is watched (`watch`), which sees layers (`layer_calls`) and what follows them
(`torch_functions`, `activations`). Which rows of a layer belong to which sample is found out
(`ownership`), and their gradients are summed (`sums`). `forward_passes` joins these, `rule` offers
them for batches, and `serving` for the calls of a model that answers somebody else.
"""
