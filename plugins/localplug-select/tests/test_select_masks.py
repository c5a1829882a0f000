"""SaRA's mask and masks by magnitude against their definitions, in the runs that they are for."""

import pytest
import torch
from torch import nn

import localplug
from localplug_select.packed import PackedMasks
from localplug_select.thresholds import kth_smallest


def network(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2)).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 3)
    return net


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()]).clone()


def trained(net, method, steps=3, lr=1e-2, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=lr, weight_decay=0.1)
    made = localplug.Engine(net, method, optimizer)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        made.step(lambda: net(x.to(next(net.parameters()).dtype)).float().square().mean(), optimizer)
    return made


def chosen_by(selector, net):
    """Of each parameter, as the selector says before the first step."""
    named = list(net.named_parameters())
    selector.setup(localplug.Run(net, named, 0), range(len(named)))
    return [selector.mask(i, p.data.flatten(), 0, 0).view_as(p) for i, (_, p) in enumerate(named)]


# ---- thresholds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 100, 1999, 2000])
def test_the_threshold_is_the_kth_magnitude_of_all(dtype, k):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(30, 40, generator=generator).to(dtype), torch.zeros(300, dtype=dtype)]
    weights.append((torch.randn(500, generator=generator) * 1e-3).to(dtype))
    every = torch.cat([w.flatten().float().abs() for w in weights])
    assert kth_smallest(weights, k) == float(every.kthvalue(k).values)


def test_the_threshold_does_not_depend_on_chunks(monkeypatch):
    weights = [torch.randn(33, 7, generator=torch.Generator().manual_seed(0)).t()]
    whole = kth_smallest(weights, 50)
    monkeypatch.setattr("localplug_select.thresholds.CHUNK", 8)
    assert kth_smallest(weights, 50) == whole


