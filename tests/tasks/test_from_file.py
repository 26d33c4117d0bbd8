"""Tasks that a function in a user's own file returns: texts, for example."""

from __future__ import annotations

import pytest
import torch

from retain.errors import ConfigError, ModelError
from retain.experiment import Config, run
from retain.models import build_model
from retain.tasks import TaskSequence, load_tasks

FILE = """
import torch
from torch import nn

from retain.tasks import Task, TaskSequence, TensorExamples

def examples(count, classes=2, kind=torch.int64, width=3, low=1):
    labels = torch.arange(count) % classes
    drawn = torch.Generator().manual_seed(count)
    tokens = torch.randint(low, 9, (count, 2, width), generator=drawn)
    tokens[:, 0, 0] = 9 + labels  # what tells the classes apart
    tokens[:, 1] = 1  # the mask
    return TensorExamples(tokens.to(kind), labels)

def task(name, train=12, test=6, **more):
    return Task(name, ("no", "yes"), examples(train, **more), examples(test, **more))

def tasks(): return [task("first"), task("second", train=16)]
def sequence():
    return TaskSequence("mine", (task("a"), task("b")), (), "domain-incremental", splits="by hand")
def numbers(): return [task("a", kind=torch.float32), task("b", kind=torch.float32)]
def none(): return []
def words(): return ["a", "b"]
def broken(): raise OSError("questions.csv is not there")
def wrong():
    return [task("a"), task("a", width=4), task("empty", test=0), task("many", classes=3)]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 4)
        self.head = nn.Linear(4, 2)
    def forward(self, inputs):
        tokens, mask = inputs.unbind(1)
        hidden = self.table(tokens) * mask.unsqueeze(-1)
        return self.head(hidden.sum(1) / mask.sum(1, keepdim=True))

def net(): return Net()
def images(): return nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 2))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.py"
    path.write_text(FILE)
    return path


def test_tasks_as_the_function_made_them(file):
    sequence = load_tasks(f"{file}:tasks")
    assert [(t.name, len(t.train), len(t.test)) for t in sequence.tasks] == [
        ("first", 12, 6),
        ("second", 16, 6),
    ]
    assert sequence.name == f"{file}:tasks"
    assert (sequence.input_shape, sequence.input_dtype) == ((2, 3), torch.int64)
    assert load_tasks(f"{file}:numbers").input_dtype == torch.float32


def test_a_sequence_keeps_what_it_says_of_itself(file):
    sequence = load_tasks(f"{file}:sequence")
    assert isinstance(sequence, TaskSequence)
    assert (sequence.scenario, sequence.splits) == ("domain-incremental", "by hand")
    assert sequence.input_shape == (2, 3)
    asked = load_tasks(f"{file}:sequence", scenario="task-incremental")
    assert asked.scenario == "task-incremental"


def test_fewer_examples_and_a_validation_split(file):
    task = load_tasks(f"{file}:tasks", samples_per_class=4, val_fraction=0.25).tasks[0]
    assert (len(task.train), len(task.val), len(task.test)) == (6, 2, 6)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("none", r"returns \[\]; expected a list of retain.tasks.Task"),
        ("words", "expected a list of retain.tasks.Task"),
        ("broken", r"broken\(\) in .*texts.py.* failed: OSError: questions.csv is not there"),
        ("taks", r"no function 'taks'\. Did you mean 'tasks'"),
    ],
)
def test_what_is_no_tasks_is_refused(file, function, said):
    with pytest.raises(ConfigError, match=said):
        load_tasks(f"{file}:{function}")


def test_everything_that_is_wrong_with_tasks_is_said_at_once(file):
    with pytest.raises(ConfigError) as caught:
        load_tasks(f"{file}:wrong")
    for said in ("called 'a'", "test split of 'empty' is empty", "labels from 0 to 2; expected 0"):
        assert said in str(caught.value)
    assert "2×4 int64" in str(caught.value)


def test_options_of_images_are_refused(file):
    with pytest.raises(ConfigError, match="image_size, classes_per_task cannot be chosen"):
        load_tasks(f"{file}:tasks", image_size=8, classes_per_task=2)


def test_every_way_to_learn_texts(file, tmp_path):
    methods = ("finetune", "mas", "ewc", "lwf", "replay", "freeze")
    config = Config(
        f"{file}:tasks", model=f"{file}:net", methods=methods, batch_size=4, epochs=3, lr=0.1
    )
    results = run(config, out=tmp_path / "out", progress=False)
    assert [one.error for one in results.runs if one.status != "done"] == []
    assert results.runs[0].accuracy[1][1] == 1.0  # the classes are told apart


def test_networks_that_take_no_tokens_say_so(file):
    asked = {"input_shape": (2, 3), "input_dtype": torch.int64, "seed": 0}
    with pytest.raises(ConfigError, match=r"mlp is for images.*int64.*--model path/to/file.py"):
        build_model("mlp", **asked)
    with pytest.raises(ModelError, match="does not accept inputs of type int64"):
        build_model(f"{file}:images", **asked)
