"""Rows that are no samples: exact, however they are laid out, or refused with the right reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import retain

from .tiny import assert_same, omega, one_by_one, ready


class Bags(nn.Module):
    """Texts of several lengths in one flat tensor, as torch's tutorials have them."""

    def __init__(self):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(31, 6), nn.Linear(6, 3)

    def forward(self, text, offsets):
        return self.out(self.bag(text, offsets).tanh())


@pytest.mark.parametrize("positional", [True, False])
def test_bags_with_offsets(positional):
    model = ready(Bags)
    bags = [torch.randint(31, (n,)) for n in (4, 1, 3, 2, 5)]
    truth = one_by_one(model, bags, lambda bag: model(bag, torch.tensor([0])))

    def batch(some):
        offsets = torch.tensor([0, *map(len, some[:-1])]).cumsum(0)
        flat = torch.cat(some)
        return (
            ((flat, offsets), torch.zeros(len(some)))
            if positional
            else {"text": flat, "offsets": offsets}
        )

    assert_same(omega(model, [batch(bags)]), truth)
    assert_same(omega(model, [batch(bags[:4]), batch(bags[4:])]), truth)
    first = one_by_one(model, bags[:3], lambda bag: model(bag, torch.tensor([0])))
    memory = retain.MAS(model).observe([batch(bags)], max_samples=3, progress=False)
    assert_same(memory.observed, first)


