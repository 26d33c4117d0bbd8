"""The local rule by its definition: autograd, one sample at a time, no code in common."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def local_truth(
    model: nn.Module, inputs: Tensor, ends: Mapping[str, str], *, batch_dim: int = 0
) -> dict[str, Tensor]:
    """Σₖ|∂‖y_l(xₖ)‖²/∂θ| by parameter, each layer's input held constant.

    `ends`: a layer's name → the name of the module whose output is its y_l.
    """
    modules, norms, handles = dict(model.named_modules()), [], []
    sums: dict[str, Tensor] = {}
    for layer, end in ends.items():
        handles += [
            modules[layer].register_forward_pre_hook(lambda m, args: (args[0].detach().clone(),)),
            modules[end].register_forward_hook(
                lambda m, args, out: norms.append(out.clone().square().sum())
            ),
        ]
    parameters = {
        f"{layer}.{name}": p for layer in ends for name, p in modules[layer].named_parameters()
    }
    for k in range(inputs.shape[batch_dim]):
        norms.clear()
        model(inputs.narrow(batch_dim, k, 1))
        gradients = torch.autograd.grad(sum(norms), list(parameters.values()))
        for name, g in zip(parameters, gradients):
            sums[name] = sums.get(name, 0) + g.abs()
    for handle in handles:
        handle.remove()
    return sums
