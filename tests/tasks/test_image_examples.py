import pytest
import torch

from retain.errors import FileError, InputError
from retain.tasks import load_tasks
from retain.tasks.crops import IMAGENET_MEAN, IMAGENET_STD, Crops, normalised

from .image_folders import write_folder


def examples(root, **options):
    options = {"augmentation": "crop-flip", **options}
    return load_tasks(f"folders:a={root}", **options).tasks[0].train


def epoch(split, seed, **options):
    generator = torch.Generator().manual_seed(seed)
    return list(split.batches(5, shuffle=generator, train=True, **options))


@pytest.mark.parametrize("cache_bytes", [2**30, 0, 6 * 40 * 30 * 3])
def test_the_generator_decides_order_crops_and_flips(tmp_path, cache_bytes):
    split = examples(write_folder(tmp_path), image_size=32, cache_bytes=cache_bytes)
    first, again, other = (epoch(split, seed) for seed in (0, 0, 1))
    torch.manual_seed(7)
    for a, b in zip(first, again):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, split.labels[a.indices])
    assert not torch.equal(first[0].inputs, other[0].inputs)
    assert torch.cat([batch.indices for batch in first]).sort().values.tolist() == list(range(12))


def test_the_result_does_not_depend_on_what_is_kept_in_memory(tmp_path):
    root = write_folder(tmp_path)
    kept, read = (examples(root, image_size=32, cache_bytes=b) for b in (2**30, 0))
    assert kept.pixels.in_memory(range(12))
    assert not read.pixels.in_memory([0])
    for a, b in zip(epoch(kept, 0), epoch(read, 0)):
        assert torch.equal(a.inputs, b.inputs)
    for a, b in zip(kept.batches(5), read.batches(5)):
        assert torch.equal(a.inputs, b.inputs)


