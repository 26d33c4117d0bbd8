"""TorchScript modules, run operation by operation.

Once compiled, a scripted module is one node in the autograd graph, and nothing in it can be seen.
Interpreted, it leaves the same graph as the module that it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


def interpreted(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """With every scripted one of these modules interpreted; its own compiled form is left alone."""
    scripted = [module for module in modules if isinstance(module, torch.jit.ScriptModule)]
    return _interpreted(_outermost(scripted)) if scripted else nullcontext()


@contextmanager
def _interpreted(scripted: Iterable[torch.jit.ScriptModule]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
        for module in scripted:
            # found before the class's own, which leads to the compiled form
            vars(module)["forward"] = _interpreter(module)
            stack.callback(vars(module).pop, "forward")
        yield


def _outermost(scripted: Iterable[torch.jit.ScriptModule]) -> list[torch.jit.ScriptModule]:
    """Those that are in no other, which comes before them; those inside run as part of theirs."""
    found: list[torch.jit.ScriptModule] = []
    inside: set[int] = set()
    for module in scripted:
        if id(module) not in inside:
            found.append(module)
            inside.update(map(id, module.modules()))
    return found


def _interpreter(module: torch.jit.ScriptModule) -> Callable[..., Any]:
    """What `forward` does, as a function that has not been compiled for anybody yet."""
    arguments = module.forward.schema.arguments[1:]  # type: ignore[attr-defined]
    # no public function runs a graph without the plan that was cached for it
    run = torch._C._create_function_from_graph("forward", module.inlined_graph)

    def forward(*args: Any, **kwargs: Any) -> Any:
        rest = [kwargs.get(a.name, a.default_value) for a in arguments[len(args) :]]
        return run(module._c, *args, *rest)

    return forward
