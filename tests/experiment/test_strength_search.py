"""λ chosen on each new task, with no data of the old ones."""

from __future__ import annotations

import pytest
import torch

import retain
from retain.experiment import run, strength_search
from retain.experiment.config import AUTO
from retain.experiment.foresight import KEPT, MOVED, Drifting, OldHeads, lost, quantiles
from retain.experiment.job import Job
from retain.experiment.learner import Learner
from retain.experiment.progress import Watcher
from retain.experiment.stage import Stage
from retain.experiment.strength_search import parts_chosen
from retain.methods import METHODS
from retain.models.network import TaskNetwork
from retain.strength import choose_strength
from tests.experiment.tiny import tiny

SHARED = {"tasks": "permuted-digits=3", "lr": 1e-3, "optimizer": "adam", "batch_size": 16}


def learner(method, seed=0, **asked):
    config = tiny(methods=(method,), strengths={method: AUTO}, **asked)
    kind = METHODS[method]
    job = Job(
        method,
        AUTO,
        "adaptive" if kind.has_form() else None,
        "train" if kind.chooses_data else None,
        seed,
    )
    return Learner(job, Stage.of(config, torch.device("cpu"), Watcher()))


def test_where_all_weights_are_shared_and_much_is_forgotten_much_is_held():
    # 3 epochs: FineTune ends at 68 %, MAS at 76; a rule that looks at the new task alone, at 69
    asked = tiny(**{**SHARED, "samples_per_class": None}, epochs=3, strengths={"mas": AUTO})
    finetune, mas = (one.measures()["average_accuracy"] for one in run(asked, progress=False).runs)
    assert mas > finetune + 0.04


@pytest.mark.parametrize("method", [m for m, kind in METHODS.items() if kind.has_strength()])
@pytest.mark.parametrize("shared", [False, True])
def test_every_method_with_a_strength_can_choose_it(method, shared):
    tasks = "permuted-digits=2" if shared else "digits"
    one = learner(method, tasks=tasks, classes_per_task=None if shared else 5)
    while not one.run.complete:
        one.learn_next()
    (chosen,) = [step["strength"] for step in one.run.strength_search if step["accepted"]]
    assert one.run.strength == pytest.approx(chosen)
    assert one.method.options.strength == pytest.approx(chosen)
    assert one.run.memory_bytes_by_task[-1]["foresight"] > (1000 if shared else 0)


def test_it_goes_on_from_where_it_stood():
    whole, half = learner("l2-sp", **SHARED), learner("l2-sp", **SHARED)
    while not whole.run.complete:
        whole.learn_next()
    half.learn_next()
    half.learn_next()
    again = learner("l2-sp", **SHARED)
    again.resume(half.standing())
    again.learn_next()
    assert again.run.accuracy == whole.run.accuracy
    assert again.run.strength_search == whole.run.strength_search


def test_the_strength_is_the_geometric_mean_of_the_choices_so_far_without_their_scales():
    one = learner("mas", epochs=2)
    while not one.run.complete:
        one.learn_next()
    first = {}
    for step in one.run.strength_search:
        first.setdefault(step["task"], step["strength"])
    parts = parts_chosen(one.run.strength_search)
    assert len(parts) == len(first) == 4
    last = list(first.values())[-1]
    mean = float(torch.tensor(parts, dtype=torch.float64).log().mean().exp())
    assert one.run.strength == pytest.approx(last * mean)


def test_where_nothing_is_better_than_no_protection_the_smallest_stands_for_it(monkeypatch):
    one = learner("mas", epochs=2)
    for _ in range(2):
        one.learn_next()
    # as if nothing was forgotten, whatever is done: to hold is then never any better
    monkeypatch.setattr(OldHeads, "forgotten", lambda *_: 0.0)
    one.learn_next()
    task = one.run.strength_search[-1]["task"]
    tried = [step for step in one.run.strength_search if step["task"] == task]
    assert [step["accepted"] for step in tried] == [False] * (len(tried) - 1) + [True]
    assert one.run.strength > 0


def test_old_heads_that_answer_as_before_forget_nothing_whatever_the_scale_of_their_outputs():
    one = learner("mas")
    one.learn_next()
    one._add_head(1)
    network, seen = one.network, one.foresight
    assert isinstance(seen, OldHeads)
    seen.begin(network, 1, one.stage)
    assert seen.forgotten(network) == 0
    with torch.no_grad():
        for p in network.heads[0].parameters():
            p.mul_(10)
    assert seen.forgotten(network) == 0
    with torch.no_grad():
        for p in network.heads[0].parameters():
            p.mul_(-1)  # of two classes always the other one
    # margins on new inputs fall by more than twice what they were; those on old inputs as well:
    for margin, share in ((1e-6, MOVED), (1e6, 0)):  # as unsure of its own task, or far surer
        seen.margins = [torch.full((KEPT,), margin)]
        assert seen.forgotten(network) == share


