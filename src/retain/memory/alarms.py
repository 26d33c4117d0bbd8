"""What is said where protection may be missing: what was seen, what follows, and what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch.optim import Optimizer

from retain.memory.coverage import NAMED, listed, patterns
from retain.memory.holder import Holder
from retain.memory.movement import Distance
from retain.parameters import is_adapters


def moved(memory: Holder, away: Mapping[str, Distance], *, stepped: bool) -> str:
    """Weights have moved by themselves, so far from θ*; `stepped` since a protected step."""
    farthest = sorted(away, key=lambda name: -away[name].moved)
    return (
        f"Weights that {_name(memory)} holds have moved since "
        + ("its last protected step" if stepped else "they were consolidated or loaded")
        + f", and nothing protected them: {Distance.over(away.values())} for {listed(farthest)}. "
        "Optimizers that are not attached do that, and whatever else writes weights (a checkpoint "
        "that is loaded, an average that is swapped in). Attach every optimizer that steps them; "
        "memory.check(optimizer) shows what is held."
    )


def moved_on(memory: Holder, names: Collection[str], samples: int) -> str:
    """Samples were observed, and then the weights changed."""
    return (
        f"{listed(names)}: trained or replaced since {_name(memory)} observed its first "
        f"{samples} samples. Their gradients are those of another network than the one that is "
        "observed or consolidated now, and Ω would be of both. Call consolidate() before weights "
        "change; or observe all data anew, with a new memory, when they have."
    )


def unprotected(
    memory: Holder, optimizer: Optimizer, names: Collection[str], *, asked: bool
) -> str:
    """An optimizer steps held weights; `asked` if penalty() was called, and not used."""
    why = "it is not attached, as another one was or still is, and penalty() is in no gradient"
    if asked:
        why = "penalty() was called, but no gradient of it was asked for"
    return (
        f"This {_name(optimizer)} steps weights that {_name(memory)} holds ({listed(names)}), and "
        f"nothing protects them: {why} since the last step. Call memory.attach(optimizer) for each "
        "optimizer that is made, or add penalty() to each loss; where protection is over, remove() "
        "the handle."
    )


def uncovered(memory: Holder, optimizer: Optimizer, share: float, unheld: Mapping[str, str]) -> str:
    """An optimizer trains weights that nothing holds, name -> why."""
    reasons = {why: [n for n, w in unheld.items() if w == why] for why in unheld.values()}
    said = "; ".join(f"{listed(names)} ({why})" for why, names in reasons.items())
    adapters = any(map(is_adapters, unheld))
    remedy = "Observe data and consolidate() to hold them"
    if adapters:
        remedy = "retain.integrations.peft.LoraPenalty(memory, peft_model) holds what adapters do"
    return (
        f"{_name(memory)} holds {100 * share:.3g} % of the weights that this {_name(optimizer)} "
        f"trains. Trained without importance, and free to move: {said}. {remedy}; if they are "
        "meant to be free, say so: "
        f"memory.exclude = {[*memory.exclude, *patterns(unheld)]}."
    )


def statistics(layers: Collection[str]) -> str:
    """Running statistics follow the new data."""
    return (
        f"The running statistics of {listed(layers)} follow the new data, and with them the "
        "network forgets, however hard its weights are held. Freeze them: frozen = "
        "retain.frozen_statistics(model) before training and frozen.remove() after it, or with "
        "retain.frozen_statistics(model): around it."
    )


def buffers(layers: Collection[str]) -> str:
    """Buffers of other layers follow the new data."""
    return (
        f"Buffers of {listed(layers)} move from step to step. If they are averages of the data "
        "that the network computes with, they follow the new data, and with them the network "
        "forgets, however hard its weights are held. Freeze them: retain.frozen_statistics(model, "
        f"also={list(layers)[:NAMED]})."
    )


def unscaled(scale: float) -> str:
    """The penalty was not in the loss that a GradScaler multiplied."""
    return (
        f"A GradScaler divides the gradients by {scale:,.0f} in this step, but penalty() was not "
        "in the loss that it multiplied: it counts that much less, and protects next to nothing. "
        "Scale them together: scaler.scale(loss + memory.penalty()).backward(); or use "
        "memory.attach(optimizer)."
    )


def overshoots(memory: Holder, name: str, times: float) -> str:
    """The penalty's own step goes farther beyond θ* than the weight was off."""
    return (
        f"{_name(memory)} holds weights of '{name}' so hard that SGD overshoots: λΩ is "
        f"{times:.3g} times what its learning rate can follow, so that each step throws them "
        "farther from θ* than they were, and training diverges. Use "
        'memory.attach(optimizer, form="proximal") or form="adaptive", which are stable for every '
        "strength; or a strength or learning rate that is smaller by that factor."
    )


