"""A memory's eye on its weights: what moves them, and whether it was there to hold them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from retain.memory.coverage import Coverage, listed, patterns
from retain.memory.gradients import Gradients
from retain.memory.growth import hold_grown
from retain.memory.movement import Distance, Movement, alike, can_be_read
from retain.memory.places import Place, places_in
from retain.memory.steps import listen
from retain.saying import warn
from retain.statistics import layers_with_statistics, moves_statistics

if TYPE_CHECKING:
    from retain.memory.body import Memory

PATIENCE = 2  # steps elsewhere before a word is said: the first may be another network's
REPLACED = 0.5  # of ‖θ*‖: nearer, a parameter in the place of another is taken for a copy of it


class Stepped(NamedTuple):
    """What is known of an optimizer: its parameters when it was looked at, and ours among them."""

    signature: tuple[tuple[int, bool], ...]
    places: object  # the dictionary of places then
    ours: tuple[Place, ...]


class Guard:
    """Hears of every optimizer's steps, and says once what would otherwise go unnoticed.

    Held weights that move are accounted for if an attached optimizer moved them, or if `penalty()`
    was in a gradient since. Whatever else moves them is told: at once, if it is a step of a torch
    optimizer while the memory is in use; otherwise when the memory is used next.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = weakref.ref(memory)
        self._said: set[str] = set()
        self._named: set[str] = set()  # parameters of which it was said that they are free
        self._movement = Movement()
        self._statistics: dict[str, nn.Module] | None = None
        self._places: dict[str, Place] = {}
        self._places_of: tuple[object, object] = (None, None)  # the terms and the selection then
        self._known: WeakKeyDictionary[Optimizer, Stepped] = WeakKeyDictionary()
        self._attached: WeakKeyDictionary[Optimizer, _Attached] = WeakKeyDictionary()
        self._never_removed = 0  # attachments, those included whose optimizers are gone
        self._steps = 0  # protected ones
        self._asked = 0  # how often penalty() was called
        self._asked_then = 0  # … when an optimizer last stepped
        self._entered = 0  # how often penalty() entered a gradient
        self._settled = 0  # … when the weights were last looked at
        self._consumed: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._elsewhere: WeakKeyDictionary[Optimizer, tuple[int, int]] = WeakKeyDictionary()
        self._in_use = False  # penalty() entered a gradient since the anchor was set

    # ---- what the memory tells ----

    def anchored(self) -> None:
        """Ω and θ* are new: weights rest where they are."""
        self._in_use = False
        self._places = {}
        self._movement.start([place.parameter for place in self._placed().values()])
        self._settled = self._entered
        listen(self)

    def loaded(self) -> None:
        """Ω and θ* come from elsewhere: the weights should be those that they were made for."""
        self.anchored()
        memory = self._memory()
        if memory is None or not self._places:
            return
        anchor = memory.anchor
        total = Distance.over(
            Distance.of(place.parameter, anchor[name])
            for name, place in self._places.items()
            if place.parameter.shape == anchor[name].shape
        )
        if not total.relative <= REPLACED:
            self._say(
                "loaded",
                f"The weights of the model are far from those that {_name(memory)} remembers: "
                f"{total}. Load the model's own weights before its memory; as it is, they are "
                "pulled to where the others were.",
            )

    def attached(self, optimizers: Iterable[Optimizer], form: str) -> None:
        """Steps of these are protected from here on."""
        memory = self._memory()
        for optimizer in optimizers:
            if optimizer not in self._attached:
                self._never_removed += 1
                mark = self._attached[optimizer] = _Attached(form)
                mark.hooks.append(optimizer.register_step_pre_hook(mark.runs))
            if memory is not None and memory._state.terms:
                self._wait_for_gradients(optimizer)
                self._cover(memory, optimizer)
                self._see_statistics(memory)
        listen(self)

    def removed(self, optimizer: Optimizer) -> None:
        """A handle was removed: the optimizer is meant to be free, if it was ever protected."""
        mark = self._attached.pop(optimizer, None)
        if mark is not None:
            self._never_removed -= mark.steps > 0
            mark.remove()

    def asked(self) -> None:
        """`penalty()` was called."""
        self._asked += 1

    def entered(self) -> None:
        """`penalty()` is in a gradient."""
        self._entered += 1
        self._in_use = True

    def look(self, *, closely: bool = True) -> None:
        """Say so, once, if held weights have moved and nobody accounts for it."""
        memory = self._memory()
        if memory is None or not memory._state.terms:
            return
        if closely:
            hold_grown(memory)
        parameters = {name: place.parameter for name, place in self._placed().items()}
        moved = self._movement.moved(parameters, closely=closely)
        if moved:
            if self._entered == self._settled:  # else a loop takes its steps by hand
                self._say_moved(memory, moved)
            self._movement.record(parameters.values())
        self._settled = self._entered

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of held parameters that moved without protection, as far as is not told yet."""
        parameters = {name: place.parameter for name, place in self._placed().items()}
        return tuple(self._movement.moved(parameters, closely=True))

    # ---- what optimizers do ----

    def before(self, optimizer: Optimizer) -> None:
        """An optimizer, any in the process, is about to step."""
        memory = self._memory()
        if memory is None or not memory._state.terms:
            return
        mark, known = self._attached.get(optimizer), self._known.get(optimizer)
        now = self._look_at(optimizer)
        if mark is None and not now.ours:
            self._steps_elsewhere(memory, optimizer, now)
            return
        self._elsewhere.clear()
        entered = self._entered > self._consumed.get(optimizer, 0)
        asked = self._asked > self._asked_then
        self._consumed[optimizer], self._asked_then = self._entered, self._asked
        if mark is not None:
            mark.ran = False
            self._wait_for_gradients(optimizer)
        if mark is not None and not now.ours:
            self._say_lost(memory, optimizer)
        elif entered or (mark is not None and mark.form != "loss") or not memory.strength:
            if known is None or known.signature != now.signature:
                self._cover(memory, optimizer)
            self._see_statistics(memory)
        elif self._never_removed > 0 or self._in_use or asked:
            self._say_unprotected(memory, optimizer, now, asked=asked)

    def after(self, optimizer: Optimizer) -> None:
        """It has stepped."""
        memory, known = self._memory(), self._known.get(optimizer)
        if memory is None or not memory._state.terms or known is None or not known.ours:
            return
        mark = self._attached.get(optimizer)
        if mark is not None and mark.form != "loss":
            if mark.ran:
                mark.steps += 1
                self._steps += 1
                self._movement.record(place.parameter for place in known.ours)
            else:
                self._say_unhooked(memory, optimizer)
        elif self._consumed.get(optimizer, 0) > self._settled:
            self._steps += 1
            self._movement.record(place.parameter for place in known.ours)

    def _wait_for_gradients(self, optimizer: Optimizer) -> None:
        """Hear of gradients of one held parameter of the optimizer, while it is attached."""
        mark, ours = self._attached[optimizer], self._look_at(optimizer).ours
        usable = [
            place.parameter
            for place in ours
            if place.parameter.requires_grad and can_be_read(place.parameter)
        ]
        if usable and not mark.waits:
            mark.waits = True
            us = weakref.ref(self)
            hook = Gradients(
                usable[-1],
                lambda: guard._steps if (guard := us()) else 0,
                lambda: guard._moved_by_hand() if (guard := us()) else None,
            )
            mark.hooks.append(usable[-1].register_hook(hook))

    def _moved_by_hand(self) -> None:
        """Held weights move between backward passes, without a step of an optimizer."""
        if self._entered == self._settled:
            self.look()

    def _look_at(self, optimizer: Optimizer) -> Stepped:
        """What the optimizer holds now, of all and of ours."""
        parameters = _parameters(optimizer)
        signature = tuple((id(p), p.requires_grad) for p in parameters)
        known = self._known.get(optimizer)
        # What it costs follows what this optimizer steps: there may be one for each parameter.
        at = self._placed(None if known is None or known.signature != signature else known.ours)
        if known is None or known.signature != signature or known.places is not at:
            held = {id(place.parameter): place for place in at.values()}
            ours = tuple(held[id(p)] for p in parameters if id(p) in held)
            known = self._known[optimizer] = Stepped(signature, at, ours)
        return known

    def _placed(self, looked_at: Iterable[Place] | None = None) -> dict[str, Place]:
        """Where the model has what is held, by name; anew if any of `looked_at` has changed."""
        memory = self._memory()
        if memory is None:
            return {}
        terms, selection = self._places_of
        same = terms is memory._state.terms and selection is memory.selection
        some = self._places.values() if looked_at is None else looked_at
        if same and all(place.is_taken for place in some):
            return self._places
        hold_grown(memory)
        before, self._places = self._places, places_in(memory)
        self._places_of = memory._state.terms, memory.selection
        replaced = [
            name
            for name, place in self._places.items()
            if name in before and before[name].parameter is not place.parameter
        ]
        if replaced:
            self._movement.start([place.parameter for place in self._places.values()])
            self._say_replaced(memory, replaced)
        return self._places

    # ---- what is said ----

    def _say(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            warn(text)

    def _cover(self, memory: Memory, optimizer: Optimizer) -> None:
        """Name what the optimizer trains and nothing holds, unless it is said to be free."""
        inside = set(map(id, _parameters(optimizer)))
        coverage = Coverage.of(memory.model, memory.selection, memory._state, inside)
        new = {name: why for name, why in coverage.unheld.items() if name not in self._named}
        if not new:
            return
        self._named.update(new)
        reasons = {why: [n for n, w in new.items() if w == why] for why in new.values()}
        said = "; ".join(f"{listed(names)} ({why})" for why, names in reasons.items())
        warn(
            f"{_name(memory)} holds {100 * coverage.share:.3g} % of the weights that this "
            f"{_name(optimizer)} trains. Trained without importance, and free to move: {said}. "
            "Observe data and consolidate() to hold them; if they are meant to be free, say so: "
            f"memory.exclude = {[*memory.exclude, *patterns(new)]}."
        )

    def _see_statistics(self, memory: Memory) -> None:
        """Warn of running statistics that follow the new data, and name the way to keep them."""
        if "statistics" in self._said:
            return
        if self._statistics is None:
            self._statistics = layers_with_statistics(memory.model)
        moving = [name for name, layer in self._statistics.items() if moves_statistics(layer)]
        if moving:
            self._say(
                "statistics",
                f"The running statistics of {listed(moving)} follow the new data, and with them "
                "the network forgets, however well its weights are held. Keep them: "
                "frozen = retain.frozen_statistics(model) before training and frozen.remove() "
                "after it, or with retain.frozen_statistics(model): around it.",
            )

    def _say_moved(self, memory: Memory, moved: list[str]) -> None:
        anchor = memory.anchor
        away = {name: Distance.of(self._places[name].parameter, anchor[name]) for name in moved}
        total = Distance.over(away.values())
        if not total.moved:  # back at the anchor
            return
        since = any(mark.steps for mark in self._attached.values()) or self._settled
        self._say(
            "moved",
            f"Weights that {_name(memory)} holds have moved since "
            + ("its last protected step" if since else "they were consolidated or loaded")
            + f", and nothing protected them: {total} for "
            + listed(sorted(away, key=lambda name: -away[name].moved))
            + ". Optimizers that are not attached do that, and whatever else writes weights. "
            "Attach every optimizer that steps them; memory.check(optimizer) shows what is held.",
        )

    def _say_unprotected(
        self, memory: Memory, optimizer: Optimizer, now: Stepped, *, asked: bool
    ) -> None:
        why = "it is not attached, as another one was or still is, and penalty() is in no gradient"
        if asked:
            why = "penalty() was called, but no gradient of it was asked for"
        self._say(
            "unprotected",
            f"This {_name(optimizer)} steps weights that {_name(memory)} holds "
            f"({listed([place.name for place in now.ours])}), and nothing protects them: {why} "
            "since the last step. Call memory.attach(optimizer) for each optimizer that is made, "
            "or add penalty() to each loss; where protection is over, remove() the handle.",
        )

    def _say_lost(self, memory: Memory, optimizer: Optimizer) -> None:
        self._say(
            "lost",
            f"The attached {_name(optimizer)} no longer holds any of the parameters that "
            f"{_name(memory)} holds: the model's or the optimizer's were replaced by others, and "
            "its steps protect nothing. Make the optimizer anew from model.parameters(), and "
            "attach it.",
        )

    def _say_replaced(self, memory: Memory, names: list[str]) -> None:
        places, anchor = self._places, memory.anchor
        same = [name for name in names if places[name].parameter.shape == anchor[name].shape]
        modules: dict[str, list[str]] = {}
        for name in same:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
        far = {}
        for module, inside in modules.items():
            away = Distance.over(
                Distance.of(places[name].parameter, anchor[name]) for name in inside
            )
            if not away.relative <= REPLACED:
                far[module or inside[0]] = away
        if far:
            self._say(
                "replaced",
                f"{', '.join(f'{module} ({away})' for module, away in far.items())} was replaced "
                f"since {_name(memory)} consolidated, by weights far from those that it holds, and "
                "is pulled to where the old ones were. If this is a new layer that is to be free, "
                f"say so: memory.exclude = {[*memory.exclude, *far]}.",
            )
        new = {id(places[name].parameter): name for name in names}
        for optimizer in self._attached:
            contained = set(map(id, _parameters(optimizer)))
            stale = [name for key, name in new.items() if key not in contained]
            if stale:
                self._say(
                    "stale",
                    f"{listed(stale)} was replaced in the model by another parameter, which the "
                    f"attached {_name(optimizer)} does not hold: it still steps the old one. Make "
                    "the optimizer anew from model.parameters(), and attach it.",
                )

    def _say_unhooked(self, memory: Memory, optimizer: Optimizer) -> None:
        self._say(
            "unhooked",
            f"The step of this {_name(optimizer)} was not protected, although {_name(memory)} is "
            "attached to it: something has cleared its hooks. remove() the handle and attach it "
            "again.",
        )

    def _steps_elsewhere(self, memory: Memory, optimizer: Optimizer, now: Stepped) -> None:
        """An optimizer steps other weights: those of another model, which may be meant instead."""
        count, entered = self._elsewhere.get(optimizer, (0, 0))
        if self._entered > max(entered, self._settled):  # the penalty's gradient is waiting
            self._elsewhere[optimizer] = count + 1, self._entered
            if count + 1 >= PATIENCE:
                self._say(
                    "elsewhere",
                    f"penalty() is in the gradient, but this {_name(optimizer)} steps none of the "
                    f"parameters that {_name(memory)} holds: they belong to another model, of "
                    "which this may be a copy. Make the memory for the model that is trained "
                    "(memory.model is the one that it holds).",
                )
            return
        if count or self._is_a_copy(optimizer):
            self._elsewhere[optimizer] = count + 1, entered
            if count + 1 >= PATIENCE:
                self._say(
                    "copy",
                    f"This {_name(optimizer)} steps a copy of the weights that {_name(memory)} "
                    "holds, and the attached optimizer has made no step: nothing protects the "
                    "copy. Copy model and memory together, copy.deepcopy((model, memory)), and "
                    "attach the optimizer of the copy.",
                )

    def _is_a_copy(self, optimizer: Optimizer) -> bool:
        """Whether it is about to step weights that are, so far, what an idle attached one holds."""
        theirs = _parameters(optimizer)
        for one, mark in self._attached.items():
            ours = _parameters(one)
            if not mark.steps and [p.shape for p in ours] == [p.shape for p in theirs]:
                return all(alike(p, q) for p, q in zip(ours, theirs, strict=True))
        return False


class _Attached:
    """What is known of an attachment: whether its optimizer's hooks run, and how often."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.steps = 0
        self.ran = True
        self.waits = False
        self.hooks: list[RemovableHandle] = []

    def runs(self, _optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        """The hook before its step."""
        self.ran = True

    def remove(self) -> None:
        """Take all hooks away."""
        for hook in self.hooks:
            hook.remove()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _name(of: object) -> str:
    return type(of).__name__
