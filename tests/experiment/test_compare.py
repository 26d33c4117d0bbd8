"""A comparison along every method's knob, and a training of the user's own."""

import dataclasses
import json
import random
import re
from pathlib import Path

import numpy
import pytest
import torch

from retain.cli.flags import fields_of
from retain.errors import ConfigError
from retain.experiment import Config, Results, run
from retain.experiment.config import knob_value
from retain.experiment.sweep import swept
from retain.methods import METHODS
from retain.tasks.load import TASKS

from .tiny import accuracies, tiny

RECIPES = """
import copy
import os
import random

import numpy
import torch
import torch.nn.functional as F


def finetune(model, optimizer, loader):
    steps = 0
    for inputs, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        steps += 1
    assert steps == len(loader)


def hands_back(model, optimizer, loader):
    finetune(model, optimizer, loader)
    return model


def nothing(model, optimizer, loader):
    pass


def without_gradients(model, optimizer, loader):
    optimizer.zero_grad()
    optimizer.step()


def raises(model, optimizer, loader):
    raise ValueError("made to fail")


def leaves(model, optimizer, loader):
    raise SystemExit(0)


def freezes_at_last(model, optimizer, loader):
    finetune(model, optimizer, loader)
    model.requires_grad_(False)


def another(model, optimizer, loader):
    finetune(model, optimizer, loader)
    return 3


def its_own(model, optimizer, loader):
    finetune(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)


def one_more(model, optimizer, loader):
    mine = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        mine.step()


class Around(torch.optim.Optimizer):
    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure=None):
        self.inner.step(closure)


def around(model, optimizer, loader):
    beside = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    beside.step()
    finetune(model, Around(optimizer), loader)
    torch.set_grad_enabled(False)


class Cancelled(BaseException):
    pass


def cancels(model, optimizer, loader):
    raise Cancelled("by itself")


def yields(model, optimizer, loader):
    yield finetune(model, optimizer, loader)


def on_a_copy(model, optimizer, loader):
    copied = copy.deepcopy(model)
    for inputs, labels in loader:
        F.cross_entropy(copied(inputs), labels).backward()
        optimizer.step()


def copies_back(model, optimizer, loader):
    copied = copy.deepcopy(model)
    finetune(copied, torch.optim.SGD(copied.parameters(), lr=0.1), loader)
    model.load_state_dict(copied.state_dict())


def replaces(model, optimizer, loader):
    finetune(model, optimizer, loader)
    for layer in (m for m in model.backbone.modules() if isinstance(m, torch.nn.Linear)):
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())


def another_head(model, optimizer, loader):
    finetune(model, optimizer, loader)
    model.heads[-1] = torch.nn.Linear(model.feature_size, 7)


def adds(model, optimizer, loader):
    finetune(model, optimizer, loader)
    model.extra = torch.nn.Linear(2, 2)


def in_double(model, optimizer, loader):
    finetune(model, optimizer, loader)
    model.double()


def elsewhere(model, optimizer, loader):
    finetune(model, optimizer, loader)
    model.to("meta")


COUNT = 0


def remembers(model, optimizer, loader):
    global COUNT
    COUNT += 1
    for group in optimizer.param_groups:
        group["lr"] *= COUNT * random.random() * numpy.random.rand() * torch.rand(()).item()
    finetune(model, optimizer, loader)
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    print("said a lot " * 100)


def too_far(model, optimizer, loader):
    for group in optimizer.param_groups:
        group["lr"] = float("inf")
    finetune(model, optimizer, loader)
"""