class Windows(nn.Module):
    """Each row is a window of some sample; the output is per window."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, windows):
        return self.net(windows)


@pytest.mark.parametrize(
    "owner", [[0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2], [2, 0, 2, 2, 1, 0], [7, 7, 9, 9, 9, 12]]
)
def test_windows_of_samples(owner):
    model, windows = ready(Windows), torch.randn(6, 4).double()
    owner = torch.tensor(owner)
    samples = [windows[owner == k] for k in owner.unique()]
    truth = one_by_one(model, samples, model)
    assert_same(omega(model, [windows], samples_of=lambda batch: owner), truth)
    assert_same(omega(model, [(windows, owner)], samples_of=lambda batch: batch[1]), truth)
    assert_same(omega(model, windows, samples_of=lambda batch: owner), truth)  # one tensor
    # a column for us alone is not given to the model
    named = {"windows": windows, "image_id": owner}
    assert_same(omega(model, [named], samples_of="image_id"), truth)
    few = one_by_one(model, samples[:2], model)
    memory = retain.MAS(model, samples_of="image_id")
    assert_same(memory.observe([named], max_samples=2, progress=False).observed, few)
    fisher = omega(model, [named], retain.EWC, samples_of="image_id")
    assert fisher.samples == len(samples)


class Graphs(nn.Module):
    """A graph network, per graph or per node."""

    def __init__(self, per_node=False):
        super().__init__()
        self.inside, self.out, self.edge = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(2, 1)
        self.per_node = per_node

    def forward(self, x, edge_index, batch, edge_attr):
        messages = self.inside(x)[edge_index[0]] * self.edge(edge_attr)
        h = self.inside(x).index_add(0, edge_index[1], messages).tanh()
        if self.per_node:
            return self.out(h)
        graphs = int(batch.max()) + 1
        return self.out(h.new_zeros(graphs, 6).index_add(0, batch, h))


def graph(nodes, edges):
    return {
        "x": torch.randn(nodes, 5).double(),
        "edge_index": torch.randint(nodes, (2, edges)),
        "edge_attr": torch.randn(edges, 2).double(),
    }


def collated(graphs):
    before = torch.tensor([0, *(len(g["x"]) for g in graphs)]).cumsum(0)
    return {
        "x": torch.cat([g["x"] for g in graphs]),
        "edge_index": torch.cat([g["edge_index"] + b for g, b in zip(graphs, before)], 1),
        "edge_attr": torch.cat([g["edge_attr"] for g in graphs]),
        "batch": torch.repeat_interleave(before.diff()),
    }


@pytest.mark.parametrize("per_node", [False, True])
@pytest.mark.parametrize("samples_of", [None, "batch"])
def test_graphs_with_a_batch_vector(per_node, samples_of):
    model = ready(lambda: Graphs(per_node))
    graphs = [graph(n, e) for n, e in ((4, 6), (2, 3), (5, 4), (3, 2))]
    truth = one_by_one(model, graphs, lambda g: model(**collated([g])))
    batch = collated(graphs)
    assert_same(omega(model, [batch], samples_of=samples_of), truth)
    parts = [collated(graphs[:1]), collated(graphs[1:])]
    assert_same(omega(model, parts, samples_of=samples_of), truth)
    memory = retain.MAS(model, samples_of=samples_of)
    few = one_by_one(model, graphs[:2], lambda g: model(**collated([g])))
    assert_same(memory.observe([batch], max_samples=2, progress=False).observed, few)


def test_graphs_whose_parts_have_other_names():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Graphs()

        def forward(self, nodes, edges, graph_ids, edge_attr):
            return self.inner(nodes, edges, graph_ids, edge_attr)

    model, graphs = ready(Renamed), [graph(n, e) for n, e in ((4, 6), (2, 3), (5, 4))]
    truth = one_by_one(model, graphs, lambda g: model.inner(**collated([g])))
    other = {"x": "nodes", "edge_index": "edges", "batch": "graph_ids", "edge_attr": "edge_attr"}
    batch = {other[name]: part for name, part in collated(graphs).items()}
    assert_same(omega(model, [batch], samples_of="graph_ids"), truth)
    with pytest.raises(retain.RetainError, match="samples_of="):
        omega(model, [batch])


def test_a_graph_that_is_an_object():
    class Data:
        def __init__(self, **parts):
            self.__dict__.update(parts)

    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Graphs()

        def forward(self, data):
            return self.inner(data.x, data.edge_index, data.batch, data.edge_attr)

    model = ready(Takes)
    graphs = [graph(n, e) for n, e in ((4, 6), (2, 3), (5, 4))]
    truth = one_by_one(model, graphs, lambda g: model(Data(**collated([g]))))
    whole = Data(**collated(graphs))
    assert_same(omega(model, [whole]), truth)
    assert len(whole.x) == 11


def test_edges_between_graphs_are_refused():
    batch = collated([graph(3, 2), graph(3, 2)])
    batch["edge_index"][:, 0] = torch.tensor([0, 5])
    with pytest.raises(retain.RetainError, match=r"1 of the 4 pairs.*one graph to another"):
        omega(ready(Graphs), [batch])


class Patches(nn.Module):
    """A vision-language model in small: patches of all images in one tensor, texts padded."""

    def __init__(self, give="texts"):
        super().__init__()
        self.see, self.read, self.out = nn.Linear(4, 6), nn.Embedding(31, 6), nn.Linear(6, 5)
        self.give = give

    def forward(self, input_ids, attention_mask, pixel_values, image_of):
        seen = self.see(pixel_values).tanh()
        if self.give == "patches":
            return self.out(seen)
        images = seen.new_zeros(len(input_ids), 6).index_add(0, image_of, seen)
        return self.out(self.read(input_ids) + images[:, None]).tanh()


@pytest.mark.parametrize("give", ["texts", "patches"])
def test_patches_of_images_beside_padded_texts(give):
    model = ready(lambda: Patches(give))
    patches = [torch.randn(n, 4).double() for n in (3, 5, 2)]
    words = [torch.randint(1, 31, (n,)) for n in (4, 2, 6)]
    pairs = list(zip(words, patches, strict=True))

    def alone(pair):
        text, own = pair
        return model(text[None], torch.ones(1, len(text)), own, torch.zeros(len(own)).long())

    truth = one_by_one(model, pairs, alone)
    batch = {
        "input_ids": nn.utils.rnn.pad_sequence(words, batch_first=True),
        "attention_mask": nn.utils.rnn.pad_sequence(
            [torch.ones(len(w)) for w in words], batch_first=True
        ),
        "pixel_values": torch.cat(patches),
        "image_of": torch.repeat_interleave(torch.tensor([3, 5, 2])),
    }
    assert_same(omega(model, [batch], samples_of="image_of"), truth)
    by_name = lambda batch: {"pixel_values": batch["image_of"], "image_of": batch["image_of"]}  # noqa: E731
    if give == "texts":
        assert_same(omega(model, [batch], samples_of=by_name), truth)
    if give == "texts":
        with pytest.raises(retain.RetainError, match=r"'pixel_values' 10.*samples_of=") as caught:
            omega(model, [batch])
        assert "eval" not in str(caught.value)
    else:
        with pytest.raises(retain.RetainError, match=r"10 rows, as 'pixel_values'.*samples_of="):
            omega(model, [batch])


class Boxes(nn.Module):
    """A head on regions: images by sample, boxes by row, in which their image stands first."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, images, rois):
        features = self.body(images).tanh().mean((2, 3))
        return self.head(features[rois[:, 0].long()] * rois[:, 1:])


