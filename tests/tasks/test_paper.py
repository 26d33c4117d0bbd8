import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat
from torchvision import datasets

from retain.errors import ConfigError, FileError
from retain.tasks import load_tasks
from retain.tasks.paper import PAPER_SETS, data_sets, download_set, inspect_data, read_official
from retain.tasks.paper.actions import ACTIONS
from retain.tasks.paper.official import Counts

from .miniatures import WRITERS, Size, write_miniatures

SIZE = Size(train=4, test=5)
CLASSES = {
    "flowers": ("pink primrose", "petunia", "blackberry lily"),
    "scenes": ("airport_inside", "bakery", "winecellar"),
    "birds": ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross"),
    "cars": ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"),
    "aircraft": ("707-320", "Boeing 717", "F-16A/B"),
    "actions": ("jumping", "reading", "other"),
    "letters": ("A", "B", "a"),
    "svhn": ("0", "1", "2"),
}
# Two persons an image, one of them with two actions; letters are split by share, 6850 of 8000.
COUNTS = {"actions": (23, 29), "letters": (24, 3)}


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory) -> Path:
    return write_miniatures(tmp_path_factory.mktemp("miniatures"), SIZE)


@pytest.fixture
def copy(miniatures, tmp_path) -> Path:
    """Miniatures to break."""
    return Path(shutil.copytree(miniatures, tmp_path / "data"))


def read(root, name):
    return read_official(PAPER_SETS[name], root)


def inspected(root, name, **options):
    (found,) = inspect_data(root, [name], **options)
    return found


def test_all_eight_in_the_order_of_the_paper():
    assert list(PAPER_SETS) == list(WRITERS)
    survey = {name: data.expected for name, data in PAPER_SETS.items()}
    assert survey["flowers"] == Counts(102, 2040, 3074 + 3075)
    assert survey["scenes"] == Counts(67, 5360, 670 + 670)
    assert survey["birds"] == Counts(200, 5994, 2897 + 2897)
    assert survey["cars"] == Counts(196, 8144, 4020 + 4021)
    assert survey["aircraft"] == Counts(100, 6667, 1666 + 1667)
    assert survey["actions"] == Counts(11, 3102, 1554 + 1554)
    assert survey["letters"] == Counts(52, 6850, 580 + 570)
    assert survey["svhn"] == Counts(10, 73257, 13016 + 13016)


@pytest.mark.parametrize("name", WRITERS)
def test_classes_and_counts(miniatures, name):
    official = read(miniatures, name)
    assert official.classes == CLASSES[name]
    assert (len(official.train), len(official.test)) == COUNTS.get(name, (12, 15))
    assert official.train.absent() == official.test.absent() == []
    for listing in (official.train, official.test):
        assert set(listing.labels) == {0, 1, 2}
    if name not in {"svhn", "actions"}:
        train, test = (
            {image.path for image in part.images} for part in (official.train, official.test)
        )
        assert not train & test


@pytest.mark.parametrize("name", WRITERS)
def test_labels_belong_to_the_pictures(miniatures, name):
    """Pictures of a class have its colour: the nearest mean colour gives every label back."""
    task = load_tasks(f"paper:{name}={miniatures}", image_size=32, halve_test=False).tasks[0]

    def colours(split):
        batch = next(split.batches(100))
        return batch.inputs[:, :, 12:20, 12:20].mean((2, 3)), batch.labels

    train, train_labels = colours(task.train)
    test, test_labels = colours(task.test)
    centres = torch.stack([train[train_labels == label].mean(0) for label in range(3)])
    assert torch.cdist(test, centres).argmin(1).tolist() == test_labels.tolist()


def test_the_persons_box_is_what_is_seen(miniatures):
    official = read(miniatures, "actions")
    boxes = {image.box for image in official.train.images}
    assert boxes == {(0, 0, 40, 60), (40, 20, 100, 75)}
    task = load_tasks(f"paper:actions={miniatures}", image_size=32).tasks[0]
    sizes = {tuple(task.train.pixels.get(number).shape) for number in range(len(task.train))}
    assert sizes == {(3, 48, 32), (3, 32, 35)}  # 40×60 and 60×55, shorter side 32
    assert "2 persons without exactly one action" in official.remarks[0]
    assert ACTIONS[-1] == "other"