def test_what_is_lost_is_how_often_a_margin_falls_by_more_than_there_was():
    known = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert lost(known, torch.zeros(5)) == lost(known, torch.ones(5)) == 0
    assert lost(known, torch.tensor([-9.0])) == 1
    assert lost(known, torch.tensor([-2.5])) == 0.5
    assert lost(known, torch.tensor([-1.0])) == 0  # just as large: it is still the one named
    assert lost(known, torch.tensor([-2.5, 9.0])) == 0.25  # half of them fall
    assert lost(known, torch.tensor([float("nan")])) == 1
    assert lost(10 * known, torch.tensor([-25.0])) == 0.5  # whatever the scale


def test_of_the_margins_on_its_own_data_a_head_leaves_quantiles():
    values = torch.arange(1000.0).flip(0)
    found = quantiles(values)
    assert len(found) == KEPT
    assert (found[0], found[-1]) == (0, 999)
    assert (found.diff() > 0).all()
    assert lost(quantiles(torch.tensor([])), torch.tensor([-9.0])) == 0  # nothing was right
    one = learner("mas")
    one.learn_next()
    assert one.run.accuracy[0][0] < 0.9  # some margins are below 0
    (kept,) = one.foresight.margins
    assert (kept > 0).all()  # of what it gets right
    assert one.foresight.kept() == KEPT * 4


def test_what_is_given_up_is_read_from_margins_and_every_old_task_counts(monkeypatch):
    asked = []

    def noted(train, **given):
        asked.append((given["reference"], given["old_tasks"], given.get("samples")))
        return choose_strength(train, **given)

    monkeypatch.setattr(strength_search, "choose_strength", noted)
    monkeypatch.setattr(strength_search, "expected_accuracy", lambda *_: 0.625)
    one = learner("mas")
    while not one.run.complete:
        one.learn_next()
    assert [number for _, number, _ in asked] == [1, 2, 3, 4]
    for reference, _, samples in asked:
        assert reference.accuracy == [0.625, 0.625]  # of the validation and the training data
        assert samples is None  # the same samples each time: nothing is forgiven as noise
    # nothing is ever given up then, so that the first strength is taken
    assert [step["accepted"] for step in one.run.strength_search] == [True] * 4
    # and what is written down is counted
    for step in one.run.strength_search:
        assert step["accuracy"] != 0.625


def test_a_memory_of_its_own_where_the_head_is_shared():
    one = learner("lwf", **SHARED)
    one.learn_next()
    assert isinstance(one.foresight, Drifting)
    assert one.foresight.forgotten(one.network) == 0
    before = [p.detach().clone() for p in one.network.parameters()]
    shares = []
    for step in (0.01, 0.1, 10):
        with torch.no_grad():
            for p, q in zip(one.network.parameters(), before):
                p.copy_(q * (1 + step))
        shares.append(one.foresight.forgotten(one.network))
    assert shares == [pytest.approx(0.015), pytest.approx(0.15), 1.0]


def test_a_method_that_merges_goes_on_merging_whatever_is_chosen():
    one = learner("imm-mode", tasks="digits")
    while not one.run.complete:
        one.learn_next()
    assert len(one.method.models) == len(one.method.fishers) == 5
    assert all(step["strength"] for step in one.run.strength_search)


# ---- outputs on another scale ----

SCALE = 16.0  # a power of two, so that all roundings are the same
RECIPE = """
import torch.nn.functional as F


def finetune(model, optimizer, loader):
    for _ in range(4):
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs) / SCALE, labels).backward()
            optimizer.step()
"""


class Louder(torch.nn.Linear):
    def forward(self, features):
        return SCALE * super().forward(features)


@pytest.mark.slow
def test_larger_outputs_beside_a_temperature_lead_to_the_same_choice(tmp_path, monkeypatch):
    def chosen(scale):
        file = tmp_path / f"scaled_by_{scale:g}.py"
        file.write_text(RECIPE.replace("SCALE", str(scale)))
        asked = tiny(methods=("mas",), strengths={"mas": AUTO}, recipe=f"{file}:finetune",
                     samples_per_class=60, lr=1e-3, optimizer="adam")  # fmt: skip
        (one,) = run(asked, progress=False).runs
        assert one.error is None
        return one

    plain = chosen(1.0)
    add_head = TaskNetwork.add_head

    def louder(network, classes):
        number = add_head(network, classes)
        network.heads[-1].__class__ = Louder
        return number

    monkeypatch.setattr(TaskNetwork, "add_head", louder)
    loud = chosen(SCALE)
    assert loud.accuracy == plain.accuracy
    # Ω grows with the square of the outputs
    assert loud.strength * SCALE**2 == pytest.approx(plain.strength)
    assert len(plain.strength_search) > len(plain.tasks)  # something was chosen from


def test_ewc_does_not_see_the_scale_either_where_it_is_told_of_the_temperature():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(5, 3), torch.randn(40, 5)
    loud = Louder(5, 3)
    loud.load_state_dict(model.state_dict())
    plain = retain.EWC(model, fisher="exact").observe(x, progress=False).observed
    told = retain.EWC(loud, fisher="exact", output=lambda y: y / SCALE)
    told.observe(x, progress=False)
    untold = retain.EWC(loud, fisher="exact").observe(x, progress=False).observed
    for name, fisher in plain.items():
        assert torch.allclose(told.observed[name], fisher, rtol=1e-5)
        # and no factor makes up for it: the softmax is a sharper one
        assert (untold[name] / fisher).std() > 1