def test_boxes_of_images():
    model = ready(Boxes)
    images = torch.randn(3, 3, 2, 2).double()
    owner = torch.tensor([0, 0, 1, 2, 2, 2])
    rois = torch.cat([owner[:, None].double(), torch.rand(6, 4).double()], 1)

    def alone(k):
        own = rois[owner == k].clone()
        own[:, 0] = 0
        return model(images[k : k + 1], own)

    truth = one_by_one(model, range(3), alone)
    given = {"images": images, "rois": rois}

    class Renumbered(nn.Module):
        """Takes which image a box belongs to as an input of its own."""

        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, images, boxes, image_of):
            return self.inner(images, torch.cat([image_of[:, None].double(), boxes], 1))

    apart = {"images": images, "boxes": rois[:, 1:], "image_of": owner}
    found = omega(Renumbered(), [apart], samples_of="image_of")
    assert_same({n.removeprefix("inner."): t for n, t in found.items()}, truth)
    with pytest.raises(retain.RetainError, match=r"6 rows, as 'rois'.*samples_of="):
        omega(model, [given])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("where", "samples_of='where' is no input of this batch.*windows"),
        (lambda batch: torch.rand(6), "whole numbers"),
        (lambda batch: torch.tensor([-5, 0, 0, 0, 1, 1]), "from -5 to 1"),
        (lambda batch: torch.tensor([0, 1, 2]), r"shape \(6, 3\) for a batch of 3"),
        (lambda batch: "text", "gives a str"),
    ],
)
def test_what_cannot_be_owners_is_refused(given, message):
    model = ready(Windows)
    with pytest.raises(retain.RetainError, match=f"(?s){message}"):
        omega(model, [{"windows": torch.randn(6, 4).double()}], samples_of=given)


def test_two_kinds_of_rows_of_one_length_are_told_apart_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, left, right):
            return self.b(right) + 0 * self.a(left).sum()

    model = ready(Two)
    left, right = torch.randn(4, 4).double(), torch.randn(4, 4).double()
    ids = {"left": torch.tensor([0, 0, 0, 1]), "right": torch.tensor([0, 1, 1, 1])}
    truth = one_by_one(
        model, range(2), lambda k: model(left[ids["left"] == k], right[ids["right"] == k])
    )
    batch = {"left": left, "right": right}
    assert_same(omega(model, [batch], samples_of=lambda b: ids), truth)  # found by trying
    said = omega(model, [batch], samples_of=lambda b: {**ids, "output": ids["right"]})
    assert_same(said, truth)


def test_one_number_per_row():
    model = ready(lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)))
    windows, owner = torch.randn(6, 4).double(), torch.tensor([0, 1, 1, 0, 2, 1])
    samples = [windows[owner == k] for k in range(3)]
    found = omega(model, [windows], samples_of=lambda batch: owner)
    assert_same(found, one_by_one(model, samples, model))


def test_functions_are_asked_for_again_after_a_file(tmp_path):
    model = ready(Windows)
    owner = torch.tensor([0, 0, 1, 1, 2, 2])
    memory = retain.MAS(model, samples_of=lambda batch: owner)
    memory.observe([torch.randn(6, 4).double()], progress=False).consolidate()
    memory.save(tmp_path / "memory.safetensors")
    again = retain.load(tmp_path / "memory.safetensors", model)
    with pytest.raises(retain.RetainError, match=r"memory\.samples_of = "):
        again.observe([torch.randn(6, 4).double()], progress=False)
    again.samples_of = lambda batch: owner
    again.observe([torch.randn(6, 4).double()], progress=False)
    assert again.observed.samples == 3


class OnRegions(nn.Module):
    """Images by sample, and boxes by row with the numbers of their images beside them."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, boxes, image_of=None, images=None):
        features = 1 if images is None else self.body(images).tanh()[image_of]
        return self.head(features * boxes)


@pytest.mark.parametrize("image_of", [[0, 0, 1, 3, 3], [1, 1, 2, 3, 3]])
def test_an_image_without_boxes(image_of):
    """The first three have three boxes: rows and samples are not told apart by that."""
    model, owner = ready(OnRegions), torch.tensor(image_of)
    images, boxes = torch.randn(4, 5).double(), torch.randn(5, 4).double()

    def alone(k):
        own = boxes[owner == k]
        return model(own, torch.zeros(len(own), dtype=torch.long), images[[k]])

    given = {"boxes": boxes, "image_of": owner, "images": images}
    assert_same(omega(model, [given], samples_of="image_of"), one_by_one(model, range(4), alone))


def test_numbers_of_a_whole_data_set_are_no_samples_without_rows():
    model, owner = ready(OnRegions), torch.tensor([0, 0, 0, 1, 2, 2])
    boxes = torch.randn(6, 4).double()
    truth = one_by_one(model, range(3), lambda k: model(boxes[owner == k]))
    for numbers in (owner, owner + 100, owner * 7):
        given = {"boxes": boxes, "image_of": numbers}
        memory = retain.MAS(model, samples_of="image_of").observe([given], progress=False)
        assert memory.observed.samples == 3
        assert_same(memory.observed, truth)