@pytest.mark.parametrize("name", ["cars", "aircraft"])
def test_the_same_as_torchvision_reads(miniatures, name):
    official = read(miniatures, name)
    for split, listing in (("train", official.train), ("test", official.test)):
        if name == "cars":
            theirs = datasets.StanfordCars(miniatures, split=split)
            rows = [(path, label) for path, label in theirs._samples]
        else:
            theirs = datasets.FGVCAircraft(miniatures, "trainval" if split == "train" else split)
            rows = list(zip(theirs._image_files, theirs._labels))
        assert [str(image.path) for image in listing.images] == [path for path, _ in rows]
        assert listing.labels == [label for _, label in rows]


def test_the_same_as_torchvision_reads_but_for_its_checksums(miniatures, monkeypatch):
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda _: True)
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda _: True)
    flowers = read(miniatures, "flowers")
    theirs = datasets.Flowers102(miniatures, "test")
    assert [image.path for image in flowers.test.images] == theirs._image_files
    assert [[0, 50, 101][label] for label in flowers.test.labels] == theirs._labels
    svhn = read(miniatures, "svhn")
    digits = datasets.SVHN(miniatures / "svhn", "test")
    assert svhn.test.labels == digits.labels.tolist()
    assert np.array_equal(svhn.test.images.numpy(), digits.data)


def test_the_official_test_set_is_halved_class_by_class(miniatures):
    halved = load_tasks(f"paper:birds,svhn={miniatures}", image_size=32)
    whole = load_tasks(f"paper:birds,svhn={miniatures}", image_size=32, halve_test=False)
    assert "halved" in halved.splits
    assert "123" in halved.splits
    assert "whole" in whole.splits
    for half, all_of_it in zip(halved.tasks, whole.tasks):
        assert [len(half.val), len(half.test), len(all_of_it.test)] == [7, 8, 15]
        assert all_of_it.val is None
        parts = [next(split.batches(100)).inputs for split in (half.val, half.test)]
        assert torch.cdist(*(part.flatten(1) for part in parts)).min() > 0
        assert half.val.labels.bincount().min() >= 2
    again = load_tasks(f"paper:birds={miniatures}", image_size=32, seed=5).tasks[0]
    assert torch.equal(
        next(again.test.batches(9)).inputs, next(halved.tasks[0].test.batches(9)).inputs
    )


def test_a_sequence_of_all_of_them(miniatures):
    sequence = load_tasks(f"paper={miniatures}", image_size=32)
    assert [task.name for task in sequence.tasks] == list(WRITERS)
    assert sequence.scenario == "task-incremental"
    assert sequence.input_shape == (3, 32, 32)
    few = load_tasks(f"paper:svhn,flowers={miniatures}", image_size=32, samples_per_class=2)
    assert [task.name for task in few.tasks] == ["svhn", "flowers"]
    assert [task.train.labels.bincount().tolist() for task in few.tasks] == [[2, 2, 2]] * 2


def test_what_cannot_be_asked_for(miniatures, tmp_path):
    def refused(spec, match, error=ConfigError, **options):
        with pytest.raises(error, match=match):
            load_tasks(spec, **options)

    refused(f"paper:flower={miniatures}", r"no data set 'flower'. Did you mean 'flowers'\?")
    refused(f"paper:birds,birds={miniatures}", "Named several times: birds")
    refused("paper:birds=", "names no folder")
    refused(f"paper={miniatures}", "each data set of the paper is one task", classes_per_task=2)
    refused(f"paper:scenes={tmp_path}", r"MIT Indoor.*not in.*indoor\.html", FileError)


def test_inspection_of_miniatures(miniatures):
    for found in inspect_data(miniatures):
        assert found.found.classes == 3
        assert found.folder is not None
        assert (found.found.train, found.found.test) == COUNTS.get(found.name, (12, 15))
        exact = found.name not in ("actions", "letters")
        assert found.state == ("usable" if exact else "complete")
        counts = f"3 classes, expected {found.expected.classes}"
        assert counts in (found.problems if exact else found.remarks)


