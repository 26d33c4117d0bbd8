import gzip
import struct
from pathlib import Path

import pytest
import torch

from retain.errors import ConfigError, FileError
from retain.tasks import load_tasks
from retain.tasks.idx import PARTS, read_idx

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx_bytes(numbers: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, numbers.ndim]) + struct.pack(f">{numbers.ndim}I", *numbers.shape)
    return header + numbers.to(torch.uint8).numpy().tobytes()


def content(per_class: int = 4) -> dict[str, bytes]:
    labels = torch.arange(10).repeat(per_class)
    images = (labels * 20).view(-1, 1, 1).expand(-1, 6, 6) + torch.arange(6)
    parts = {"images": idx_bytes(images), "labels": idx_bytes(labels)}
    return {names[0]: parts[part.split()[1]] for part, names in PARTS.items()}


def write(folder: Path, *, zipped: bool = False, dotted: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content().items():
        name = name.replace("-idx", ".idx") if dotted else name
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw", "raw", "fashion-mnist"])
def test_layouts(tmp_path, folder, zipped):
    write(tmp_path / folder, zipped=zipped)
    sequence = load_tasks(f"fashion-mnist={tmp_path}")
    assert sequence.input_shape == (1, 6, 6)
    assert sequence.tasks[0].name == "T-shirt/top-Trouser"
    assert len(sequence.tasks) == 5
    for number, task in enumerate(sequence.tasks):
        batch = next(task.test.batches(100))
        assert batch.labels.bincount().tolist() == [4, 4]
        pixel = (2 * number + batch.labels) * 20 / 255
        torch.testing.assert_close(batch.inputs[:, 0, 0, 0], pixel.float())


def test_names_with_a_dot(tmp_path):
    write(tmp_path, dotted=True)
    assert load_tasks(f"mnist={tmp_path}").tasks[0].name == "0-1"


def test_missing_files_are_all_named(tmp_path):
    write(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileError, match=r"train-labels-idx1-ubyte, t10k-images.*Looked in.*apt"):
        load_tasks(f"fashion-mnist={tmp_path}")
    with pytest.raises(ConfigError, match=r"mnist=ROOT"):
        load_tasks("mnist")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"= 1440 numbers, but 1439 follow.*cut off"),
        (lambda data: data + b"x", r"1441 follow.*changed"),
        (lambda data: data[:9], "within its header"),
        (lambda data: b"", "begins with nothing"),
        (lambda data: b"\x00\x00\x0d\x03" + data[4:], "begins with 00 00 0d 03, expected 00 00 08"),
        (lambda data: gzip.compress(data), "renamed"),
    ],
)
def test_broken_files_are_refused(tmp_path, change, message):
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FileError, match=message):
        load_tasks(f"mnist={tmp_path}")


@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: b"plain" + data])
def test_broken_gzip_is_refused(tmp_path, change):
    write(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FileError, match="not a whole gzip file"):
        load_tasks(f"mnist={tmp_path}")


def test_files_that_do_not_belong_together(tmp_path):
    write(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(torch.arange(10)))
    with pytest.raises(FileError, match=r"40 images, but .* 10 labels"):
        load_tasks(f"mnist={tmp_path}")
    labels.write_bytes(idx_bytes(torch.arange(11).repeat(4)[:40]))
    with pytest.raises(FileError, match="labels 0 … 9"):
        load_tasks(f"mnist={tmp_path}")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    assert read_idx(DEBIAN / "train-images-idx3-ubyte.gz", 3).shape == (60_000, 28, 28)
    sequence = load_tasks(f"fashion-mnist={DEBIAN}")
    assert [len(task.train) for task in sequence.tasks] == [12_000] * 5
    assert [len(task.test) for task in sequence.tasks] == [2_000] * 5
    assert sequence.tasks[4].classes == ("Bag", "Ankle boot")
