"""Parameters that meet in a sum receive one gradient: the power of one leaves the others' alone."""

import pytest
import torch
from torch import nn

import retain


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(3, 4)) for _ in range(2))
        self.c = nn.Parameter(torch.randn(4))
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        return self.out(torch.tanh(x @ (self.a + self.b + self.c.expand(3, 4)).T))


@pytest.mark.parametrize("kind", ["mas", "ewc"])
def test_each_is_exact(kind):
    torch.manual_seed(0)
    model, x = Summed().double(), torch.randn(6, 4, dtype=torch.float64)
    memory = retain.MAS(model) if kind == "mas" else retain.EWC(model, fisher="exact")
    found = memory.observe(x, progress=False).observed
    for name, p in model.named_parameters():
        truth = torch.zeros_like(p)
        for k in range(6):
            out = model(x[k : k + 1])
            if kind == "mas":
                truth += torch.autograd.grad(out.square().sum(), p)[0].abs() / 6
                continue
            for log_p in out.log_softmax(1)[0]:
                (g,) = torch.autograd.grad(log_p, p, retain_graph=True)
                truth += log_p.detach().exp() * g.square() / 6
        assert torch.allclose(found[name], truth, rtol=1e-10, atol=1e-14), name
    assert found.routes["a"] == "linear"