@pytest.mark.parametrize("stored", [(40, 30), (20, 24)])  # reduced when read, enlarged later
@pytest.mark.parametrize("kept", [0, 5])
def test_processes_give_what_memory_gives(tmp_path, stored, kept):
    root = write_folder(tmp_path, size=stored)
    memory = examples(root, image_size=16 if stored[0] > 30 else 64)
    kept_bytes = kept * memory.pixels.get(0).numel()
    read = examples(root, image_size=memory.crops.size, cache_bytes=kept_bytes, loaders=2)
    assert not read.pixels.in_memory(range(12))
    state = torch.get_rng_state()
    for a, b in zip(epoch(memory, 0), epoch(read, 0), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.labels, b.labels)
    for a, b in zip(memory.batches(5), read.batches(5), strict=True):
        assert torch.equal(a.inputs, b.inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_splits_that_share_a_generator_do_not_depend_on_reading_ahead(tmp_path):
    root = write_folder(tmp_path)

    def mixed(**options):
        split = examples(root, image_size=32, **options)
        generator = torch.Generator().manual_seed(0)
        streams = [split.batches(4, shuffle=generator, train=True) for _ in range(2)]
        return [batch.inputs for pair in zip(*streams) for batch in pair]

    for a, b in zip(mixed(), mixed(cache_bytes=0, loaders=1), strict=True):
        assert torch.equal(a, b)


def test_without_augmentation_training_sees_what_evaluation_sees(tmp_path):
    split = examples(write_folder(tmp_path), image_size=32, augmentation="none")
    assert split.deterministic
    whole = next(split.batches(12)).inputs
    for batch in (*epoch(split, 0), next(split.batches(12, train=True))):
        assert torch.equal(batch.inputs, whole[batch.indices])


def test_only_training_data_is_augmented(tmp_path):
    root = write_folder(tmp_path, splits=("train", "val", "test"))
    task = load_tasks(f"folders:a={root}", augmentation="crop-flip").tasks[0]
    assert [e.deterministic for e in (task.train, task.val, task.test)] == [False, True, True]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_is_an_error_with_its_name(tmp_path, workers):
    split = examples(write_folder(tmp_path), image_size=32, cache_bytes=0, loaders=workers)
    (tmp_path / "train" / "red" / "2.png").unlink()
    with pytest.raises(FileError, match=r"2\.png cannot be read any more"):
        list(split.batches(5))


def test_augmentation_needs_a_generator(tmp_path):
    split = examples(write_folder(tmp_path), image_size=32)
    assert not split.deterministic
    with pytest.raises(InputError, match="give a generator"):
        next(split.batches(4, train=True))


def test_select(tmp_path):
    split = examples(write_folder(tmp_path), image_size=32)
    some = split.select(torch.tensor([9, 2])).select(torch.tensor([0]))
    assert some.labels.tolist() == [1]
    whole = torch.cat([batch.inputs for batch in split.batches(5)])
    assert torch.equal(next(some.batches(5)).inputs[0], whole[9])


@pytest.mark.parametrize("stored", [(32, 32), (40, 30), (300, 280), (280, 300), (500, 20)])
@pytest.mark.parametrize("size", [32, 224])
def test_every_size_of_image_gives_full_squares(tmp_path, size, stored):
    root = write_folder(tmp_path, per_class=2, size=stored)
    split = examples(root, image_size=size)
    for batch in (next(split.batches(4)), epoch(split, 0)[0]):
        assert batch.inputs.shape == (4, 3, size, size)
    centre = next(split.batches(4)).inputs
    assert (centre.mean((2, 3)).argmax(1) == 1 - split.labels).all()
    assert (centre[:2, 1].amin((1, 2)) > 0).all()  # green everywhere, no border left in


def test_images_of_their_own_size_are_used_as_they_are(tmp_path):
    root = write_folder(tmp_path, size=(32, 32))
    split = examples(root, image_size=32)
    batch = next(split.batches(12))
    for number in range(12):
        expected = normalised(split.pixels.get(number)[None])[0]
        assert torch.equal(batch.inputs[number], expected)


def at_random(crops, images):
    return crops.cut(images, crops.drawn(len(images), torch.Generator().manual_seed(0)))


def test_crops_of_the_paper():
    crops = Crops(224)
    assert (crops.side, crops.border) == (256, 0)
    rows = torch.arange(256, dtype=torch.uint8).view(1, 256, 1).expand(3, 256, 256)
    columns = rows.transpose(1, 2).contiguous()
    centre = crops.cut([rows.contiguous(), columns], None)
    assert centre[0, 0, :, 0].tolist() == list(range(16, 240))
    assert centre[1, 0, 0, :].tolist() == list(range(16, 240))
    drawn = at_random(crops, [columns] * 400)[:, 0, 0]
    flipped = drawn[:, 0] > drawn[:, -1]
    assert 150 < flipped.sum() < 250
    assert set(drawn.amin(1).tolist()) == set(range(33))
    assert (drawn.amax(1) - drawn.amin(1) == 223).all()


def test_small_images_are_shifted_into_a_border():
    crops = Crops(32)
    assert (crops.side, crops.border) == (32, 4)
    image = torch.full((3, 32, 32), 9, dtype=torch.uint8)
    drawn = at_random(crops, [image] * 300)
    rows = (drawn[:, 0].amax(2) == 9).sum(1)
    assert set(rows.tolist()) == set(range(28, 33))


def test_normalised_as_torchvision_does():
    from torchvision.transforms.v2 import functional

    batch = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = functional.normalize(batch.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(normalised(batch), expected)


def test_reduced_as_torchvision_does(tmp_path):
    from PIL import Image
    from torchvision.transforms import v2

    root = write_folder(tmp_path, per_class=1, size=(500, 400))
    split = examples(root)
    protocol = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    expected = protocol(Image.open(root / "train" / "green" / "0.png"))
    got = split.crops.cut([split.pixels.get(0)], None)[0]
    assert (got.int() - expected.int()).abs().max() <= 1