def test_packed_masks_hold_a_bit_for_each_weight():
    net = network()
    masks = PackedMasks(localplug.Run(net, list(net.named_parameters()), 0), range(6))
    masks.choose(lambda i, magnitude: magnitude > 0.3)
    every = flat(net).abs() > 0.3
    parts = [masks.slice(i, 0, p.numel()) for i, p in enumerate(net.parameters())]
    assert torch.equal(torch.cat(parts), every) and masks.num() == int(every.sum())
    assert sum(b.numel() for b in masks.state_dict().values()) == sum(-(-p.numel() // 8) for p in net.parameters())


# ---- what is chosen ------------------------------------------------------------------------------------------------------


def test_sara_takes_the_smallest_of_the_whole_model_biases_too():
    net = network()
    chosen = torch.cat([m.flatten() for m in chosen_by(localplug.selector("sara", share=0.25), net)])
    w = flat(net).abs()
    h = w.kthvalue(round(0.25 * w.numel())).values
    assert torch.equal(chosen, w <= h)
    assert chosen_by(localplug.selector("sara", share=0.5), net)[1].any()


def test_sara_takes_a_threshold():
    net = network()
    chosen = torch.cat([m.flatten() for m in chosen_by(localplug.selector("sara", threshold=0.05), net)])
    assert torch.equal(chosen, flat(net).abs() <= 0.05)
    with pytest.raises(localplug.Unsupported, match="no weight is below threshold=1e-09, the smallest is"):
        trained(net, localplug.method("mezo", parameters=localplug.selector("sara", threshold=1e-9)))


@pytest.mark.parametrize("which", ["smallest", "largest"])
@pytest.mark.parametrize("by", ["model", "parameter"])
def test_magnitude_takes_an_end_of_the_order(which, by):
    net = network()
    selector = localplug.selector("magnitude", share=0.3, which=which, by=by)
    groups = [[p] for p in net.parameters()] if by == "parameter" else [list(net.parameters())]
    wanted = []
    for group in groups:
        w = torch.cat([p.detach().flatten() for p in group]).abs()
        order = w.sort(descending=which == "largest").values
        h = order[max(round(0.3 * w.numel()), 1) - 1]
        wanted.append(w <= h if which == "smallest" else w >= h)
    assert torch.equal(torch.cat([m.flatten() for m in chosen_by(selector, net)]), torch.cat(wanted))


@pytest.mark.parametrize("name", ["sara", "magnitude"])
def test_it_chooses_among_the_parameters_that_are_named(name):
    net = network()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    trained(net, localplug.method("mezo", parameters=localplug.selector(name, share=0.3, among="2.*")))
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= {"2.weight", "2.bias"} and "2.weight" in moved
    changed = sum(int((p != before[n]).sum()) for n, p in net.named_parameters())
    assert changed == round(0.3 * 72)
    with pytest.raises(localplug.Unsupported, match="no trainable parameter matches 'nowhere'"):
        trained(net, localplug.method("mezo", parameters=localplug.selector(name, among=["2.*", "nowhere"])))


# ---- in a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        {"name": "mezo"},
        {"name": "mezo", "directions": "rademacher", "backend": "copy"},
        {"name": "mezo", "update": "trainer"},
        {"name": "zo-sgd-momentum"},
        {"name": "zo-adam"},
        {"name": "fzoo"},
        {"name": "es"},
        {"name": "residual-zo"},
        {"name": "1.5-spsa"},
        {"name": "lozo"},
        {"name": "forward-grad"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_only_the_chosen_weights_change_and_a_saved_difference_has_their_number(method):
    net = network()
    before = flat(net)
    selector = localplug.selector("sara", share=0.25)
    chosen = torch.cat([m.flatten() for m in chosen_by(selector, net)])
    options = {k: v for k, v in method.items() if k != "name"}
    decay = 0.0 if "update" in method else 0.1  # the trainer's own optimizer decays what it holds
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, weight_decay=decay)
    trained(net, localplug.method(method["name"], parameters="sara:0.25", **options), optimizer=optimizer)
    changed = flat(net) != before
    assert not changed[~chosen].any()
    assert int(changed.sum()) >= 0.8 * int(chosen.sum())


def test_half_precision_keeps_the_others_to_the_bit():
    net = network(torch.bfloat16)
    before = flat(net)
    chosen = torch.cat([m.flatten() for m in chosen_by(localplug.selector("sara", share=0.3), net)])
    trained(net, localplug.method("mezo", parameters="sara:0.3"), steps=5, lr=0.1)
    changed = flat(net) != before
    assert changed[chosen].any() and not changed[~chosen].any()


def test_without_a_refresh_a_weight_that_has_grown_goes_on():
    net, selector = network(), localplug.selector("sara", share=0.25)
    made = trained(net, localplug.method("mezo", parameters=selector), steps=20, lr=0.05)
    chosen = torch.cat([selector.mask(i, p.data.flatten(), 0, 20) for i, (_, p) in enumerate(made.run.parameters)])
    h = selector.state_dict()["threshold"]
    assert (flat(net).abs()[chosen] > h).any()
    assert int(chosen.sum()) == round(0.25 * flat(net).numel())


def test_a_refresh_takes_what_is_still_below_the_threshold():
    net, selector = network(), localplug.selector("sara", share=0.25, refresh=20)
    first = torch.cat([m.flatten() for m in chosen_by(localplug.selector("sara", share=0.25), net)])
    made = trained(net, localplug.method("mezo", parameters=selector), steps=20, lr=0.05)
    grown = flat(net).abs() > selector.state_dict()["threshold"]
    made.run.optimizer.param_groups[0]["lr"] = 0.0
    x = torch.ones(2, 6)
    made.step(lambda: net(x).square().mean(), made.run.optimizer)  # step 20 begins with the choice
    chosen = torch.cat([selector.mask(i, p.data.flatten(), 0, 20) for i, (_, p) in enumerate(made.run.parameters)])
    assert torch.equal(chosen, first & ~grown) and 0 < int(chosen.sum()) < int(first.sum())


def test_a_refresh_that_would_leave_nothing_keeps_what_there_was():
    net, selector = network(), localplug.selector("sara", share=0.1, refresh=1)
    run = localplug.Run(net, list(net.named_parameters()), 0)
    selector.setup(run, range(6))
    before = selector.mask(0, net[0].weight.data.flatten(), 0, 0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(10)
    run.step = 1
    selector.begin(run)
    assert torch.equal(selector.mask(0, net[0].weight.data.flatten(), 0, 1), before) and before.any()


def test_magnitude_is_measured_anew():
    net, selector = network(), localplug.selector("magnitude", share=0.25, refresh=2)
    trained(net, localplug.method("mezo", parameters=selector), steps=2, lr=0.05)
    run = localplug.Run(net, list(net.named_parameters()), 0, step=2)
    selector.begin(run)
    chosen = torch.cat([selector.mask(i, p.data.flatten(), 0, 2) for i, p in enumerate(net.parameters())])
    w = flat(net).abs()
    assert torch.equal(chosen, w <= w.kthvalue(round(0.25 * w.numel())).values)


def test_a_resumed_run_is_the_uninterrupted_one_beyond_the_next_choice():
    whole = network()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.05)
    made = trained(whole, localplug.method("mezo", parameters="sara:0.25:4"), steps=6, optimizer=optimizer)
    saved, weights = made.state_dict(), {k: v.clone() for k, v in whole.state_dict().items()}
    x = torch.ones(2, 6)
    for _ in range(5):
        made.step(lambda: whole(x).square().mean(), optimizer)
    other = network(seed=3)
    other.load_state_dict(weights)
    second = torch.optim.SGD(other.parameters(), lr=0.05)
    resumed = localplug.Engine(other, localplug.method("mezo", parameters="sara:0.25:4"), second, seed=99)
    resumed.load_state_dict(saved)
    for _ in range(5):
        resumed.step(lambda: other(x).square().mean(), second)
    assert torch.equal(flat(other), flat(whole))


@pytest.mark.parametrize("parameters", ["sara:0.25:3", "magnitude:0.25:3"])
def test_a_log_repeats_the_choices_of_its_run(parameters, tmp_path):
    net = network()
    base = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "run.lplog"
    with localplug.attach(net, "mezo", optimizer, parameters=parameters, log=path):
        for step in range(8):
            loss = net(x).square().mean() * (float("nan") if step == 3 else 1.0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    again = network(seed=5)
    again.load_state_dict(base)
    localplug.replay_log(again, path)
    assert torch.equal(flat(again), flat(net)) and not torch.equal(flat(net), flat(network()))


def test_moments_take_a_mask_that_stays_and_refuse_one_that_changes():
    trained(network(), localplug.method("zo-adam", parameters="sara:0.25"))
    with pytest.raises(ValueError, match="select by name or by a mask"):
        trained(network(), localplug.method("zo-adam", parameters="sara:0.25:10"))


# ---- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sara:", "expected sara:NUMBER"),
        ("sara:much", "share, refresh, threshold, among"),
        ("sara:0.1:5:1:2:3", "expected sara:NUMBER"),
        ("sara:0", r"share must be in \(0, 1\], got 0"),
        ("sara:0.1:0.5", "refresh must be a number of steps"),
        ("magnitude:2", r"share must be in \(0, 1\], got 2"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_when_the_method_is_made(text, words):
    with pytest.raises(ValueError, match=words):
        localplug.method("mezo", parameters=text)


def test_a_name_that_nobody_gives_is_refused_with_a_near_one():
    with pytest.raises(localplug.UnknownName, match="no selector named 'sarah'; did you mean 'sara'"):
        localplug.method("mezo", parameters="sarah:0.1")


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(ValueError) as refused:
        localplug.selector("magnitude", share=0, refresh=-1, which="middle", by="layer")
    assert all(word in str(refused.value) for word in ("share", "refresh", "which", "by"))
    with pytest.raises(ValueError) as refused:
        localplug.selector("sara", share=2.0, refresh=0.5, threshold=-1)
    assert all(word in str(refused.value) for word in ("share", "refresh", "threshold"))


def test_a_state_of_another_model_is_refused():
    made = trained(network(), localplug.method("mezo", parameters="sara:0.25"))
    other = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 2))
    engine = localplug.Engine(
        other, localplug.method("mezo", parameters="sara:0.25"), torch.optim.SGD(other.parameters(), lr=0.1)
    )
    with pytest.raises(ValueError, match=r"the saved masks do not fit these parameters: \['0.weight'"):
        engine.load_state_dict(made.state_dict())
