"""Memories: of another model, never consolidated, loaded into the wrong one, two at once."""

from __future__ import annotations

import copy
import functools
import io
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import retain

from .cases import Ended, ended, sabotage
from .optimizers import begun
from .scene import RATE, STRENGTH, ByHand, Network, Scene

case = functools.partial(sabotage, "memory", make=Network)


@case("of another model of the same shape, attached", says="holds none of the protected parameters")
def of_another(scene):
    memory = Scene.new().memory()
    memory.attach(scene.sgd())


@case(
    "of another model of the same shape, in the loss",
    says="penalty.. is in the gradient, but this SGD steps none",
)
def of_another_loss(scene):
    scene.train(scene.sgd(), memory=Scene.new().memory())


@case("never observed", says="Nothing is protected yet")
def never_observed(scene):
    memory = retain.MAS(scene.model)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)


@case("never observed, penalty() in the loss", says="Nothing is protected yet")
def never_observed_loss(scene):
    scene.train(scene.sgd(), memory=retain.MAS(scene.model))


@case("observed and never consolidated", says="observed and never consolidated")
def never_consolidated(scene):
    memory = retain.MAS(scene.model).observe([x for x, _ in scene.first], progress=False)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)


@case("a strength that SGD cannot follow, so that weights are thrown away", says="overshoots")
def too_strong(scene):
    memory, optimizer = scene.memory(), scene.sgd()
    memory.strength = 1e6
    memory.attach(optimizer)
    scene.train(optimizer)


@case("penalty() is computed and not added", says="no gradient of it was asked for")
def not_added(scene):
    memory, optimizer = scene.memory(), scene.sgd()
    for x, y in scene.data:
        optimizer.zero_grad()
        memory.penalty()
        cross_entropy(scene.model(x), y).backward()
        with scene.step():
            optimizer.step()


@case("penalty() is added as a number", says="no gradient of it was asked for")
def as_a_number(scene):
    memory, optimizer = scene.memory(), scene.sgd()
    for x, y in scene.data:
        optimizer.zero_grad()
        (cross_entropy(scene.model(x), y) + memory.penalty().item()).backward()
        with scene.step():
            optimizer.step()


@case("penalty() is computed under no_grad", says="no gradient of it was asked for")
def without_gradient(scene):
    memory, optimizer = scene.memory(), scene.sgd()
    for x, y in scene.data:
        optimizer.zero_grad()
        with torch.no_grad():
            penalty = memory.penalty()
        (cross_entropy(scene.model(x), y) + penalty).backward()
        with scene.step():
            optimizer.step()


@case("penalty() is computed once, before the loop", says="moved since penalty.. was called")
def computed_once(scene):
    memory, optimizer = scene.memory(), scene.sgd()
    penalty = memory.penalty()
    for x, y in scene.data:
        optimizer.zero_grad()
        (cross_entropy(scene.model(x), y) + penalty).backward(retain_graph=True)
        with scene.step():
            optimizer.step()


@case(
    "penalty() is not in the loss that a GradScaler multiplies",
    says="GradScaler divides .* 65,536 .* penalty.. was not in the loss",
)
def left_unscaled(scene):
    memory, optimizer = scene.memory(), scene.sgd()
    scaler = torch.amp.GradScaler("cpu")
    for x, y in scene.data:
        optimizer.zero_grad()
        scaler.scale(cross_entropy(scene.model(x), y)).backward()
        memory.penalty().backward()
        with scene.step():
            scaler.step(optimizer)
        scaler.update()


@case("penalty() is in the loss that a GradScaler multiplies")
def scaled_together(scene):
    memory, start, optimizer = scene.memory(), copy.deepcopy(scene.model), scene.sgd()
    scaler = torch.amp.GradScaler("cpu")
    for x, y in scene.data:
        optimizer.zero_grad()
        scaler.scale(cross_entropy(scene.model(x), y) + memory.penalty()).backward()
        with scene.step():
            scaler.step(optimizer)
        scaler.update()
    return ended(scene, memory, start=start)


