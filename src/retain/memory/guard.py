"""A memory's eye on its weights: what moves them, and whether it was there to hold them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary, WeakSet

from torch.optim import Optimizer

from retain.memory import alarms
from retain.memory.attachment import Attachment, is_idle
from retain.memory.averages import Averages
from retain.memory.coverage import Coverage
from retain.memory.elsewhere import Elsewhere
from retain.memory.gradients import Gradients
from retain.memory.growth import hold_grown
from retain.memory.holder import Holder
from retain.memory.lent_gradients import ledger_of
from retain.memory.loss_scale import LossScale
from retain.memory.movement import Distance, Movement, can_be_read, unrelated
from retain.memory.overshoot import Overshoot
from retain.memory.places import Place, StillThere, places_in
from retain.memory.steps import listen, listeners
from retain.memory.twins import holds_the_same
from retain.memory.watched import AttachedOptimizer, Said, SteppedOptimizer, parameters_of
from retain.parameters import shape_of
from retain.penalty import Number
from retain.penalty.hold import is_accelerated
from retain.saying import warn

REPLACED = 0.5  # of ‖θ*‖: nearer, a parameter in the place of another is taken for a copy of it


class Guard:
    """Hears of every optimizer's steps, and says once what would otherwise go unnoticed.

    Held weights that move are accounted for if an attached optimizer moved them, or if `penalty()`
    was in a gradient since. Whatever else moves them is told: at once, if it is a step of a torch
    optimizer while the memory is in use; otherwise when the memory is used next.
    """

    def __init__(self, memory: Holder) -> None:
        self._memory = weakref.ref(memory)
        self._say = Said()
        self._named: set[str] = set()  # parameters of which it was said that they are free
        self._movement = Movement()
        self._averages = Averages(self._say)
        self._loss_scale = LossScale(self._say)
        self._elsewhere = Elsewhere(self._say)
        self._overshoot = Overshoot(self._say)
        self._places: dict[str, Place] = {}
        self._standing = StillThere(())
        self._places_of: tuple[object, object] = (None, None)  # the terms and the selection then
        self._known: WeakKeyDictionary[Optimizer, SteppedOptimizer] = WeakKeyDictionary()
        self._attached: WeakKeyDictionary[Optimizer, AttachedOptimizer] = WeakKeyDictionary()
        self._never_removed = 0  # attachments, those included whose optimizers are gone
        self._steps = 0  # protected ones
        self._asked = 0  # how often penalty() was called
        self._asked_then = 0  # … when an optimizer last stepped
        self._entered = 0  # how often penalty() entered a gradient
        self._settled = 0  # … when the weights were last looked at
        self._consumed: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._used = 0  # … of which an optimizer that steps held weights knows
        self._entered_with: Number | None = None  # … the last time: the factor of the penalty
        self._inside: WeakSet[Optimizer] = WeakSet()  # attached, and in a step
        self._around: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # … and around those
        self._counted: WeakSet[Optimizer] = WeakSet()  # steps of these have the penalty in them
        self._stepped = False  # whether there was a protected step since the anchor was set
        self._in_use = False  # penalty() entered a gradient since the anchor was set

    # ---- what the memory tells ----

    def anchored(self) -> None:
        """Ω and θ* are new: weights rest where they are."""
        self._in_use = self._stepped = False
        memory = self._memory()
        if memory is not None:
            memory._forget_what_was_held()
        self._overshoot.forget()
        self._averages.start(None if memory is None else memory.model)
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
        pairs = [
            (place.parameter, anchor[name])
            for name, place in self._places.items()
            if shape_of(place.parameter) == anchor[name].shape
        ]
        total = Distance.over(Distance.of(p, star) for p, star in pairs)
        # Scales of norms are near 1 in every model, so the matrices are looked at by themselves:
        # training may take small ones far, and leaves a part of where they began.
        matrices = [(p, star) for p, star in pairs if p.dim() > 1]
        among = Distance.over(Distance.of(p, star) for p, star in matrices)
        if not total.relative <= REPLACED:
            self._say("loaded", alarms.loaded(memory, total))
        elif not among.relative <= REPLACED and unrelated(matrices):
            self._say("loaded", alarms.loaded(memory, among))

    def attached(self, attachments: Iterable[Attachment]) -> None:
        """Steps of their optimizers are protected from here on."""
        memory = self._memory()
        for attachment in attachments:
            optimizer = attachment.optimizer
            if optimizer not in self._attached:
                self._never_removed += 1
                mark = self._attached[optimizer] = AttachedOptimizer(attachment)
                mark.hooks.append(optimizer.register_step_pre_hook(mark.runs))
            if memory is not None and memory._state.terms:
                self._wait_for_gradients(optimizer)
                self._cover(memory, optimizer)
                self._averages.look_again()
                self._averages.see_statistics(memory.model)
        listen(self)

    def removed(self, optimizer: Optimizer) -> None:
        """A handle was removed: the optimizer is meant to be free, if it was ever protected."""
        self._counted.discard(optimizer)
        mark = self._attached.pop(optimizer, None)
        if mark is not None:
            self._never_removed -= mark.steps > 0
            mark.remove()

    def asked(self) -> None:
        """`penalty()` was called."""
        self._asked += 1

    def entered(self, weight: Number) -> None:
        """`penalty()` is in a gradient, times `weight`."""
        self._entered += 1
        self._entered_with = weight
        self._in_use = True

    def look(self, *, closely: bool = True) -> None:
        """Say so, once, if held weights have moved and nobody accounts for it.

        Args:
            closely: look at what has grown, and behind the counters, also where that means to wait
                for an accelerator.
        """
        memory = self._memory()
        if memory is None or not memory._state.terms:
            return
        if closely:
            hold_grown(memory)
        parameters = {name: place.parameter for name, place in self._placed().items()}
        idle = self._entered == self._settled  # else a loop takes its steps by hand
        here = idle and not any(is_accelerated(p) for p in parameters.values())
        moved = self._movement.moved(parameters, closely=closely or here)
        if moved:
            if idle:
                self._say_moved(memory, moved)
            self._movement.record(parameters.values())
        self._settled = self._entered

    @property
    def places(self) -> Mapping[str, Place]:
        """Where the model has what is held, by name: the same object while nothing is replaced."""
        return self._placed()

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
        if mark is None and not now.moves:
            if known is None or known.signature != now.signature:
                self._see_adapters(memory, optimizer)
            if not now.ours:
                self._elsewhere.steps(
                    memory,
                    optimizer,
                    self._attached,
                    entered=self._entered,
                    taken=max(self._used, self._settled),
                    held=(place.parameter for place in self._places.values()),
                )
            return
        if mark is None and (self._inside or self._is_around(optimizer)):
            self._around[optimizer] = self._steps
            return
        self._elsewhere.clear()
        entered = self._entered > self._consumed.get(optimizer, 0)
        asked = self._asked > self._asked_then
        self._consumed[optimizer], self._asked_then = self._entered, self._asked
        self._used = self._entered
        if mark is not None:
            mark.ran = False
            mark.goes_last()
            self._inside.add(optimizer)
            self._wait_for_gradients(optimizer)
        if entered:
            self._loss_scale.see(optimizer, self._entered_with)
        if mark is not None and not now.ours:
            self._say("lost", alarms.lost(memory, optimizer))
        elif entered or (mark is not None and mark.form != "loss") or not memory.strength:
            if known is None or known.signature != now.signature:
                self._cover(memory, optimizer)
            self._averages.see_statistics(memory.model)
            self._averages.see_buffers(optimizer)
            if mark is not None and mark.form == "gradient":
                self._overshoot.see(memory, optimizer, now.ours)
            self._see_twins(memory, optimizer)
        elif self._never_removed > 0 or self._in_use or asked:
            self._say_unprotected(memory, optimizer, asked=asked)

    def after(self, optimizer: Optimizer) -> None:
        """It has stepped; told twice of a step that is watched, before and after the watchers."""
        inside = optimizer in self._inside
        self._inside.discard(optimizer)
        memory, known = self._memory(), self._known.get(optimizer)
        if memory is None or not memory._state.terms or known is None or not known.ours:
            return
        mark, before = self._attached.get(optimizer), self._around.pop(optimizer, None)
        if before is not None and not self._inside:
            if before == self._steps:  # it did not let the attached optimizer step
                self._say_unprotected(memory, optimizer)
            self._movement.record(place.parameter for place in known.ours)
        elif mark is not None and mark.form != "loss":
            if mark.ran and inside:
                mark.steps += 1
                self._steps += 1
                self._stepped = True
                self._movement.record(place.parameter for place in known.ours)
            elif not mark.ran:
                self._say("unhooked", alarms.unhooked(memory, optimizer))
        elif self._consumed.get(optimizer, 0) > self._settled:
            self._steps += 1
            self._stepped = True
            self._movement.record(place.parameter for place in known.ours)

    def _is_around(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer keeps an attached one, which it steps (Lookahead, SAM)."""
        kept = vars(optimizer).values()
        return any(isinstance(one, Optimizer) and one in self._attached for one in kept)

    def _wait_for_gradients(self, optimizer: Optimizer) -> None:
        """Hear of gradients of one held parameter of the optimizer, while it is attached."""
        mark = self._attached[optimizer]
        if mark.waits:
            return
        usable = [
            place.parameter
            for place in self._look_at(optimizer).ours
            if place.parameter.requires_grad and can_be_read(place.parameter)
        ]
        if usable:
            mark.waits = True
            us = weakref.ref(self)
            hook = Gradients(
                usable[-1],
                lambda: guard._accounted() if (guard := us()) else 0,
                lambda: guard._moved_by_hand() if (guard := us()) else None,
            )
            mark.hooks.append(usable[-1].register_hook(hook))

    def _accounted(self) -> int:
        """How many steps were protected; at each gradient inside of one (a closure's), one more."""
        if self._inside:
            self._steps += 1
        return self._steps

    def _moved_by_hand(self) -> None:
        """Held weights move between backward passes, without a step of an optimizer."""
        if self._entered == self._settled:
            self.look()

    def _look_at(self, optimizer: Optimizer) -> SteppedOptimizer:
        """What the optimizer holds now, of all and of ours."""
        parameters = parameters_of(optimizer)
        signature = tuple((id(p), p.requires_grad) for p in parameters)
        known = self._known.get(optimizer)
        # What it costs follows what this optimizer steps: there may be one for each parameter.
        same = known is not None and known.signature == signature
        some = (
            known.standing if known is not None and same and known.places is self._places else None
        )
        at = self._placed(some)
        if known is None or not same or known.places is not at:
            held = {id(place.parameter): place for place in at.values()}
            ours = tuple(held[id(p)] for p in parameters if id(p) in held)
            known = self._known[optimizer] = SteppedOptimizer(signature, at, ours, StillThere(ours))
        return known

    def _placed(self, some: StillThere | None = None) -> dict[str, Place]:
        """Where the model has what is held, by name; anew if any has changed, or any of `some`."""
        memory = self._memory()
        if memory is None:
            return {}
        terms, selection = self._places_of
        same = terms is memory._state.terms and selection is memory.selection
        if same and (some or self._standing).is_whole:
            return self._places
        hold_grown(memory)
        before, self._places = self._places, places_in(memory)
        self._standing = StillThere(self._places.values())
        self._places_of = memory._state.terms, memory.selection
        replaced = [
            name
            for name, place in self._places.items()
            if name in before and before[name].parameter is not place.parameter
        ]
        if replaced:
            self._averages.look_again()
            self._movement.start([place.parameter for place in self._places.values()])
            self._say_replaced(memory, replaced)
        return self._places

    # ---- what is said ----

    def _say_unprotected(
        self, memory: Holder, optimizer: Optimizer, *, asked: bool = False
    ) -> None:
        ours = self._look_at(optimizer).ours
        names = [place.name for place in ours if place.parameter.requires_grad]
        idle = is_idle(optimizer, lambda p: p.grad)
        if not idle and self._twin(memory, optimizer) is None:
            self._say("unprotected", alarms.unprotected(memory, optimizer, names, asked=asked))

    def _see_twins(self, memory: Holder, optimizer: Optimizer) -> None:
        """Warn if the same weights are held twice by the same importance; looked at once."""
        if optimizer in self._counted:
            return
        self._counted.add(optimizer)
        twin = self._twin(memory, optimizer)
        if twin is not None:
            twin._say.add("twice")
            self._say("twice", alarms.twice(memory, optimizer))

    def _twin(self, memory: Holder, optimizer: Optimizer) -> Guard | None:
        """The guard of another memory that is the same and holds what the optimizer steps."""
        for other in listeners():
            if isinstance(other, Guard) and other is not self:
                twin = other._memory()
                steps = optimizer in other._counted or optimizer in other._attached
                if steps and twin is not None and holds_the_same(memory, twin):
                    return other
        return None

    def _cover(self, memory: Holder, optimizer: Optimizer) -> None:
        """Name what the optimizer trains and nothing holds, unless it is said to be free."""
        inside = set(map(id, parameters_of(optimizer)))
        coverage = Coverage.of(memory.model, memory.selection, memory._state, inside)
        new = {name: why for name, why in coverage.unheld.items() if name not in self._named}
        if new:
            self._named.update(new)
            warn(alarms.uncovered(memory, optimizer, coverage.share, new))

    def _say_moved(self, memory: Holder, moved: list[str]) -> None:
        anchor = memory.anchor
        here = {name: self._places[name].parameter for name in moved}
        # One that has another shape by now is told of where it is held.
        away = {
            name: Distance.of(p, anchor[name])
            for name, p in here.items()
            if shape_of(p) == anchor[name].shape
        }
        if any(distance.moved for distance in away.values()):  # not back at the anchor
            since = self._stepped or bool(self._settled)
            self._say("moved", alarms.moved(memory, away, stepped=since))

    def _say_replaced(self, memory: Holder, names: list[str]) -> None:
        places, anchor = self._places, memory.anchor
        same = [name for name in names if shape_of(places[name].parameter) == anchor[name].shape]
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
            self._say("replaced", alarms.replaced(memory, far))
        new = {id(places[name].parameter): name for name in names}
        for optimizer in self._attached:
            contained = set(map(id, parameters_of(optimizer)))
            stale = [name for key, name in new.items() if key not in contained]
            if stale:
                self._say("stale", alarms.stale(optimizer, stale))

    def _see_adapters(self, memory: Holder, optimizer: Optimizer) -> None:
        """An optimizer that steps nothing that is held may step what was put into the model."""
        inside = set(map(id, memory.model.parameters()))
        in_use = self._never_removed > 0 or self._in_use
        attached = ledger_of(optimizer).in_use  # something else that is: LoraPenalty
        if in_use and not attached and any(id(p) in inside for p in parameters_of(optimizer)):
            self._cover(memory, optimizer)
