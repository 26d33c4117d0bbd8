import copy
import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from retain.errors import ConfigError, FileError, ModelError
from retain.models import TaskNetwork, build_model, named

MODEL_FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4 * side * side, 7)
        self.last = nn.Linear(7, 5)
        self.side = side

    def forward(self, images):
        maps = self.norm(self.convolution(images)).relu()
        assert maps.shape[-1] == self.side, "a size it was not made for"
        return self.last(self.hidden(maps.flatten(1)).relu())

def small(): return Net(16)
def large(): return Net(40)
def pixels(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))
def headless(): return nn.Conv2d(1, 2, 3)
def broken(): raise ValueError("no such thing")
def nothing(): return 3
"""


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(MODEL_FILE)
    return path


def build(spec, shape=(3, 16, 16), **options) -> TaskNetwork:
    return build_model(str(spec), input_shape=shape, seed=options.pop("seed", 0), **options)


def test_a_function_in_a_file(model_file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = build(f"{model_file}:small")
    assert net.feature_size == 7
    assert net.training
    net.add_head(2)
    assert net(torch.rand(3, 3, 16, 16)).shape == (3, 2)
    names = {name for name, _ in net.named_parameters()}
    assert "backbone.hidden.weight" in names
    assert not any("last" in name for name in names)
    copy.deepcopy(net)
    pickle.dumps(net)


def test_the_seed_decides_what_a_file_makes(model_file):
    one, two, other = (build(f"{model_file}:small", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.backbone.hidden.weight, two.backbone.hidden.weight)
    assert not torch.equal(one.backbone.hidden.weight, other.backbone.hidden.weight)


def test_inputs_are_made_to_suit(model_file):
    with pytest.warns(UserWarning, match="greyscale is repeated to 3 channels"):
        net = build(f"{model_file}:small", shape=(1, 16, 16))
    grey = torch.rand(2, 1, 16, 16)
    assert torch.equal(net.adapter(grey), grey.repeat(1, 3, 1, 1))
    with pytest.raises(
        ModelError, match=r"does not accept inputs of shape 3×8×8.*size it was not made"
    ):
        build(f"{model_file}:large", shape=(3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(f"{model_file}:pixels", shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("smal", ConfigError, r"no function 'smal'\. Did you mean 'small'\? It has: small, large"),
        ("broken", ConfigError, r"broken\(\) .* failed: ValueError: no such thing"),
        ("nothing", ModelError, "returns a int; expected an nn.Module"),
        ("headless", ModelError, "no Linear is used"),
    ],
)
def test_functions_that_do_not_work(model_file, function, error, message):
    with pytest.raises(error, match=message):
        build(f"{model_file}:{function}", shape=(1, 8, 8))


def test_model_files_that_do_not_work(tmp_path, model_file):
    with pytest.raises(ConfigError, match="does not exist"):
        build(tmp_path / "absent.py:small")
    with pytest.raises(ConfigError, match="names no function"):
        build(f"{model_file}")
    model_file.write_text("import there_is_no_such_module")
    with pytest.raises(ConfigError, match="could not be run: ModuleNotFoundError"):
        build(f"{model_file}:small")


def test_names_of_torchvision_and_timm():
    assert build("resnet18", shape=(3, 32, 32)).feature_size == 512
    with pytest.warns(UserWarning, match="greyscale .* enlarged from 8×8 to 32×32"):
        net = build("mobilenetv3_small_050", shape=(1, 8, 8))
    net.add_head(10)
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"No model is called 'resnt18'. Did you mean 'resnet18'"):
        build("resnt18")
    with pytest.raises(ModelError, match="squeezenet1_1 has no head: no Linear"):
        build("squeezenet1_1", shape=(3, 64, 64))


def test_alexnet_keeps_its_dropout_and_its_convolutional_features():
    with pytest.warns(UserWarning, match="enlarged from 28×28 to 64×64"):
        net = build("alexnet", shape=(1, 28, 28))
    dropouts = [module for module in net.backbone.modules() if isinstance(module, nn.Dropout)]
    assert len(dropouts) == 2
    assert net.feature_size == 4096
    net.add_head(2)
    assert net.conv_features(torch.rand(1, 1, 28, 28)).shape == (1, 256 * 6 * 6)


def test_default_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        FileError, match=r"resnet18 could not be fetched: no network.*https://.*pth"
    ):
        build("resnet18", shape=(3, 32, 32), weights="default")
    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(FileError, match=r"resnet10t could not be fetched.*weights=FILE"):
        build("resnet10t", shape=(3, 32, 32), weights="default")


def test_default_weights_that_there_are(monkeypatch):
    import torchvision

    given = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_args, **_options: given
    )
    net = build("resnet18", shape=(3, 32, 32), weights="default")
    assert torch.equal(net.backbone.conv1.weight, given["conv1.weight"])


def test_only_networks_of_libraries_have_default_weights(model_file):
    for spec in ("mlp", f"{model_file}:small"):
        with pytest.raises(ConfigError, match="no default weights"):
            build(spec, weights="default")


def test_normalisation_that_differs_is_mentioned():
    model = nn.Module()
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    (note,) = named._normalisation_note(model, "it")
    assert "mean (0.5, 0.5, 0.5)" in note
    assert named._normalisation_note(nn.Module(), "it") == ()


@pytest.fixture
def saved(model_file):
    """The state of the small network of the model file, with other weights than a new one."""
    import importlib.util

    found = importlib.util.spec_from_file_location("nets_of_test", model_file)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    torch.manual_seed(99)
    return module.small().state_dict()


def loaded_from(model_file, path) -> TaskNetwork:
    return build(f"{model_file}:small", weights=path)


@pytest.mark.parametrize("form", ["safetensors", "pt", "nested", "parallel"])
def test_weights_from_files(tmp_path, model_file, saved, form):
    path = tmp_path / "weights.pt"
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(saved, path)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": saved}, path)
    elif form == "parallel":
        torch.save({f"module.{name}": value for name, value in saved.items()}, path)
    else:
        torch.save(saved, path)
    net = loaded_from(model_file, path)
    assert torch.equal(net.backbone.hidden.weight, saved["hidden.weight"])
    assert torch.equal(net.backbone.convolution.bias, saved["convolution.bias"])
    assert net.notes == ()


def test_a_head_of_another_size_is_ignored_with_a_note(tmp_path, model_file, saved):
    path = tmp_path / "weights.pt"
    saved["last.weight"], saved["last.bias"] = torch.zeros(9, 7), torch.zeros(9)
    torch.save(saved, path)
    with pytest.warns(UserWarning, match=r"head for 5 outputs, weights.pt one for 9 classes"):
        net = loaded_from(model_file, path)
    assert torch.equal(net.backbone.hidden.weight, saved["hidden.weight"])


def test_the_weights_of_a_whole_task_network(tmp_path, model_file):
    for spec in ("mlp", f"{model_file}:small"):
        first = build(spec)
        first.add_head(2)
        torch.save(first.state_dict(), tmp_path / "weights.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            second = build(spec, seed=5, weights=tmp_path / "weights.pt")
        for one, other in zip(first.backbone.parameters(), second.backbone.parameters()):
            assert torch.equal(one, other)


def test_everything_that_does_not_fit_is_listed(tmp_path, model_file, saved):
    path = tmp_path / "weights.pt"
    del saved["norm.weight"], saved["norm.num_batches_tracked"]
    saved["hidden.weight"] = torch.zeros(2, 3)
    saved["extra"] = torch.zeros(1)
    torch.save(saved, path)
    with pytest.raises(FileError) as caught:
        loaded_from(model_file, path)
    said = str(caught.value)
    assert "missing (1): norm.weight" in said
    assert "unexpected (1): extra" in said
    assert "misshapen (1): hidden.weight (file (2, 3), model (7, 1024))" in said


class Opaque:
    """Something that a file of weights should not hold."""


def test_files_that_are_not_weights(tmp_path, model_file, saved):
    path = tmp_path / "weights.pt"
    with pytest.raises(FileError, match=r'does not exist.*"default"'):
        loaded_from(model_file, path)
    torch.save({"state": Opaque()}, path)
    with pytest.raises(FileError, match=r"not a file of weights alone.*could run code"):
        loaded_from(model_file, path)
    torch.save([1, 2], path)
    with pytest.raises(FileError, match="holds a list"):
        loaded_from(model_file, path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(FileError, match="epoch is no tensor"):
        loaded_from(model_file, path)
    torch.save(saved, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FileError, match="not a readable file"):
        loaded_from(model_file, path)
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"not at all")
    with pytest.raises(FileError, match="not a readable file"):
        loaded_from(model_file, broken)