def lost(memory: Holder, optimizer: Optimizer) -> str:
    """An attached optimizer has other parameters now."""
    return (
        f"The attached {_name(optimizer)} no longer holds any of the parameters that "
        f"{_name(memory)} holds: the model's or the optimizer's were replaced by others, and its "
        "steps protect nothing. Make a new optimizer from model.parameters(), and attach it."
    )


def stale(optimizer: Optimizer, names: Collection[str]) -> str:
    """An attached optimizer has the old parameters still."""
    return (
        f"{listed(names)} was replaced in the model by another parameter, which the attached "
        f"{_name(optimizer)} does not hold: it still steps the old one. Make a new optimizer from "
        "model.parameters(), and attach it."
    )


def replaced(memory: Holder, far: Mapping[str, Distance]) -> str:
    """Modules were replaced by others, far away."""
    return (
        f"{', '.join(f'{module} ({away})' for module, away in far.items())} was replaced since "
        f"{_name(memory)} consolidated, by weights far from those that it holds, and is pulled to "
        "where the old ones were. If this is a new layer that should be free, say so: "
        f"memory.exclude = {[*memory.exclude, *far]}."
    )


def loaded(memory: Holder, total: Distance) -> str:
    """A memory was loaded for a model with other weights."""
    return (
        f"The weights of the model are far from those that {_name(memory)} remembers: {total}. "
        "Load the model's own weights before its memory; as it is, they are pulled to where the "
        "others were."
    )


def twice(memory: Holder, optimizer: Optimizer) -> str:
    """Two memories hold the same weights by the same importance."""
    return (
        f"Two memories with the same importance ({_name(memory)}) hold the weights of this "
        f"{_name(optimizer)}: one is a copy of the other, was loaded from it, or comes from lines "
        "that were run twice, and the penalty counts twice. remove() the handle of one, or leave "
        "its penalty() out of the loss."
    )


def unhooked(memory: Holder, optimizer: Optimizer) -> str:
    """The hooks of an attachment did not run."""
    return (
        f"The step of this {_name(optimizer)} was not protected, although {_name(memory)} is "
        "attached to it: something has cleared its hooks. remove() the handle and attach it again."
    )


def elsewhere(memory: Holder, optimizer: Optimizer) -> str:
    """The penalty of one model is in the loss of another."""
    return (
        f"penalty() is in the gradient, but this {_name(optimizer)} steps none of the parameters "
        f"that {_name(memory)} holds: they belong to another model, of which this may be a copy. "
        "Make the memory for the model that is trained (memory.model is the one that it holds)."
    )


def copied(memory: Holder, optimizer: Optimizer) -> str:
    """A copy is trained in place of the model."""
    return (
        f"This {_name(optimizer)} steps a copy of the weights that {_name(memory)} holds, and the "
        "attached optimizer has made no step: nothing protects the copy. Copy model and memory "
        "together, copy.deepcopy((model, memory)), and attach the optimizer of the copy."
    )


def _name(of: object) -> str:
    return type(of).__name__
