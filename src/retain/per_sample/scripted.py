"""TorchScript modules, run operation by operation.

Once compiled, a scripted module is one node in the autograd graph, and nothing in it can be seen.
Interpreted, it leaves the same graph as the module that it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def interpreted(model: nn.Module) -> Iterator[None]:
    """With every scripted module in `model` interpreted; its own compiled form is left alone."""
    scripted = _outermost(model)
    with ExitStack() as stack:
        if scripted:
            stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
        for module in scripted:
            # found before the class's own, which leads to the compiled form
            vars(module)["forward"] = _interpreter(module)
            stack.callback(vars(module).pop, "forward")
        yield


def _outermost(model: nn.Module) -> list[torch.jit.ScriptModule]:
    """The scripted modules that are in no other; those inside run as part of theirs."""
    found: dict[str, torch.jit.ScriptModule] = {}
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, torch.jit.ScriptModule) and not inside:
            found[name] = module
    return list(found.values())


def _interpreter(module: torch.jit.ScriptModule) -> Callable[..., Any]:
    """What `forward` does, as a function that has not been compiled for anybody yet."""
    arguments = module.forward.schema.arguments[1:]  # type: ignore[attr-defined]
    # no public function runs a graph without the plan that was cached for it
    run = torch._C._create_function_from_graph("forward", module.inlined_graph)

    def forward(*args: Any, **kwargs: Any) -> Any:
        rest = [kwargs.get(a.name, a.default_value) for a in arguments[len(args) :]]
        return run(module._c, *args, *rest)

    return forward
