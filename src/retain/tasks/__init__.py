"""Where samples come from: tasks in memory and on disk, in the order in which they are learned."""

from retain.tasks.image_examples import ImageExamples
from retain.tasks.images import Progress
from retain.tasks.load import TASKS, load_tasks
from retain.tasks.options import Augmentation, TaskOptions
from retain.tasks.task import Examples, Minibatch, Scenario, Task, TaskSequence
from retain.tasks.tensors import TensorExamples

__all__ = [
    "TASKS",
    "Augmentation",
    "Examples",
    "ImageExamples",
    "Minibatch",
    "Progress",
    "Scenario",
    "Task",
    "TaskOptions",
    "TaskSequence",
    "TensorExamples",
    "load_tasks",
]