def test_inspection_of_an_empty_folder(tmp_path):
    found = inspect_data(tmp_path)
    assert [one.name for one in found] == list(WRITERS)
    for one in found:
        assert one.state == "missing"
        assert one.found is None
        assert str(tmp_path) in one.source
    assert "download_set('flowers'" in found[0].source


def test_inspection_with_the_right_counts(miniatures, monkeypatch):
    from dataclasses import replace

    right = replace(PAPER_SETS["birds"], expected=Counts(3, 12, 15))
    monkeypatch.setitem(data_sets.PAPER_SETS, "birds", right)
    found = inspected(miniatures, "birds", decode=True)
    assert found.state == "complete"
    assert found.problems == ()


LISTS = {
    "flowers": "flowers-102/setid.mat",
    "scenes": "indoorCVPR_09/TestImages.txt",
    "birds": "CUB_200_2011/train_test_split.txt",
    "cars": "stanford_cars/cars_test_annos_withlabels.mat",
    "aircraft": "fgvc-aircraft-2013b/data/images_variant_test.txt",
    "actions": "VOCdevkit/VOC2012/ImageSets/Action/val.txt",
    "svhn": "svhn/test_32x32.mat",
}


@pytest.mark.parametrize("name", LISTS)
def test_a_missing_list_is_named(copy, name):
    (copy / LISTS[name]).unlink()
    found = inspected(copy, name)
    assert found.state == "broken"
    assert f"{Path(LISTS[name]).name} is missing" in found.problems[0]
    with pytest.raises(FileError, match=f"{Path(LISTS[name]).name} is missing"):
        load_tasks(f"paper:{name}={copy}", image_size=32)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_cut_off_is_refused(copy, name):
    path = copy / LISTS[name]
    content = path.read_bytes()
    path.write_bytes(content[:150] if path.suffix == ".mat" else b"1\xff\xfe")
    found = inspected(copy, name)
    assert found.state == "broken"
    assert path.name in found.problems[0]


IMAGES = {
    "flowers": "flowers-102/jpg/image_00002.jpg",
    "scenes": "indoorCVPR_09/Images/bakery/bakery_0001.jpg",
    "birds": "CUB_200_2011/images/002.Laysan_Albatross/Laysan_Albatross_0001_11.jpg",
    "cars": "stanford_cars/cars_train/00002.jpg",
    "aircraft": "fgvc-aircraft-2013b/data/images/1001001.jpg",
    "actions": "VOCdevkit/VOC2012/JPEGImages/2010_000002.jpg",
}


