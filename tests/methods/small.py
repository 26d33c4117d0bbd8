"""Small tasks that contradict each other, and methods that have learned some of them."""

import torch

from retain.experiment import Config
from retain.experiment.job import Job
from retain.experiment.learner import Learner
from retain.experiment.progress import Watcher
from retain.experiment.stage import Stage
from retain.methods import METHODS, Setting, options_of
from retain.tasks import Minibatch, Task, TaskSequence, TensorExamples

SHAPE = (1, 4, 4)


class Jittered(TensorExamples):
    """Examples whose training transform is random."""

    deterministic = False

    def batches(self, size, *, shuffle=None, train=False, device=None):
        for batch in super().batches(size, shuffle=shuffle, train=train, device=device):
            noise = torch.randn(batch.inputs.shape, generator=shuffle) if train else 0
            yield Minibatch(batch.inputs + 0.1 * noise, batch.labels, batch.indices)


def examples(task, n, kind=TensorExamples, seed=0, apart=1.0):
    """Two classes that differ by the sign of a direction, which is another one in each task."""
    generator = torch.Generator().manual_seed(100 * seed + task)
    labels = torch.arange(n) % 2
    direction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(task))
    inputs = torch.randn(n, *SHAPE, generator=generator)
    return kind(inputs + apart * (2 * labels.view(-1, 1, 1, 1) - 1) * direction, labels)


def sequence(tasks=2, n=64, kind=TensorExamples, scenario="task-incremental", apart=1.0):
    return TaskSequence(
        "small",
        tuple(
            Task(
                f"t{t}",
                ("a", "b"),
                examples(t, n, kind, apart=apart),
                examples(t, n // 2, seed=1, apart=apart),
            )
            for t in range(tasks)
        ),
        SHAPE,
        scenario,
    )


def stage(of=None, **config):
    of = of or sequence()
    asked = {"tasks": "digits", "epochs": 2, "batch_size": 16, "lr": 0.05, "optimizer": "sgd"}
    return Stage(Config(**{**asked, **config}), of, torch.device("cpu"), Watcher())


def work(method, of=None, *, form=None, on="train", seed=0, **config):
    """A method before its first task; options are given as `options={...}`."""
    options = config.pop("options", {})
    on_stage = stage(of, **config, methods=(method,), options={method: options})
    kind = METHODS[method]
    strength = options.get("strength", kind.Options().strength) if kind.has_strength() else None
    form = (form or "gradient") if kind.has_form() else None
    job = Job(method, strength, form, on if kind.chooses_data else None, seed)
    return Learner(job, on_stage)


def learned(method, of=None, tasks=None, **how):
    """A method after `tasks` tasks, by default all."""
    one = work(method, of, **how)
    for _ in range(tasks or len(one.stage.sequence.tasks)):
        one.learn_next()
    return one


def backbone(one):
    return torch.cat([p.detach().flatten() for p in one.network.backbone.parameters()])


def loss_on_test(one, task):
    """The cross-entropy on a task's test data, with that task's head."""
    batch = next(one.stage.sequence.tasks[task].test.batches(1000))
    one.network.eval()
    with torch.no_grad():
        outputs = one.network.heads[task](one.network.features(batch.inputs))
    return torch.nn.functional.cross_entropy(outputs, batch.labels).item()


def alone(method, network, **options):
    """A method on a network of one's own, outside of a run."""
    return METHODS[method](network, options_of(method, options), Setting())