def test_every_method_with_a_knob_is_swept_around_its_default():
    config = swept(tiny(methods=tuple(METHODS)))
    for method, kind in METHODS.items():
        given = config.strengths.get(method, config.sweeps.get(method, ()))
        assert (len(given) >= 2) == (kind.knob is not None), method
    assert kind.Options
    assert METHODS["mas"].Options().strength in config.strengths["mas"]
    assert config.sweeps["freeze"] == (1.0, 2.0)  # the network's two layers
    assert swept(config) == config
    assert swept(tiny(methods=("mas",))).methods == ("finetune", "mas")
    assert swept(tiny(strengths={"mas": (1, 2)})).strengths["mas"] == (1.0, 2.0)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_sweep_is_a_run_for_each_value_and_can_be_resumed(tmp_path):
    asked = tiny(
        methods=("finetune", "freeze", "replay"),
        sweeps={"freeze": (1, 2), "replay": (0, 0.5)},
        classes_per_task=5,
    )
    results = run(asked, out=tmp_path, progress=False)
    assert [r.error for r in results.runs] == [None] * 5
    assert [(r.method, r.knob) for r in results.runs] == [
        ("finetune", None), ("freeze", 1), ("freeze", 2), ("replay", 0), ("replay", 0.5),
    ]  # fmt: skip
    finetune, one, two, none, half = (r.accuracy for r in results.runs)
    assert none == finetune
    assert one != two != finetune
    assert half != none
    alone = run(tiny(methods=("freeze",), options={"freeze": {"blocks": 1}}, classes_per_task=5),
                progress=False)  # fmt: skip
    assert alone.runs[0].accuracy == one
    again = Results.read(tmp_path)
    again.runs[2].status, again.runs[2].accuracy = "failed", []
    again.write(tmp_path)
    assert accuracies(run(asked, out=tmp_path, resume=True, progress=False)) == accuracies(results)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sweeps": {"replay": (0.1,)}}, r"sweep of replay.share is .*two different values"),
        ({"sweeps": {"replay": (0.1, 0.1)}}, "two different values"),
        ({"sweeps": {"replay": (0.1, 1.5)}}, r"share.*1\.5.*≤ 1"),
        ({"sweeps": {"replay": (-0.1, 1)}}, r"share.*-0\.1"),
        ({"sweeps": {"wise-ft": (0.5, 2)}}, r"alpha.*2"),
        ({"sweeps": {"freeze": (0.5, 2)}}, r"blocks.*0\.5"),
        ({"sweeps": {"freeze": ("one", 2)}}, r"blocks.*one"),
        ({"sweeps": {"mas": (1, 2)}}, "--strength"),
        ({"sweeps": {"finetune": (1, 2)}}, "finetune has no knob"),
        ({"sweeps": {"lora": (1, 2)}}, "lora, which is not among the methods"),
        ({"sweeps": {"replai": (1, 2)}}, "replai"),
    ],
)
def test_sweeps_that_cannot_be(given, said):
    methods = ("finetune", "mas", "replay", "wise-ft", "freeze")
    with pytest.raises(ConfigError, match=said):
        tiny(methods=methods, **given)


def test_a_comparison_of_one_value():
    with pytest.raises(ConfigError, match=r"sweep of mas.strength is one value, 1; .*mas=1:10"):
        swept(tiny(strengths={"mas": 1}))


# ---- recipes ----


def asked(tmp_path, name="finetune", **more):
    (tmp_path / "train.py").write_text(RECIPES)
    given = {"recipe": f"{tmp_path / 'train.py'}:{name}", "classes_per_task": 5}
    return tiny(**{**given, **more})


ABLE = tuple(name for name in METHODS if METHODS[name].protects_from_outside)


def test_a_recipe_that_does_what_we_do_ends_where_we_end(tmp_path):
    own = run(tiny(methods=ABLE, classes_per_task=5), progress=False)
    theirs = run(asked(tmp_path, methods=ABLE), progress=False)
    assert [r.error for r in theirs.runs] == [None] * len(ABLE)
    assert accuracies(theirs) == accuracies(own)
    assert {"mas", "ewc", "si", "l2-sp", "wise-ft", "freeze", "low-lr"} <= set(ABLE)
    assert not {"lwf", "ebll", "kl", "replay", "joint"} & set(ABLE)
    back = run(asked(tmp_path, "hands_back", methods=("mas",)), progress=False)
    assert accuracies(back)[0] in accuracies(own)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "trained nothing: no step"),
        ("without_gradients", "trained nothing: 1 steps? .* left every weight"),
        ("raises", r"failed: ValueError: made to fail \(in line \d+\)"),
        ("leaves", "failed: SystemExit: 0"),
        ("another", "returned a int; expected None, or the model"),
        ("its_own", "without a step of the optimizer that it was given"),
        (
            "one_more",
            r"its own optimizer \(SGD\), whose steps are not protected",
        ),
        ("too_far", "weights that are not finite"),
        ("cancels", r"failed: Cancelled: by itself \(in line \d+\)"),
        ("yields", "returned a generator; expected None"),
        ("on_a_copy", r"trained nothing: \d+ steps of the optimizer left every weight as it was"),
        ("copies_back", "without a step of the optimizer that it was given"),
        ("replaces", r"another model.*: backbone\.\S+weight, .* replaced by others"),
        (
            "another_head",
            r"heads\.0\.weight, heads\.0\.bias replaced by others; heads\.0\.weight, "
            r"heads\.0\.bias changed from \(5, \d+\) to \(7, \d+\)",
        ),
        ("adds", r"another model than it was given: extra\.weight, extra\.bias added"),
        ("in_double", "changed from torch.float32 to torch.float64. Train the parameters"),
        ("elsewhere", "changed from cpu to meta"),
    ],
)
def test_a_recipe_that_does_not_train(tmp_path, name, said):
    record = run(asked(tmp_path, name, methods=("finetune",)), progress=False).runs[0]
    assert record.status == "failed"
    assert re.search(said, record.error), record.error


