"""Repair, drift and forecast: each against its formula, and against models of others."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import retain
from retain.cli.app import app
from retain.errors import InputError, StateError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def data(n=12):
    return torch.randn(n, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def trained(model):
    tuned = copy.deepcopy(model)
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(tuned(data()), torch.arange(12) % 3).backward()
        optimizer.step()
    return tuned


@pytest.fixture
def case():
    base = network()
    memory = retain.MAS(base)
    memory.observe(data(), progress=False).consolidate()
    return base, trained(base), memory


def test_every_change_is_shrunk_by_the_formula(case):
    base, tuned, memory = case
    mended = retain.repair(base, tuned, memory, amount=2.0)
    assert isinstance(mended, nn.Sequential)
    omega = memory.importance
    mean = sum(o.sum() for o in omega.values()) / sum(o.numel() for o in omega.values())
    start, end, now = (dict(m.named_parameters()) for m in (base, tuned, mended))
    for name, o in omega.items():
        expected = start[name] + (end[name] - start[name]) / (1 + 2.0 * o / mean)
        assert torch.allclose(now[name], expected, rtol=1e-12, atol=1e-15)
    # the running mean of a channel goes back as far as that channel's scale
    keep = 1 + 2.0 * omega["1.weight"] / mean
    expected = base[1].running_mean + (tuned[1].running_mean - base[1].running_mean) / keep
    assert torch.allclose(mended[1].running_mean, expected)
    assert mended[1].num_batches_tracked == tuned[1].num_batches_tracked


def test_nothing_at_0_and_the_base_at_infinity_where_anything_depends(case):
    base, tuned, memory = case
    same = retain.repair(base, tuned, memory, amount=0)
    for a, b in zip(same.state_dict().values(), tuned.state_dict().values()):
        assert torch.equal(a, b)
    back = retain.repair(base.state_dict(), tuned.state_dict(), memory, amount=1e12)
    for name, omega in memory.importance.items():
        near = torch.allclose(back[name][omega > 0], base.state_dict()[name][omega > 0], atol=1e-6)
        assert near
        assert torch.equal(back[name][omega == 0], tuned.state_dict()[name][omega == 0])


def test_the_models_are_left_alone_and_new_heads_are_kept(case):
    base, tuned, memory = case
    tuned = nn.Sequential(*tuned, nn.Linear(3, 2).double())
    before = copy.deepcopy(tuned.state_dict()), copy.deepcopy(base.state_dict())
    mended = retain.repair(base, tuned, memory)
    assert torch.equal(mended[5].weight, tuned[5].weight)
    for now, was in zip((tuned.state_dict(), base.state_dict()), before):
        assert all(torch.equal(now[k], was[k]) for k in was)


def test_it_forgets_less_and_drifts_less(case):
    base, tuned, memory = case
    x = data()
    drifts = [
        memory.forecast(retain.repair(base, tuned, memory, amount=a)).change for a in (0, 1, 10)
    ]
    assert drifts[0] > drifts[1] > drifts[2] > 0
    with torch.no_grad():
        base.eval()
        errors = [
            float((retain.repair(base, tuned, memory, amount=a).eval()(x) - base(x)).norm())
            for a in (0, 10)
        ]
    assert errors[1] < errors[0]


def test_adapters_are_merged():
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    memory = retain.MAS(base)
    memory.observe(torch.randn(8, 4), progress=False).consolidate()
    before = copy.deepcopy(base.state_dict())
    adapted = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(target_modules=["0", "2"]))
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    mended = retain.repair(base, adapted, memory, amount=0)
    assert set(mended.state_dict()) == set(before)
    assert not torch.allclose(mended.state_dict()["0.weight"], before["0.weight"])
    x = torch.randn(3, 4)
    assert torch.allclose(mended(x), adapted(x), atol=1e-5)


HUGE = pytest.param(10**400, id="huge")


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), "1", None, True, HUGE])
def test_an_amount_out_of_range_is_refused(case, amount):
    base, tuned, memory = case
    with pytest.raises(InputError, match="amount="):
        retain.repair(base, tuned, memory, amount=amount)


def test_other_models_are_refused_with_every_name(case):
    base, tuned, memory = case
    with pytest.raises(InputError) as caught:
        retain.repair(base, nn.Sequential(nn.Conv2d(1, 5, 3)).double(), memory)
    assert "0.weight is (5, 1, 3, 3) in tuned, and (4, 1, 3, 3) in the memory" in str(caught.value)
    assert "4.bias is missing in tuned" in str(caught.value)
    with pytest.raises(InputError, match="base is a int"):
        retain.repair(3, tuned, memory)
    with pytest.raises(InputError, match="memory is a str"):
        retain.repair(base, tuned, "memory.safetensors")
    with pytest.raises(StateError, match="no importance yet"):
        retain.repair(base, tuned, retain.MAS(base))
    with torch.no_grad():
        tuned[0].weight[0] = torch.nan
    with pytest.raises(InputError, match=r"in tuned 0\.weight holds NaN or infinity"):
        retain.repair(base, tuned, memory)


NO_NUMBERS = {
    "NaN or infinity": lambda w: w * torch.nan,
    "int64": lambda w: w.long(),
    "complex64": lambda w: w.to(torch.complex64),
    "meta device": lambda w: w.to("meta"),
}


@pytest.mark.parametrize("said", NO_NUMBERS)
def test_weights_that_are_no_finite_numbers_are_refused_by_repair_and_forecast(case, said):
    base, tuned, memory = case
    bad = {name: NO_NUMBERS[said](w) for name, w in base.state_dict().items()}
    with pytest.raises(InputError, match=rf"in base 0\.weight .*{said}"):
        retain.repair(bad, tuned.state_dict(), memory)
    with pytest.raises(InputError, match=rf"in tuned 0\.weight .*{said}"):
        retain.repair(base, bad, memory)
    with pytest.raises(InputError, match=rf"0\.weight .*{said}"):
        memory.forecast(bad)


def test_a_base_that_the_memory_is_not_of_is_told_of(case):
    base, tuned, memory = case
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retain.repair(base, tuned, memory)
        retain.repair(copy.deepcopy(base).half(), tuned, memory)  # only rounded
    with pytest.warns(UserWarning, match="0.weight.*the wrong way round"):
        retain.repair(tuned, base, memory)


def test_the_command_writes_what_the_function_returns(case, tmp_path):
    base, tuned, memory = case
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    torch.save({"state_dict": tuned.state_dict()}, tmp_path / "tuned.pt")
    memory.save(tmp_path / "memory.safetensors")
    memory.importance.save(tmp_path / "omega.safetensors")
    for source in ("memory", "omega"):
        out = tmp_path / f"from-{source}.safetensors"
        done = CliRunner().invoke(
            app,
            ["repair", str(tmp_path / "base.safetensors"), str(tmp_path / "tuned.pt"),
             "--memory", str(tmp_path / f"{source}.safetensors"), "--out", str(out),
             "--amount", "3"],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        expected = retain.repair(base.state_dict(), tuned.state_dict(), memory, amount=3.0)
        written = load_file(out)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[k], expected[k]) for k in expected)


@pytest.mark.parametrize("read", ["base", "tuned", "memory"])
def test_the_command_writes_over_nothing_that_it_reads(case, tmp_path, read):
    base, tuned, memory = case
    files = {name: tmp_path / f"{name}.safetensors" for name in ("base", "tuned", "memory")}
    save_file(base.state_dict(), files["base"])
    save_file(tuned.state_dict(), files["tuned"])
    memory.save(files["memory"])
    before = files[read].read_bytes()
    given = [str(files["base"]), str(files["tuned"]), "--memory", str(files["memory"])]
    done = CliRunner().invoke(app, ["repair", *given, "--out", str(files[read])])
    assert done.exit_code == 2
    assert "which is one of the inputs" in " ".join(done.output.split())
    assert files[read].read_bytes() == before


def test_the_command_tells_of_a_base_that_the_file_is_not_of(case, tmp_path):
    base, tuned, memory = case
    base, tuned = base.float(), tuned.float()
    torch.save(base.state_dict(), tmp_path / "base.pt")
    torch.save(tuned.state_dict(), tmp_path / "tuned.pt")
    memory.save(tmp_path / "memory.safetensors")
    card = retain.passport(base, data().float().split(6), name="small", progress=False)
    card.save(tmp_path / "passport.safetensors")
    for kind in ("memory", "passport"):
        for first, second in (("base.pt", "tuned.pt"), ("tuned.pt", "base.pt")):
            line = ["repair", str(tmp_path / first), str(tmp_path / second)]
            more = ["--memory", str(tmp_path / f"{kind}.safetensors")]
            out = ["--out", str(tmp_path / "out.safetensors")]
            done = CliRunner().invoke(app, [*line, *more, *out])
            assert done.exit_code == 0, done.output
            assert ("the wrong way round" in done.output) == (first == "tuned.pt")


def test_drift_by_its_formula(case):
    base, tuned, memory = case
    assert memory.drift().change == 0
    drift = memory.forecast(tuned)
    before, after = base.state_dict(), tuned.state_dict()
    parts = {
        n: float((o * (after[n] - before[n]).abs()).sum()) for n, o in memory.importance.items()
    }
    assert drift.change == pytest.approx(sum(parts.values()))
    whole = sum(float((o * before[n].abs()).sum()) for n, o in memory.importance.items())
    assert drift.relative == pytest.approx(sum(parts.values()) / whole)
    assert drift.parameters["4.weight"].change == pytest.approx(parts["4.weight"])
    assert sum(part.share for part in drift.parameters.values()) == pytest.approx(1)
    assert list(drift.parameters) == sorted(parts, key=parts.get, reverse=True)
    memory.model.load_state_dict(tuned.state_dict())
    assert memory.drift().penalty == pytest.approx(memory.penalty().item())
    assert "4.weight" in str(memory.drift())
    assert memory.forecast(tuned.state_dict()).change == pytest.approx(drift.change)


def test_it_bounds_what_really_happens_to_first_order(case):
    base, tuned, memory = case
    with torch.no_grad():
        for p, q in zip(tuned.parameters(), base.parameters()):
            p.copy_(q + 1e-5 * (p - q).sign())
        tuned[1].running_mean.copy_(base[1].running_mean)  # statistics are no weights
        tuned[1].running_var.copy_(base[1].running_var)
        for model in (base, tuned):
            model.eval()
        norms = [m(data()).square().flatten(1).sum(1) for m in (base, tuned)]
    really = float((norms[1] - norms[0]).abs().mean())
    assert 0 < really <= memory.forecast(tuned).change * 1.01


def test_the_scale_of_the_output_does_not_matter_for_what_is_relative(case):
    base, tuned, memory = case
    louder = retain.MAS(base, output=lambda y: 10 * y)
    louder.observe(data(), progress=False).consolidate()
    ours, theirs = memory.forecast(tuned), louder.forecast(tuned)
    assert theirs.change == pytest.approx(100 * ours.change)
    assert theirs.relative == pytest.approx(ours.relative)


def test_a_loader_says_where_one_step_would_go(case):
    base, _, memory = case
    new = [(data(6), torch.tensor([0, 1, 2, 0, 1, 2])), (data(3), torch.tensor([0, 0, 0]))]
    mode, gradients = base.training, [p.grad for p in base.parameters()]
    forecast = memory.forecast(new, lr=0.1)
    assert (base.training, [p.grad for p in base.parameters()]) == (mode, gradients)
    by_hand = copy.deepcopy(base).eval()
    x, y = torch.cat([a for a, _ in new]), torch.cat([b for _, b in new])
    nn.functional.cross_entropy(by_hand(x), y).backward()
    with torch.no_grad():
        for p in by_hand.parameters():
            p -= 0.1 * p.grad
    assert forecast.change == pytest.approx(memory.forecast(by_hand).change)
    squares = memory.forecast(
        new, loss=lambda model, batch: model(batch[0]).square().mean(), lr=0.1
    )
    assert squares.change != pytest.approx(forecast.change)


def test_what_cannot_be_forecast_says_why(case):
    base, _, memory = case
    with pytest.raises(StateError, match="no Ω"):
        retain.MAS(base).drift()
    with pytest.raises(InputError, match=r"another model: 0\.weight \(4, 1, 3, 3\) is missing"):
        memory.forecast(nn.Linear(2, 2))
    with pytest.raises(InputError, match="no labels"):
        memory.forecast([data()])
    with pytest.raises(InputError, match="no batch"):
        memory.forecast([])
    with pytest.raises(InputError, match="not a scalar"):
        memory.forecast([data()], loss=lambda model, batch: model(batch))
    with pytest.raises(InputError, match="gives no finite weights"):
        memory.forecast([data()], loss=lambda model, batch: model(batch).sum() * torch.nan)
    with pytest.raises(InputError, match="leave loss out"):
        memory.forecast(base, loss=lambda model, batch: model(batch).sum())
