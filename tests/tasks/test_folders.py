import shutil
import warnings

import pytest
import torch
from PIL import Image

from retain.errors import ConfigError, FileError
from retain.tasks import load_tasks

from .image_folders import picture, write_folder


def refused(spec, *, match, error=FileError, **options):
    with pytest.raises(error, match=match):
        load_tasks(spec, **options)


def test_a_task_per_folder(tmp_path):
    a = write_folder(tmp_path / "a")
    b = write_folder(
        tmp_path / "b", classes=("blue", "green", "red"), splits=("train", "val", "test")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sequence = load_tasks(f"folders:first={a},second={b}", image_size=32)
    first, second = sequence.tasks
    assert (first.name, second.name) == ("first", "second")
    assert first.classes == ("green", "red")
    assert second.classes == ("blue", "green", "red")
    assert first.val is None
    assert second.val is not None
    assert [len(first.train), len(first.test)] == [12, 12]
    assert [len(second.train), len(second.val), len(second.test)] == [18, 18, 18]
    assert sequence.input_shape == (3, 32, 32)
    assert first.train.labels.tolist() == [0] * 6 + [1] * 6


def test_labels_belong_to_the_colours(tmp_path):
    root = write_folder(tmp_path / "a", classes=("blue", "green", "red"))
    task = load_tasks(f"folders:a={root}", image_size=32, class_order_seed=1).tasks[0]
    assert task.classes != ("blue", "green", "red")
    batch = next(task.test.batches(100))
    channel = {"red": 0, "green": 1, "blue": 2}
    brightest = batch.inputs.mean((2, 3)).argmax(1)
    assert [channel[task.classes[label]] for label in batch.labels] == brightest.tolist()


def test_the_default_size_is_the_papers(tmp_path):
    root = write_folder(tmp_path / "a", per_class=2)
    sequence = load_tasks(f"folders:a={root}")
    assert sequence.input_shape == (3, 224, 224)
    assert next(sequence.tasks[0].train.batches(2)).inputs.shape == (2, 3, 224, 224)


def test_split_by_classes(tmp_path):
    root = write_folder(tmp_path / "a", classes=("blue", "green", "red"))
    refused(f"folders:a={root}", error=ConfigError, classes_per_task=2, match="a: 3 classes, 2 per")
    for split in ("train", "test"):
        shutil.copytree(root / split / "red", root / split / "teal")
    sequence = load_tasks(f"folders:a={root}", classes_per_task=2, image_size=32)
    assert [task.name for task in sequence.tasks] == ["a blue-green", "a red-teal"]
    assert sequence.tasks[1].train.labels.bincount().tolist() == [6, 6]


def test_a_few_per_class_and_a_validation_split(tmp_path):
    root = write_folder(tmp_path / "a")
    task = load_tasks(f"folders:a={root}", samples_per_class=4, val_fraction=0.25).tasks[0]
    assert task.train.labels.bincount().tolist() == [3, 3]
    assert task.val.labels.bincount().tolist() == [1, 1]
    assert task.test.labels.bincount().tolist() == [4, 4]


def test_what_the_argument_must_look_like(tmp_path):
    root = write_folder(tmp_path / "a")
    refused(f"folders:{root}", error=ConfigError, match="Not of the form name=PATH")
    refused(f"folders:a={root},", error=ConfigError, match="Not of the form name=PATH")
    refused(f"folders:a={root},a={root}", error=ConfigError, match="Several folders are called a")
    refused("folders", error=ConfigError, match="Not of the form")


def test_missing_folders(tmp_path):
    refused(f"folders:a={tmp_path / 'absent'}", match="does not exist")
    root = write_folder(tmp_path / "a", splits=("training", "test"))
    refused(f"folders:a={root}", match=r"has no train/\. Expected .* found test/, training/")
    (tmp_path / "b").mkdir()
    refused(f"folders:b={tmp_path / 'b'}", match=r"has no train/ and no test/.*found no folders")


def test_everything_wrong_is_listed_at_once(tmp_path):
    root = write_folder(tmp_path / "a", classes=("blue", "green", "red"))
    shutil.rmtree(root / "test" / "red")
    (root / "test" / "teal").mkdir()
    refused(
        f"folders:a={root}",
        match=r"(?s)no images in teal.*only in train/, not in test/: red.*not in train/: teal",
    )


def test_one_class_is_not_a_task(tmp_path):
    root = write_folder(tmp_path / "a", classes=("red",))
    refused(f"folders:a={root}", match=r"train/ has 1 class folder\(s\) \(red\)")


def test_other_files_are_not_images(tmp_path):
    root = write_folder(tmp_path / "a")
    (root / "train" / "red" / "notes.txt").write_text("not a picture")
    (root / "train" / "red" / ".hidden.png").write_text("not a picture")
    (root / "train" / ".cache").mkdir()
    assert len(load_tasks(f"folders:a={root}", image_size=32).tasks[0].train) == 12


def break_some(root, count):
    whole = (root / "train" / "red" / "0.png").read_bytes()
    (root / "train" / "red" / "1.png").write_bytes(whole[: len(whole) // 2])
    if count > 1:
        (root / "test" / "green" / "3.png").write_text("not a picture")


def test_unreadable_images_are_named_counted_and_left_out(tmp_path):
    root = write_folder(tmp_path / "a")
    break_some(root, 2)
    with pytest.warns(UserWarning, match="2 of 24 images") as caught:
        sequence = load_tasks(f"folders:a={root}", image_size=32, corrupt_fraction=0.1)
    said = str(caught[0].message)
    assert "train/red/1.png (OSError" in said
    assert "test/green/3.png (UnidentifiedImageError" in said
    assert sequence.notes == (said,)
    task = sequence.tasks[0]
    assert task.train.labels.bincount().tolist() == [6, 5]
    assert task.test.labels.bincount().tolist() == [5, 6]
    colours = next(task.test.batches(100)).inputs.mean((2, 3)).argmax(1)
    assert (1 - colours).tolist() == task.test.labels.tolist()


def test_too_many_unreadable_images_are_fatal(tmp_path):
    root = write_folder(tmp_path / "a")
    break_some(root, 2)
    refused(f"folders:a={root}", match=r"train/red/1.png.*more than the 5%.*corrupt_fraction")


def test_a_class_of_which_nothing_can_be_read(tmp_path):
    root = write_folder(tmp_path / "a", per_class=1)
    (root / "train" / "red" / "0.png").write_bytes(b"")
    refused(f"folders:a={root}", corrupt_fraction=1.0, match="No image of red in the train split")


def test_other_modes_are_converted_and_mentioned(tmp_path):
    root = write_folder(tmp_path / "a")
    folder = root / "train" / "red"
    picture("red", 0).convert("L").save(folder / "0.png")
    picture("red", 1).convert("RGBA").save(folder / "1.png")
    deep = Image.fromarray((torch.arange(1200).view(30, 40) * 50).to(torch.uint16).numpy())
    deep.save(folder / "2.png")
    with pytest.warns(UserWarning, match=r"3 of 24 images are not RGB \(1 I;16, 1 L, 1 RGBA\)"):
        sequence = load_tasks(f"folders:a={root}", image_size=32)
    pixels = sequence.tasks[0].train.pixels
    assert all(pixels.get(number).shape[0] == 3 for number in range(12))
    assert pixels.get(8).float().std() > 30  # sixteen bits are scaled, not clipped to white


def test_progress_is_told(tmp_path):
    root = write_folder(tmp_path / "a")
    heard = []
    load_tasks(f"folders:a={root}", image_size=32, progress=lambda *news: heard.append(news))
    assert heard[11] == ("a train", 12, 12)
    assert heard[-1] == ("a test", 12, 12)