def test_what_a_recipe_froze_is_trained_by_the_next_task_again(tmp_path):
    asked_for = asked(tmp_path, "freezes_at_last", methods=("finetune", "mas"))
    results = run(asked_for, progress=False)
    assert [r.error for r in results.runs] == [None, None]
    plain = run(asked(tmp_path, methods=("finetune", "mas")), progress=False)
    assert accuracies(results) == accuracies(plain)


def test_a_recipe_may_wrap_its_optimizer_and_leave_gradients_off(tmp_path):
    wrapped = run(asked(tmp_path, "around", methods=("finetune", "mas")), progress=False)
    assert [r.error for r in wrapped.runs] == [None, None]
    plain = run(asked(tmp_path, methods=("finetune", "mas")), progress=False)
    assert accuracies(wrapped) == accuracies(plain)


def test_each_training_of_a_recipe_starts_alike_and_leaves_the_process_alone(tmp_path):
    both = asked(tmp_path, "remembers", methods=("mas", "finetune"), seeds=(0, 1))
    alone = asked(tmp_path, "remembers", methods=("finetune",), seeds=(1,))
    before = Path.cwd(), torch.get_default_dtype(), torch.get_num_threads()
    drawn = random.getstate(), numpy.random.get_state()[1].tolist()
    of_both = run(both, out=tmp_path / "out", progress=False)
    assert (Path.cwd(), torch.get_default_dtype(), torch.get_num_threads()) == before
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == drawn
    assert [record.error for record in of_both.runs] == [None] * 4
    random.seed(5), numpy.random.seed(5)
    assert accuracies(run(alone, progress=False))[0] == accuracies(of_both)[3]
    # In the middle of a job, in another process: what the file held is gone there, too.
    again = Results.read(tmp_path / "out")
    again.runs[3].status, again.runs[3].accuracy = "failed", []
    again.write(tmp_path / "out")
    resumed = run(both, out=tmp_path / "out", resume=True, progress=False)
    assert accuracies(resumed) == accuracies(of_both)


def test_a_recipe_that_was_edited_between_two_runs_is_read_again(tmp_path):
    config = asked(tmp_path, "raises", methods=("finetune",))
    assert "made to fail" in run(config, progress=False).runs[0].error
    file = tmp_path / "train.py"
    file.write_text(RECIPES.replace("made to fail", "edited"))
    assert "edited" in run(config, progress=False).runs[0].error


def test_a_model_that_draws_from_numpy_begins_alike(tmp_path):
    (tmp_path / "net.py").write_text(
        "import random\n\nimport numpy\nimport torch\n\n\ndef net():\n"
        "    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8),\n"
        "                                torch.nn.ReLU(), torch.nn.Linear(8, 4))\n"
        "    start = torch.as_tensor(numpy.random.randn(8, 64), dtype=torch.float32)\n"
        "    model[1].weight.data = start * random.random()\n"
        "    return model\n"
    )
    config = tiny(methods=("mas", "finetune"), classes_per_task=5, model=f"{tmp_path}/net.py:net")
    first = run(config, progress=False)
    alone = run(dataclasses.replace(config, methods=("finetune",)), progress=False)
    assert [record.error for record in first.runs] == [None, None]
    assert accuracies(alone)[0] == accuracies(first)[1]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere.py:finetune", "The recipe file nowhere.py does not exist"),
        ("train.py", "names no function"),
        ("{folder}/train.py:finetun", "no function 'finetun'.*finetune"),
    ],
)
def test_a_recipe_that_is_not_there(tmp_path, spec, said):
    config = asked(tmp_path, recipe=spec.format(folder=tmp_path))
    with pytest.raises(ConfigError, match=said):
        run(config, progress=False)


def test_methods_that_change_the_loss_take_no_recipe(tmp_path):
    with pytest.raises(ConfigError, match=r"which lwf, replay would change.*finetune.*mas"):
        asked(tmp_path, methods=("finetune", "lwf", "replay"))
    with pytest.raises(ConfigError, match="drop_transfer changes the forward"):
        asked(tmp_path, methods=("imm-mean",), options={"imm-mean": {"drop_transfer": 0.2}})


def test_a_knob_that_is_swept_is_not_set_as_well():
    with pytest.raises(ConfigError, match=r"replay\.share is swept, and set to one value as well"):
        tiny(
            methods=("replay",),
            sweeps={"replay": (0.1, 0.5)},
            options={"replay": {"share": 0.2}},
        )


def test_a_knob_that_counts_takes_whole_numbers():
    assert isinstance(knob_value("lora", 8.0), int)
    assert isinstance(knob_value("replay", 1.0), float)
    assert knob_value("freeze", -1.0) == -1.0  # out of range: said as it was written


def test_the_help_names_every_knob_and_all_tasks():
    described = fields_of(Config)
    for name, kind in METHODS.items():
        if kind.knob not in (None, "strength"):
            assert f"{name}.{kind.knob}" in described["sweeps"].description
    for usage, _ in TASKS.values():
        assert usage in described["tasks"].description