@case("penalty() in the loss, and another network trained several steps at a time (a critic)")
def with_a_critic(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    optimizer, critic = scene.sgd(), nn.Linear(5, 3)
    critics = torch.optim.SGD(critic.parameters(), lr=RATE)
    for x, y in scene.data:
        for _ in range(4):
            cross_entropy(critic(x), y).backward()
            critics.step()
        scene.train(optimizer, memory=memory, data=[(x, y)])
    return ended(scene, memory, start=start)


@case("penalty() is in the loss of the first epoch only", says="penalty.. is in no gradient")
def first_epoch_only(scene):
    memory, optimizer = scene.memory(), scene.sgd()
    for number, (x, y) in enumerate(scene.data):
        optimizer.zero_grad()
        loss = cross_entropy(scene.model(x), y)
        (loss if number else loss + memory.penalty()).backward()
        with scene.step():
            optimizer.step()


def on_disk(memory):
    path = Path(tempfile.mkdtemp()) / "memory.safetensors"
    memory.save(path)
    return path


@case("loaded by name into a renamed model", says=r"unexpected, not in the model: body\.0\.weight")
def renamed(scene):
    path = on_disk(scene.memory())
    retain.load(path, nn.ModuleDict({"trunk": scene.model.body, "head": scene.model.head}))


@case("loaded into a model that has not its weights", says="far from those that MAS remembers")
def other_weights(scene):
    path = on_disk(scene.memory())
    model = Network()
    memory = retain.load(path, model)
    optimizer = scene.sgd(model)
    memory.attach(optimizer)
    scene.train(optimizer, model=model)


@case(
    "its state is loaded into a memory of a model that has not its weights",
    says="far from those that MAS remembers",
)
def other_weights_state(scene):
    state = scene.memory().state_dict()
    retain.MAS(Network()).load_state_dict(state)


@case("saved and loaded, and attached")
def loaded(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    again = retain.load(on_disk(memory), scene.model)
    optimizer = scene.sgd()
    again.attach(optimizer)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("its state is loaded while it is attached")
def state_loaded(scene):
    memory, start, optimizer = begun(scene)
    memory.load_state_dict(copy.deepcopy(memory.state_dict()))
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("two memories hold one optimizer")
def two(scene):
    first, second = scene.memory(), scene.memory(exclude="head")
    hand, free = ByHand(first), ByHand(first)
    body = ByHand(second)
    pull = hand.pull
    hand.pull = lambda name, p: pull(name, p) + body.pull(name, p)
    optimizer = scene.sgd()
    first.attach(optimizer)
    second.attach(optimizer)
    scene.train(optimizer)
    return Ended(scene.model, hand.train(scene.data), free.train(scene.data, protect=False))


@case("it is the optimizer's only owner")
def only_owner(scene):
    optimizer = scene.sgd()

    def prepare():
        memory = scene.memory()
        memory.attach(optimizer)
        return ByHand(memory), ByHand(memory)

    hand, free = prepare()
    scene.train(optimizer)
    return Ended(scene.model, hand.train(scene.data), free.train(scene.data, protect=False))


@case("it is consolidated again while it is attached")
def consolidated_again(scene):
    memory, _start, optimizer = begun(scene)
    scene.train(optimizer, data=scene.data[:1])
    memory.observe([x for x, _ in scene.data], progress=False).consolidate()
    hand, free = ByHand(memory), ByHand(memory)
    data = scene.data[1:] * 2
    scene.train(optimizer, data=data)
    return Ended(scene.model, hand.train(data), free.train(data, protect=False))


@case("a layer left out with exclude= is meant to be free")
def excluded(scene):
    memory = scene.memory(exclude="head")
    start = copy.deepcopy(scene.model)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("SI is attached only after the task was learned", says="followed no step")
def si_too_late(scene):
    memory = retain.SI(scene.model, strength=STRENGTH)
    memory.attach(scene.sgd())
    memory.consolidate()


@case(
    "it holds only a part of what the optimizer of a later task trains",
    says=r"Trained without importance.*second\.weight",
)
def a_later_part(scene):
    memory = scene.memory()
    scene.model.second = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(
        [
            {"params": scene.model.body.parameters(), "lr": RATE / 10},
            {"params": scene.model.second.parameters()},
        ],
        lr=RATE,
    )
    memory.attach(optimizer)
    scene.train(optimizer)


@case("the lines that attach it were run twice", says="the penalty counts twice")
def run_twice(scene):
    optimizer = scene.sgd()
    for _ in range(2):
        scene.memory().attach(optimizer)
    scene.train(optimizer)


@case("it is attached, and so is a copy of it", says="the penalty counts twice")
def copied_and_attached(scene):
    memory, _start, optimizer = begun(scene)
    again = copy.deepcopy(memory, {id(scene.model): scene.model})
    again.attach(optimizer)
    scene.train(optimizer)


@case("it is attached, and penalty() of one that was loaded is in the loss", says="counts twice")
def loaded_and_in_the_loss(scene):
    memory, _start, optimizer = begun(scene)
    scene.train(optimizer, memory=retain.load(on_disk(memory), scene.model))


@case("a new one takes the place of one whose handle was removed")
def replaced(scene):
    first, start, optimizer = scene.memory(), copy.deepcopy(scene.model), scene.sgd()
    first.attach(optimizer).remove()
    memory = scene.memory()
    memory.attach(optimizer)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("penalty() inside of torch.func.grad", says="a transform of torch.func .* does not follow")
def transformed(scene):
    memory = scene.memory()
    x, y = scene.data[0]

    def loss(parameters):
        output = torch.func.functional_call(scene.model, parameters, (x,))
        return cross_entropy(output, y) + memory.penalty()

    torch.func.grad(loss)(dict(scene.model.named_parameters()))


@case("weights were written through .data when penalty() is called", says="have moved")
def written(scene):
    memory = scene.memory()
    for p in scene.model.parameters():
        p.data.add_(0.1)
    memory.penalty()


@case("its state goes through torch.save(…) and torch.load(…, weights_only=True)")
def in_a_checkpoint(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    file = io.BytesIO()
    torch.save({"model": scene.model.state_dict(), "memory": memory.state_dict()}, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    scene.model = Network()
    scene.model.load_state_dict(read["model"])
    again = retain.MAS(scene.model)
    again.load_state_dict(read["memory"])
    optimizer = scene.sgd()
    again.attach(optimizer)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("the best weights of a protected run are loaded, and the next task observed")
def best_then_next(scene):
    memory, _start, optimizer = begun(scene)
    scene.train(optimizer, data=scene.data[:2])
    best = copy.deepcopy(scene.model.state_dict())
    scene.train(optimizer)
    scene.model.load_state_dict(best)
    memory.observe([x for x, _ in scene.data], progress=False).consolidate()
    start = copy.deepcopy(scene.model)
    scene.train(optimizer, data=scene.data * 2)
    hand, free = ByHand(memory, start), ByHand(memory, start)
    data = scene.data * 2
    return Ended(scene.model, hand.train(data), free.train(data, protect=False))
