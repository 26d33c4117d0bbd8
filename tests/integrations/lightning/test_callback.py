"""RetainCallback with Lightning's real Trainer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain.errors import InputError

lightning = pytest.importorskip("lightning.pytorch")
from retain.integrations.lightning import RetainCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available.*"),
]


class Net(lightning.LightningModule):
    """Two layers, and an optimizer for both or for each."""

    optimizers_ = 1
    penalty = None
    fails_at = None

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))

    def loss(self, batch):
        loss = cross_entropy(self(batch[0]), batch[1])
        return loss if self.penalty is None else loss + self.penalty()

    def training_step(self, batch, index):
        if index == self.fails_at:
            raise RuntimeError("no luck")
        return self.loss(batch)

    def configure_optimizers(self):
        if self.optimizers_ == 1:
            return torch.optim.SGD(self.parameters(), lr=0.05)
        return [
            torch.optim.SGD(self.body.parameters(), lr=0.05),
            torch.optim.SGD(self.head.parameters(), lr=0.05),
        ]


class Manual(Net):
    optimizers_ = 2

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()


def loader():
    x, y = torch.randn(12, 5), torch.randint(0, 3, (12,))
    return DataLoader(TensorDataset(x, y), batch_size=4)


def remembered(kind=Net, strength=0.5):
    """(a module, a memory that holds it away from where it is)."""
    torch.manual_seed(1)
    net = kind()
    memory = retain.MAS(net, strength=strength)
    memory.observe(torch.randn(20, 5), progress=False).consolidate()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net, memory


def trainer(folder, **settings):
    given = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        **settings,
    }
    return lightning.Trainer(**given)


@pytest.mark.parametrize("kind", [Net, Manual])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_that_of_the_penalty_in_the_loss(kind, accumulate, tmp_path):
    if kind is Manual and accumulate > 1:
        pytest.skip("Lightning accumulates only by itself")
    net, memory = remembered(kind)
    twin, batches = copy.deepcopy(net), loader()
    callback = RetainCallback(memory, form="gradient")
    settings = {"accumulate_grad_batches": accumulate} if accumulate > 1 else {}
    trainer(tmp_path, callbacks=[callback], **settings).fit(net, batches)
    theirs = copy.deepcopy(memory)
    theirs.model = twin
    twin.penalty = theirs.penalty
    trainer(tmp_path, **settings).fit(twin, batches)
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_only_the_gradient_of_the_task_is_clipped(tmp_path):
    net, memory = remembered()
    before = [p.detach().clone() for p in net.parameters()]
    gradients = torch.autograd.grad(memory.penalty(), list(net.parameters()))
    settings = {"max_steps": 1, "gradient_clip_val": 1e-9}
    callback = RetainCallback(memory, form="gradient")
    trainer(tmp_path, callbacks=[callback], **settings).fit(net, loader())
    for p, b, g in zip(net.parameters(), before, gradients):
        torch.testing.assert_close(p.detach(), b - 0.05 * g, rtol=1e-4, atol=1e-6)


def hooks_of(one):
    return [h for o in one.optimizers for h in (*o._optimizer_step_pre_hooks,)]


def test_training_that_fails_leaves_nothing_attached(tmp_path):
    net, memory = remembered()
    net.fails_at = 1
    run = trainer(tmp_path, callbacks=[RetainCallback(memory)])
    with pytest.raises(RuntimeError, match="no luck"):
        run.fit(net, loader())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert not [handle for handle in memory._attachments if handle.attached]
    memory.attach(optimizer).remove()


def test_resuming_ends_where_it_would_have(tmp_path):
    net, memory = remembered(strength=50.0)
    start, batches = copy.deepcopy(net), loader()
    every = lightning.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer(
        tmp_path,
        callbacks=[RetainCallback(memory), every],
        max_epochs=2,
        enable_checkpointing=True,
    ).fit(net, batches)
    path = tmp_path / "epoch=0.ckpt"
    kept = torch.load(path, weights_only=True)["callbacks"]["RetainCallback[memory]"]
    assert kept["tensors"]["importance.0"]["body.weight"].shape == (6, 5)
    twin = copy.deepcopy(start)
    empty = retain.MAS(twin)
    trainer(tmp_path, callbacks=[RetainCallback(empty)], max_epochs=2).fit(
        twin, batches, ckpt_path=path
    )
    assert empty.strength == 50.0
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q)


def test_resuming_from_a_checkpoint_without_a_memory(tmp_path):
    net, memory = remembered()
    run = trainer(tmp_path)
    run.fit(net, loader())
    run.save_checkpoint(tmp_path / "plain.ckpt")
    again = trainer(tmp_path, callbacks=[RetainCallback(memory)], max_epochs=2)
    with pytest.warns(UserWarning, match=r"without a memory.*RetainCallback\[memory\]"):
        again.fit(net, loader(), ckpt_path=tmp_path / "plain.ckpt")


def test_two_callbacks_and_what_they_log(tmp_path):
    net, memory = remembered()
    other = retain.EWC(net).observe(torch.randn(8, 5), progress=False).consolidate()
    run = trainer(
        tmp_path,
        callbacks=[RetainCallback(memory), RetainCallback(other, name="ewc")],
        log_every_n_steps=1,
    )
    run.fit(net, loader())
    assert run.logged_metrics["penalty"] > 0
    assert run.logged_metrics["drift_ewc"] > 0


def test_training_ends_when_the_drift_is_beyond_a_limit(tmp_path):
    net, memory = remembered()
    limit = RetainCallback(memory, stop_when_drift_exceeds=1e-6)
    run = trainer(tmp_path, callbacks=[limit], max_epochs=5, log_every_n_steps=1)
    with pytest.warns(UserWarning, match="Training ends here: the drift is .* beyond the limit"):
        run.fit(net, loader())
    assert run.global_step < 5 * len(loader())
    with pytest.raises(InputError, match="stop_when_drift_exceeds"):
        RetainCallback(memory, stop_when_drift_exceeds="much")


def test_an_optimizer_of_other_parameters(tmp_path):
    net, _ = remembered()
    _, memory = remembered()
    run = trainer(tmp_path, callbacks=[RetainCallback(memory)])
    with pytest.raises(InputError, match="none of the protected parameters"):
        run.fit(net, loader())