@pytest.mark.parametrize("name", IMAGES)
def test_missing_and_damaged_images_are_named(copy, name):
    path = copy / IMAGES[name]
    content = path.read_bytes()
    images = 2 if name == "actions" else 1  # two persons are cut from it
    path.write_bytes(content[: len(content) // 2])
    assert not any(path.name in problem for problem in inspected(copy, name).problems)
    assert any(path.name in problem for problem in inspected(copy, name, decode=True).problems)
    with pytest.warns(UserWarning, match=f"{images} of .*{path.name}"):
        load_tasks(f"paper:{name}={copy}", image_size=32, corrupt_fraction=0.2)
    path.unlink()
    found = inspected(copy, name)
    assert any("1 listed images are not there" in p and path.name in p for p in found.problems)
    assert found.found.train == COUNTS.get(name, (12, 15))[0] - images


def test_lists_that_do_not_belong_together(copy):
    def broken(name, match):
        found = inspected(copy, name)
        assert found.state == "broken"
        assert match in found.problems[0]

    savemat(copy / "flowers-102" / "imagelabels.mat", {"labels": np.ones((1, 5))})
    broken("flowers", "imagelabels.mat has 5 labels")
    (copy / LISTS["scenes"]).write_text("moon/moon_0001.jpg")
    broken("scenes", "lists classes that TrainImages.txt does not")
    (copy / LISTS["birds"]).write_text("1 1\n2 0\n")
    broken("birds", "train_test_split.txt 2")
    shutil.copy(copy / "stanford_cars/devkit/cars_test_annos.mat", copy / LISTS["cars"])
    broken("cars", "expected fname and class")
    (copy / LISTS["aircraft"]).write_text("1000001 Zeppelin\n")
    broken("aircraft", "line 1: '1000001 Zeppelin'")
    (copy / "VOCdevkit/VOC2012/Annotations/2010_000001.xml").write_text("<annotation><object>")
    broken("actions", "2010_000001.xml is not an annotation of VOC")
    content = loadmat(copy / LISTS["svhn"])
    savemat(copy / LISTS["svhn"], {"X": content["X"][..., :3], "y": content["y"]})
    broken("svhn", "as many as labels")
    shutil.rmtree(copy / "English/Img/GoodImg/Bmp")
    (copy / "English/Img/GoodImg/Bmp/Sample011").mkdir(parents=True)
    broken("letters", "no images of letters")


ARCHIVES = {
    "flowers": {"flowers-102/102flowers.tgz": ("flowers-102", "jpg")},
    "scenes": {"indoorCVPR_09/indoorCVPR_09.tar": ("indoorCVPR_09", "Images")},
    "birds": {"CUB_200_2011.tgz": (".", "CUB_200_2011")},
    "cars": {
        "cars_train.tgz": ("stanford_cars", "cars_train"),
        "stanford_cars/cars_test.tgz": ("stanford_cars", "cars_test"),
        "stanford_cars/car_devkit.tgz": ("stanford_cars", "devkit"),
    },
    "aircraft": {"fgvc-aircraft-2013b.tar.gz": (".", "fgvc-aircraft-2013b")},
    "actions": {"VOCtrainval_11-May-2012.tar": (".", "VOCdevkit")},
    "letters": {"EnglishImg.tgz": (".", "English")},
}


def pack(root: Path, archives: dict[str, tuple[str, str]]) -> None:
    for name, (folder, content) in archives.items():
        with tarfile.open(root / name, "w" if name.endswith(".tar") else "w:gz") as archive:
            archive.add(root / folder / content, content)
        shutil.rmtree(root / folder / content)


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_unpacked_at_first_use(copy, name):
    before = read(copy, name)
    pack(copy, ARCHIVES[name])
    assert inspected(copy, name).state == "packed"
    after = read(copy, name)
    assert (after.classes, after.train.labels) == (before.classes, before.train.labels)
    assert after.train.absent() == []
    assert not list(copy.rglob("unpacking-*"))
    assert inspected(copy, name).state in ("usable", "complete")


def test_a_damaged_archive_leaves_nothing_half_done(copy):
    pack(copy, ARCHIVES["birds"])
    archive = copy / "CUB_200_2011.tgz"
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(FileError, match=r"CUB_200_2011\.tgz could not be unpacked"):
        read(copy, "birds")
    assert not (copy / "CUB_200_2011").exists()
    assert not list(copy.rglob("unpacking-*"))


def test_scenes_with_the_lists_beside_the_folder(copy):
    for split in ("Train", "Test"):
        path = copy / "indoorCVPR_09" / f"{split}Images.txt"
        path.rename(copy / path.name)
    assert len(read(copy, "scenes").train) == 12


def test_downloads(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets, "FGVCAircraft", lambda root, download: asked.append((root, download))
    )
    download_set("aircraft", tmp_path / "new")
    assert asked == [(tmp_path / "new", True)]
    with pytest.raises(ConfigError, match=r"does not download CUB-200-2011.*data\.caltech\.edu"):
        download_set("birds", tmp_path)

    def offline(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(datasets, "FGVCAircraft", offline)
    with pytest.raises(FileError, match=r"could not be downloaded: no network.*robots\.ox"):
        download_set("aircraft", tmp_path)


def test_greyscale_photographs_are_converted(copy):
    path = copy / IMAGES["birds"]
    Image.open(path).convert("L").save(path)
    with pytest.warns(UserWarning, match="1 of 27 images are not RGB"):
        load_tasks(f"paper:birds={copy}", image_size=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tasks(f"paper:scenes={copy}", image_size=32)
