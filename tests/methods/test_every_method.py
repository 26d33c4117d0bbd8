"""What holds for all methods."""

import dataclasses
import functools
import gc
import types

import pytest
import torch

from retain.methods import METHODS, PAPER

from .small import Jittered, backbone, learned, loss_on_test, sequence, work

PROTECTING = [name for name in METHODS if name not in ("finetune", "joint")]
QUADRATIC = [name for name in METHODS if METHODS[name].has_form() and "imm" not in name]
# Bytes with which a memory notices that weights moved: a few elements of a few parameters.
KNOWN = 1024


def test_the_papers_eleven_and_what_people_do_instead_are_there():
    assert (
        *("finetune", "joint", "lwf", "ebll", "imm-mean", "imm-mode"),
        *("ewc", "online-ewc", "si", "mas", "local-mas"),
    ) == PAPER
    others = ("l2-sp", "low-lr", "freeze", "replay", "kl", "lora", "wise-ft", "model-soup")
    assert {*PAPER, *others} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_says_what_it_stores_and_has_frozen_defaults(name):
    assert METHODS[name].stores.endswith(".")
    assert METHODS[name].needs
    assert METHODS[name].__doc__
    assert METHODS[name].title not in {METHODS[other].title for other in METHODS if other != name}
    knob = METHODS[name].knob
    assert knob is None or knob in {f.name for f in dataclasses.fields(METHODS[name].Options)}
    assert dataclasses.is_dataclass(METHODS[name].Options)
    assert METHODS[name].Options.__dataclass_params__.frozen


@functools.cache
def losses_at_the_end(name):
    """(first task, second task): mean test loss over two seeds, with the method's own defaults."""
    of = sequence(2, n=128, apart=0.6)
    ends = [learned(name, of, seed=seed, epochs=12, lr=0.1, form="adaptive") for seed in (0, 1)]
    return [sum(loss_on_test(one, task) for one in ends) / len(ends) for task in (0, 1)]


# LoRA changes a weight by few ranks, and says nothing of what that costs the old task.
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("finetune", "lora")])
def test_forgets_less_than_finetune_and_learns_all_the_same(name):
    old, new = losses_at_the_end(name)
    assert old < 0.75 * losses_at_the_end("finetune")[0]
    assert new < 0.5  # of log 2 = 0.69, that of a guess


@pytest.mark.parametrize("name", PROTECTING)
def test_first_task_is_learned_as_by_finetune(name):
    ours = backbone(learned(name, tasks=1, form="adaptive"))
    assert torch.allclose(ours, backbone(learned("finetune", tasks=1)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*QUADRATIC, "lwf"])
def test_with_no_strength_it_is_finetune(name):
    ours = backbone(learned(name, options={"strength": 0.0}))
    assert torch.equal(ours, backbone(learned("finetune")))


@pytest.mark.parametrize("form", ["gradient", "proximal", "adaptive"])
@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].has_form()])
def test_a_stronger_penalty_keeps_the_weights_nearer(name, form):
    def moved(strength):
        one = work(name, form=form, options={"strength": strength}, lr=0.01)
        one.learn_next()
        before = backbone(one)
        one.network.add_head(2)
        batch = next(one.stage.sequence.tasks[1].train.batches(16))
        one.method.begin(1, one.stage.sequence)
        optimizer = torch.optim.SGD(one.network.parameters(), lr=0.01)
        with one.method.protecting(1, optimizer):
            for _ in range(20):
                optimizer.zero_grad()
                one.method.loss(batch).backward()
                optimizer.step()
        return (backbone(one) - before).norm()

    default = METHODS[name].Options().strength
    if form == "gradient":  # stable only where the penalty is a small part of the step
        assert 0 < moved(default / 100) < moved(0.0)
    else:
        assert 0 < moved(100 * default) < 0.9 * moved(0.0)


@pytest.mark.parametrize("name", ["lwf", "ebll"])
def test_the_old_answers_enter_the_loss(name):
    one = learned(name, tasks=1)
    plain = learned("finetune", tasks=1)
    for each in (one, plain):
        each.network.add_head(2)
        each.method.begin(1, each.stage.sequence)
    batch = next(one.stage.sequence.tasks[1].train.batches(16))
    assert one.method.loss(batch) > plain.method.loss(batch) + 1e-3


@pytest.mark.parametrize("kind", [None, Jittered])
@pytest.mark.parametrize("name", METHODS)
def test_goes_on_from_a_checkpoint_as_if_nothing_had_been(name, kind):
    of = sequence(3, n=32, **({"kind": kind} if kind else {}))
    one = learned(name, of, tasks=2, form="adaptive")
    standing = one.standing()
    copy = work(name, of, form="adaptive")
    copy.resume(
        standing._replace(
            run=one.run.model_copy(update={"accuracy": list(one.run.accuracy)}),
            network={k: t.clone() for k, t in standing.network.items()},
            method={k: t.clone() for k, t in standing.method.items()},
        )
    )
    one.learn_next()
    copy.learn_next()
    assert torch.equal(backbone(one), backbone(copy))
    assert one.run.accuracy == copy.run.accuracy


@pytest.mark.parametrize("kind", [None, Jittered])
@pytest.mark.parametrize("name", METHODS)
def test_memory_bytes_are_what_is_really_allocated(name, kind):
    of = sequence(3, **({"kind": kind} if kind else {}))
    one = learned(name, of, form="adaptive")
    gc.collect()
    counted = one.method.memory_bytes()
    network = sum(t.nbytes for t in one.network.state_dict().values())
    assert counted["model"] == network
    assert sum(counted.values()) - network == pytest.approx(held_by(one.method), abs=KNOWN)


def held_by(method):
    """Bytes of every tensor that can be reached from the method, but not from its network."""
    skipped = (type, types.ModuleType, types.FunctionType, torch.nn.Module)
    seen, storages = {id(method.setting)}, {}
    own = {p.untyped_storage().data_ptr() for p in method.network.state_dict().values()}
    todo = [method]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or (isinstance(thing, skipped) and not _an_encoder(thing, method)):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
        else:
            todo += gc.get_referents(thing)
    return sum(storages.values())


def _an_encoder(thing, method):
    return isinstance(thing, torch.nn.Module) and thing not in set(method.network.modules())
