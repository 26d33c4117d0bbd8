"""A word about weights that would be left free though nobody asked for that."""

from __future__ import annotations

from torch import Tensor, nn

from retain.memory.running_sums import Running
from retain.samples.containers import leaves
from retain.saying import warn

GLANCE = 1024  # numbers: nearly always there is something among the first few


def warn_of_zeros(running: Running, known: set[str]) -> None:
    """One warning about parameters that were used and have no importance at all; names them.

    Their gradient is 0 because a factor behind them is: so it is for A of a fresh LoRA adapter,
    whose B is 0, and for a branch that starts at 0. Training moves them all the same.
    """
    # sums only grow: what is more than zero once stays so
    unsure = running.sums.keys() - known - running.alive
    asked = {name for name in unsure if running.routes.get(name) != "unused"}
    zero = [name for name, total in running.sums.items() if name in asked and _is_zero(total)]
    running.alive |= asked.difference(zero)
    known.update(zero)
    if not zero:
        return
    shown = ", ".join(zero[:4]) + (f" and {len(zero) - 4} more" if len(zero) > 4 else "")
    adapters = any(part.startswith("lora_") for name in zero for part in name.split("."))
    remedy = (
        "These are of a fresh adapter, whose other half is 0. To hold what an adapter does, "
        "observe the base model, before the adapter is put into it or inside "
        "retain.integrations.peft.base_weights(peft_model), and hold it with "
        "retain.integrations.peft.LoraPenalty(memory, peft_model)."
        if adapters
        else "What follows them is 0 for everything that was observed. Observe again once the "
        "model is trained, or observe data that use them; or leave them out with exclude=…"
    )
    warn(f"The importance of {shown} is 0 throughout: nothing will hold them. {remedy}")


def warn_of_kept(model: nn.Module, running: Running, known: set[str]) -> None:
    """One warning about unused parameters whose modules keep tensors of an earlier call.

    In evaluation some modules keep what they made of their parameters (the attention biases of a
    LeViT): if that was made without gradients, no output leads to these any longer.
    """
    unused = [name for name, route in running.routes.items() if route == "unused"]
    modules, kept = dict(model.named_modules()) if unused else {}, dict[str, str]()
    for name in unused:
        owner = name.rpartition(".")[0]
        held = _held(modules[owner]) if owner in modules and name not in known else None
        if held is not None and _is_zero(running.sums[name]):
            kept[name] = f"{owner}.{held}".lstrip(".")
    known.update(kept)
    if not kept:
        return
    names, places = list(kept), list(dict.fromkeys(kept.values()))
    shown, where = (
        ", ".join(some[:4]) + (f" and {len(some) - 4} more" if len(some) > 4 else "")
        for some in (names, places)
    )
    warn(
        f"The importance of {shown} is 0: no output leads to them, and their modules keep tensors "
        f"of an earlier call, which may have been made of them ({where}). Call model.train() "
        "before you observe, which has such modules forget them, or leave these parameters out "
        "with exclude=…"
    )


def _held(module: nn.Module) -> str | None:
    """The attribute of a module in which it keeps tensors without a gradient, if it does."""
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        tensors = [tensor for _, tensor in leaves(value)]
        if any(t.is_floating_point() and t.numel() > 1 and not t.requires_grad for t in tensors):
            return name
    return None


def _is_zero(total: Tensor) -> bool:
    # no number in it is below 0, and a sum is quicker than any()
    return not total.reshape(-1)[:GLANCE].any() and not total.sum()
