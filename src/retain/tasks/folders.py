"""Tasks from folders of images: `train/`, `test/` and perhaps `val/`, with a folder per class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from retain import arguments
from retain.errors import ConfigError, FileError
from retain.tasks.crops import PAPER_SIZE, Crops
from retain.tasks.images import ImageFile, MemoryBudget, Progress
from retain.tasks.options import TaskOptions
from retain.tasks.reading import Reading
from retain.tasks.splits import dealt
from retain.tasks.task import Task, TaskSequence

USAGE = "folders:name=PATH,other=PATH"
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
)
REQUIRED, OPTIONAL = ("train", "test"), ("val",)


@dataclass(frozen=True)
class ImageFolder:
    """What lies in the folder of a task: for each split, for each class, its image files."""

    name: str
    root: Path
    splits: dict[str, dict[str, list[Path]]]

    @property
    def classes(self) -> list[str]:
        """The names of the classes, sorted."""
        return sorted(self.splits["train"])


def folder_tasks(
    argument: str, options: TaskOptions, progress: Progress | None = None
) -> TaskSequence:
    """A task, or several by classes, of each folder in `name=PATH,other=PATH`.

    Raises:
        ConfigError: the argument is not of that form.
        FileError: a folder is not laid out as it should be, or its images cannot be read.
    """
    crops = Crops(options.image_size or PAPER_SIZE)
    budget = MemoryBudget(options.cache_bytes)
    folders = [scanned(name, path) for name, path in parsed(argument)]
    tasks: list[Task] = []
    notes: list[str] = []
    for folder in folders:
        for group in _groups(folder, options):
            whole = len(group) == len(folder.classes)
            name = folder.name if whole else f"{folder.name} {'-'.join(group)}"
            reading = Reading(name, folder.root, group, crops, budget, options, progress)
            tasks.append(_task(folder, reading))
            notes += reading.notes()
    shape = (3, crops.size, crops.size)
    splits = "The folders' own splits."
    return TaskSequence("folders", tuple(tasks), shape, notes=tuple(notes), splits=splits)


def parsed(argument: str) -> list[tuple[str, Path]]:
    """(name, path) of each folder.

    Raises:
        ConfigError: a part is not `name=PATH`, or a name comes twice.
    """
    parts = [part.partition("=") for part in argument.split(",")]
    wrong = ["".join(part) for part in parts if not (part[0].strip() and part[2].strip())]
    if wrong:
        raise ConfigError(f"Not of the form name=PATH: {wrong}. Expected {USAGE}.")
    named = [(name.strip(), Path(path.strip()).expanduser()) for name, _, path in parts]
    names = [name for name, _ in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"Several folders are called {', '.join(twice)}; names must differ.")
    return named


def scanned(name: str, root: Path) -> ImageFolder:
    """The image files below `root`, by split and class.

    Raises:
        FileError: everything that is wrong with the layout, at once.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else arguments.absent(root)
        raise FileError(f"The folder of {name}, {root}, {what}.")
    there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    absent = [split for split in REQUIRED if split not in there]
    if absent:
        raise FileError(
            f"The folder of {name}, {root}, has no {' and no '.join(f'{s}/' for s in absent)}. "
            f"Expected train/ and test/ (and optionally val/) with a folder of images per class; "
            f"found {', '.join(f'{entry}/' for entry in there) or 'no folders'}."
        )
    splits = {split: _classes(root / split) for split in (*REQUIRED, *OPTIONAL) if split in there}
    problems = _problems(splits)
    if problems:
        raise FileError(
            f"The folder of {name}, {root}, cannot be used:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
    return ImageFolder(name, root, splits)


def _classes(split: Path) -> dict[str, list[Path]]:
    folders = sorted(entry for entry in split.iterdir() if entry.is_dir())
    return {
        folder.name: sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        for folder in folders
        if not folder.name.startswith(".")
    }


def _problems(splits: dict[str, dict[str, list[Path]]]) -> list[str]:
    problems = []
    known = set(splits["train"])
    for split, classes in splits.items():
        if len(classes) < 2:
            problems.append(
                f"{split}/ has {len(classes)} class folder(s) ({', '.join(classes) or 'none'}); "
                "a task needs two classes or more"
            )
        empty = [name for name, files in classes.items() if not files]
        if empty:
            problems.append(f"{split}/ has no images in {', '.join(empty)}")
        if known - set(classes):
            problems.append(f"only in train/, not in {split}/: {_listed(known - set(classes))}")
        if set(classes) - known:
            problems.append(f"only in {split}/, not in train/: {_listed(set(classes) - known)}")
    return problems


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _groups(folder: ImageFolder, options: TaskOptions) -> list[list[str]]:
    """The names of the classes of each task that is made from a folder."""
    count = len(folder.classes)
    per_task = options.classes_per_task or count
    try:
        groups = dealt(count, per_task, order_seed=options.class_order_seed)
    except ConfigError as error:
        raise ConfigError(f"{folder.name}: {error}") from error
    return [[folder.classes[number] for number in group] for group in groups]


def _task(folder: ImageFolder, reading: Reading) -> Task:
    examples = {}
    for split, classes in folder.splits.items():
        files = [ImageFile(path) for name in reading.classes for path in classes[name]]
        labels = [
            label for label, name in enumerate(reading.classes) for _ in range(len(classes[name]))
        ]
        examples[split] = reading.split(split, files, labels)
    task = Task(reading.name, tuple(reading.classes), examples["train"], examples["test"])
    if "val" in examples:
        return replace(task, val=examples["val"])
    return task.with_validation(reading.options.val_fraction, seed=reading.options.seed)
