"""Optimizers: made anew, wrapped, copied, patched, stepping in other ways."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import warnings

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.nn.functional import cross_entropy
from torch.optim.sgd import sgd

from .cases import Ended, ended, sabotage
from .scene import RATE, ByHand, Network

case = functools.partial(sabotage, "optimizer", make=Network)


def begun(scene, **options):
    """Memory, start and an attached optimizer."""
    memory = scene.memory()
    start = copy.deepcopy(scene.model)
    optimizer = scene.sgd(**options)
    memory.attach(optimizer)
    return memory, start, optimizer


@case("nothing: a plain loop")
def plain(scene):
    memory, start, optimizer = begun(scene)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("nothing: a plain loop with penalty() in the loss")
def plain_loss(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    scene.train(scene.sgd(), memory=memory)
    return ended(scene, memory, start=start)


@case(
    "made anew for the next task, while the old one is attached",
    says="steps weights .* nothing protects",
)
def made_anew(scene):
    memory, _start, old = begun(scene)
    scene.train(scene.sgd())
    del memory, old


@case("made anew after the old one is gone", says="steps weights .* nothing protects")
def made_anew_after(scene):
    memory, _start, old = begun(scene)
    del old
    gc.collect()
    scene.train(scene.sgd())
    del memory


@case("made anew after running out of memory (auto_find_batch_size)", says="nothing protects")
def out_of_memory(scene):
    memory = scene.memory()

    def attempt(attach):
        optimizer = scene.sgd()
        if attach:
            memory.attach(optimizer)
            raise torch.OutOfMemoryError("CUDA out of memory")
        scene.train(optimizer)

    try:
        attempt(True)
    except torch.OutOfMemoryError:
        attempt(False)


@case("another one steps the same weights beside the attached one", says="nothing protects")
def a_second_one(scene):
    memory, _start, optimizer = begun(scene)
    other = torch.optim.SGD(scene.model.head.parameters(), lr=RATE)
    for x, y in scene.data:
        optimizer.zero_grad()
        cross_entropy(scene.model(x), y).backward()
        with scene.step():
            optimizer.step()
            other.step()
    del memory


@case("a copy of it steps (copy.deepcopy)", says="steps a copy of the weights")
def copied(scene):
    memory, _start, optimizer = begun(scene)
    model, other = copy.deepcopy((scene.model, optimizer))
    scene.train(other, model=model)
    del memory


@case("it went through pickle, the model with it", says="steps a copy of the weights")
def pickled(scene):
    memory, _start, optimizer = begun(scene)
    model, other = pickle.loads(pickle.dumps((scene.model, optimizer)))
    scene.train(other, model=model)
    del memory, optimizer


@case("its state is loaded (load_state_dict)")
def state_loaded(scene):
    memory, start, optimizer = begun(scene)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("its hooks are cleared", says="something has cleared its hooks")
def hooks_cleared(scene):
    memory, _start, optimizer = begun(scene)
    optimizer._optimizer_step_pre_hooks.clear()
    optimizer._optimizer_step_post_hooks.clear()
    scene.train(optimizer)
    del memory


@case("step is wrapped by a learning rate scheduler")
def scheduled(scene):
    memory, start, optimizer = begun(scene)
    torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("step is wrapped by a profiler")
def profiled(scene):
    memory, start, optimizer = begun(scene)
    optimizer.step = functools.wraps(optimizer.step)(functools.partial(optimizer.step))
    with torch.profiler.profile():
        scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("step is compiled (torch.compile)")
def step_compiled(scene):
    memory, start, optimizer = begun(scene)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dynamo|Converting a tensor")
        for x, y in scene.data:
            optimizer.zero_grad()
            cross_entropy(scene.model(x), y).backward()
            with scene.step():
                step()
    return ended(scene, memory, start=start)


@case(
    "a function of torch.optim is called in place of step", says="have moved .* nothing protected"
)
def functional_step(scene):
    memory, _start, optimizer = begun(scene)
    parameters = list(scene.model.parameters())
    for x, y in scene.data:
        optimizer.zero_grad()
        cross_entropy(scene.model(x), y).backward()
        with torch.no_grad(), scene.step():
            gradients = [p.grad for p in parameters]
            sgd(
                parameters, gradients, [None] * len(gradients), weight_decay=0, momentum=0,
                lr=RATE, dampening=0, nesterov=False, maximize=False,
            )  # fmt: skip
    del memory


@case("a shallow copy of it steps (copy.copy)", says="steps weights .* nothing protects")
def copied_shallowly(scene):
    memory, _start, optimizer = begun(scene)
    scene.train(copy.copy(optimizer))
    del memory


@case("weights are updated in the backward pass (LOMO)", says="have moved .* nothing protected")
def updated_in_backward(scene):
    memory, _start, optimizer = begun(scene)

    def update(p):
        p.data.add_(p.grad, alpha=-RATE)
        p.grad = None

    for p in scene.model.parameters():
        p.register_post_accumulate_grad_hook(update)
    for x, y in scene.data:
        with scene.step():
            cross_entropy(scene.model(x), y).backward()
    del memory, optimizer


@case(
    "after some protected steps, weights are written through .data",
    says="have moved .* nothing protected",
)
def data_later(scene):
    memory, _start, optimizer = begun(scene)
    scene.train(optimizer, data=scene.data * 2)
    scene.made = 0
    for x, y in scene.data:
        optimizer.zero_grad()
        cross_entropy(scene.model(x), y).backward()
        with scene.step():
            for p in scene.model.parameters():
                p.data.add_(p.grad, alpha=-RATE)
    del memory


@case("a hook before the step clips, and was there later than the memory")
def clipping_hook(scene):
    memory, start, optimizer = begun(scene)

    def clip(*_):
        nn.utils.clip_grad_norm_(scene.model.parameters(), 0.1)

    optimizer.register_step_pre_hook(clip)
    scene.train(optimizer)
    return ended(scene, memory, start=start, clip=0.1)


@case("a hook before the step puts other gradients in place (those of other processes)")
def replacing_hook(scene):
    memory, start, optimizer = begun(scene)
    own = {}

    def keep(p):
        own[p] = p.grad.clone()

    def gathered(*_):
        for p, gradient in own.items():
            p.grad = gradient

    for p in scene.model.parameters():
        p.register_post_accumulate_grad_hook(keep)
    optimizer.register_step_pre_hook(gathered)
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("attached anew in every iteration")
def attached_each_time(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    optimizer = scene.sgd()
    for x, y in scene.data:
        with memory.attach(optimizer):
            scene.train(optimizer, data=[(x, y)])
    return ended(scene, memory, start=start)


@case("only one of two optimizers is attached", says=r"holds \(body.* nothing protects")
def one_of_two(scene):
    memory = scene.memory()
    head = torch.optim.SGD(scene.model.head.parameters(), lr=RATE)
    body = torch.optim.SGD(scene.model.body.parameters(), lr=RATE)
    memory.attach(head)
    for x, y in scene.data:
        scene.model.zero_grad()
        cross_entropy(scene.model(x), y).backward()
        with scene.step():
            head.step()
            body.step()


@case(
    "step is replaced by a function that writes the weights", says="have moved .* nothing protected"
)
def replaced_step(scene):
    memory, _start, optimizer = begun(scene)

    def step():
        with torch.no_grad():
            for p in scene.model.parameters():
                p -= RATE * p.grad

    optimizer.step = step
    scene.train(optimizer)
    del memory


@case(
    "step is replaced by a function that writes through .data",
    says="have moved .* nothing protected",
)
def replaced_step_data(scene):
    memory, _start, optimizer = begun(scene)

    def step():
        for p in scene.model.parameters():
            p.data.add_(p.grad, alpha=-RATE)

    optimizer.step = step
    scene.train(optimizer)
    del memory


@case("SAM: first_step and second_step")
def sam(scene):
    class SAM(torch.optim.Optimizer):
        """As it is in circulation: it owns another optimizer, and shares its groups."""

        def __init__(self, params, **options):
            super().__init__(params, options)
            self.base_optimizer = torch.optim.SGD(self.param_groups, **options)
            self.param_groups = self.base_optimizer.param_groups

        @torch.no_grad()
        def first_step(self):
            for p in (p for g in self.param_groups for p in g["params"]):
                self.state[p]["old"] = p.detach().clone()
                p.add_(p.grad, alpha=0.01)

        @torch.no_grad()
        def second_step(self):
            for p in (p for g in self.param_groups for p in g["params"]):
                p.copy_(self.state[p]["old"])
            self.base_optimizer.step()

    def train(model, penalty, optimizer=None, pull=None):
        parameters = dict(model.named_parameters())
        for x, y in scene.data:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.first_step()
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            for name, p in parameters.items() if penalty else ():
                p.grad += pull(name, optimizer.state[p]["old"])
            with scene.step():
                optimizer.second_step()
        return model

    memory = scene.memory()
    hand, free = ByHand(memory), ByHand(memory)
    optimizer = SAM(scene.model.parameters(), lr=RATE)
    memory.attach(optimizer)
    model = train(scene.model, False, optimizer)
    made, scene.made = scene.made, 0
    by_hand = train(hand.model, True, SAM(hand.model.parameters(), lr=RATE), hand.pull)
    without = train(free.model, False, SAM(free.model.parameters(), lr=RATE))
    scene.made = made
    return Ended(model, by_hand, without)


@case("one optimizer for each parameter, stepping in the backward pass")
def in_backward(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    optimizers = {p: torch.optim.SGD([p], lr=RATE) for p in scene.model.parameters()}
    memory.attach(optimizers)

    def step(p):
        optimizers[p].step()
        p.grad = None

    for p in scene.model.parameters():
        p.register_post_accumulate_grad_hook(step)
    for x, y in scene.data:
        with scene.step():
            cross_entropy(scene.model(x), y).backward()
    return ended(scene, memory, start=start)


@case("attached to a wrapper and to the optimizer in it")
def twice(scene):
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self):
            self.optimizer.step()

    memory, start, optimizer = begun(scene)
    memory.attach(Wrapper(optimizer))
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("attached, and penalty() in the loss as well", says="counts twice")
def twice_in_loss(scene):
    memory, _start, optimizer = begun(scene)
    scene.train(optimizer, memory=memory)


@case("gradients accumulated over several batches")
def accumulated(scene):
    memory, start, optimizer = begun(scene)
    for x, y in scene.data:
        optimizer.zero_grad()
        for half in (slice(0, 8), slice(8, 16)):
            (cross_entropy(scene.model(x[half]), y[half]) / 2).backward()
        with scene.step():
            optimizer.step()
    return ended(scene, memory, start=start)


@case("gradients cleared to zero or to None")
def cleared(scene):
    memory, start, optimizer = begun(scene)
    for number, (x, y) in enumerate(scene.data):
        optimizer.zero_grad(set_to_none=bool(number % 2))
        cross_entropy(scene.model(x), y).backward()
        with scene.step():
            optimizer.step()
        scene.model.zero_grad()
    return ended(scene, memory, start=start)


@case("gradients clipped")
def clipped(scene):
    memory, start, optimizer = begun(scene)
    for x, y in scene.data:
        optimizer.zero_grad()
        cross_entropy(scene.model(x), y).backward()
        nn.utils.clip_grad_norm_(scene.model.parameters(), 0.1)
        with scene.step():
            optimizer.step()
    return ended(scene, memory, start=start, clip=0.1)


@case("a GradScaler, a fused optimizer")
def scaled(scene):
    memory, start, optimizer = begun(scene, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x, y in scene.data:
        optimizer.zero_grad()
        scaler.scale(cross_entropy(scene.model(x), y)).backward()
        with scene.step():
            scaler.step(optimizer)
        scaler.update()
    return ended(scene, memory, start=start)


@case("a learning rate that starts at 0")
def from_zero(scene):
    memory, start, optimizer = begun(scene)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0))
    (x, y), *_ = scene.data
    cross_entropy(scene.model(x), y).backward()
    with scene.step():
        optimizer.step()
    scheduler.step()
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("step(closure)")
def closure(scene):
    memory, start, optimizer = begun(scene)
    for x, y in scene.data:

        def evaluate(x=x, y=y):
            optimizer.zero_grad()
            loss = cross_entropy(scene.model(x), y)
            loss.backward()
            return loss

        with scene.step():
            optimizer.step(evaluate)
    return ended(scene, memory, start=start)


@case("LBFGS, which moves weights between the gradients of one step")
def lbfgs(scene):
    def train(model, optimizer, penalty):
        for x, y in scene.data:

            def evaluate(x=x, y=y):
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y) + penalty()
                loss.backward()
                return loss

            optimizer.step(evaluate)
        return model

    memory = scene.memory()
    hand, free = ByHand(memory), ByHand(memory)
    make = functools.partial(torch.optim.LBFGS, lr=0.05, max_iter=4)
    optimizer = make(scene.model.parameters())
    memory.attach(optimizer)
    model = train(scene.model, optimizer, lambda: 0)
    by_hand = train(hand.model, make(hand.model.parameters()), hand.penalty)
    return Ended(model, by_hand, train(free.model, make(free.model.parameters()), lambda: 0))


@case("a step that breaks off and is tried again")
def broken_off(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)

    class Breaks(torch.optim.SGD):
        broken = True

        def step(self, closure=None):
            if self.broken:
                raise OSError("cable pulled")
            return super().step(closure)

    optimizer = Breaks(scene.model.parameters(), lr=RATE)
    memory.attach(optimizer)
    try:
        scene.train(optimizer)
    except OSError:
        optimizer.broken = False
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("a group added later, of weights that are held")
def group_of_held(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    optimizer = torch.optim.SGD(scene.model.head.parameters(), lr=RATE)
    memory.attach(optimizer)
    optimizer.add_param_group({"params": list(scene.model.body.parameters())})
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case(
    "a group added later, of a layer that nothing holds",
    says=r"Trained without importance.*extra\.weight",
)
def group_of_new(scene):
    memory, _start, optimizer = begun(scene)
    scene.model.extra = nn.Linear(3, 3)
    optimizer.add_param_group({"params": list(scene.model.extra.parameters())})
    scene.train(optimizer)
    del memory


@case(
    "its parameters are replaced by copies (flat or master weights)",
    says="no longer holds any of the parameters",
)
def master_weights(scene):
    memory, _start, optimizer = begun(scene)
    for group in optimizer.param_groups:
        group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]
    for x, y in scene.data:
        cross_entropy(scene.model(x), y).backward()
        masters = optimizer.param_groups[0]["params"]
        for p, master in zip(scene.model.parameters(), masters, strict=True):
            master.grad = p.grad
        with scene.step():
            optimizer.step()
        with torch.no_grad():
            for p, master in zip(scene.model.parameters(), masters, strict=True):
                p.copy_(master)
    del memory


@case(
    "one that is none of torch's", says="has no hooks around its steps|expected a torch optimizer"
)
def foreign(scene):
    class Foreign:
        def __init__(self, params):
            self.param_groups = [{"params": list(params), "lr": RATE}]

        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data.add_(p.grad, alpha=-RATE)

    scene.memory().attach(Foreign(scene.model.parameters()))


@case("slow weights behind it are averaged in (Lookahead)")
def lookahead(scene):
    def train(model, optimizer, grads):
        slow = [p.detach().clone() for p in model.parameters()]
        for x, y in scene.data:
            grads(model, optimizer, x, y)
            for p, old in zip(model.parameters(), slow, strict=True):
                p.data.lerp_(old, 0.5)
                old.copy_(p.data)
        return model

    def ours(model, optimizer, x, y):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        with scene.step():
            optimizer.step()

    memory, _start, optimizer = begun(scene)
    hand, free = ByHand(memory), ByHand(memory)
    train(scene.model, optimizer, ours)
    train(hand.model, None, lambda _m, _o, x, y: hand.train([(x, y)]))
    train(free.model, None, lambda _m, _o, x, y: free.train([(x, y)], protect=False))
    return Ended(scene.model, hand.model, free.model)


class SlowWeights(torch.optim.Optimizer):
    """Lookahead that calls what it wraps by a name of its own."""

    def __init__(self, fast):
        super().__init__(fast.param_groups, {})
        self.fast, self.param_groups = fast, fast.param_groups
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.fast.step()
        for slow, p in zip(self.slow, [p for g in self.param_groups for p in g["params"]]):
            p.copy_(slow.lerp_(p, 0.5))


def half_steps(scene, memory, start):
    """What `SlowWeights` makes of the plain loop."""
    hand, free = ByHand(memory, start), ByHand(memory, start)
    for one, protect in ((hand, True), (free, False)):
        slow = copy.deepcopy(one.model)
        for batch in scene.data:
            one.train([batch], protect=protect)
            with torch.no_grad():
                for p, q in zip(one.model.parameters(), slow.parameters()):
                    p.copy_(q.lerp_(p, 0.5))
    return Ended(scene.model, hand.model, free.model)


@case("one that steps the attached one, under a name of its own (Lookahead)")
def around(scene):
    memory, start, optimizer = begun(scene)
    scene.train(SlowWeights(optimizer))
    return half_steps(scene, memory, start)


@case("one that steps another, under a name of its own, is attached itself")
def around_attached(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    optimizer = SlowWeights(scene.sgd())
    memory.attach(optimizer)
    scene.train(optimizer)
    return half_steps(scene, memory, start)


@case("one that keeps the attached one, and steps without it", says="nothing protects them")
def around_and_idle(scene):
    class Own(SlowWeights):
        def step(self, closure=None):
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p -= group["lr"] * p.grad

    _memory, _start, optimizer = begun(scene)
    scene.train(Own(optimizer))


@case("a wrapper that is no optimizer keeps it under a name of its own")
def in_a_wrapper(scene):
    class Wrapper:
        def __init__(self, wrapped):
            self.wrapped, self.zero_grad, self.step = wrapped, wrapped.zero_grad, wrapped.step

    memory, start = scene.memory(), copy.deepcopy(scene.model)
    optimizer = scene.sgd()
    memory.attach(Wrapper(optimizer))
    scene.train(Wrapper(optimizer))
    return ended(scene, memory, start=start)


@case("its state is taken by torch.distributed.checkpoint, penalty() is in the loss")
def dummy_steps(scene):
    memory, start, optimizer = scene.memory(), copy.deepcopy(scene.model), scene.sgd()
    for batch in scene.data:
        scene.train(optimizer, memory=memory, data=[batch])
        optimizer.zero_grad()
        get_optimizer_state_dict(scene.model, optimizer)
    return ended(scene, memory, start=start)


@case("Muon for matrices and AdamW for the rest")
def muon(scene):
    def two(model):
        p = list(model.parameters())
        return (
            torch.optim.Muon([q for q in p if q.ndim == 2], lr=RATE),
            torch.optim.AdamW([q for q in p if q.ndim != 2], lr=RATE),
        )

    def trained(model, optimizers, hand=None):
        for x, y in scene.data:
            model.zero_grad()
            cross_entropy(model(x), y).backward()
            for name, p in model.named_parameters() if hand is not None else ():
                p.grad += hand.pull(name, p)
            for optimizer in optimizers:
                optimizer.step()
        return model

    memory = scene.memory()
    hand, free = ByHand(memory), ByHand(memory)
    both = two(scene.model)
    memory.attach(both)
    trained(scene.model, both)
    trained(hand.model, two(hand.model), hand)
    return Ended(scene.model, hand.model, trained(free.model, two(free.model)))


@case("a handle that nobody keeps")
def handle_dropped(scene):
    memory, start = scene.memory(), copy.deepcopy(scene.model)
    optimizer = scene.sgd()
    memory.attach(optimizer)
    gc.collect()
    scene.train(optimizer)
    return ended(scene, memory, start=start)


@case("the loop stands outside of `with memory.attach(optimizer):`", says="nothing protects")
def outside(scene):
    memory, optimizer = scene.memory(), scene.sgd()
    with memory.attach(optimizer):
        pass
    scene.train(optimizer)
