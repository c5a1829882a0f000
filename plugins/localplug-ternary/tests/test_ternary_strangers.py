"""A quantizer of another package: by its name, with its options, from conversion to export; and what is said without it."""

import json
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import localplug
from localplug import Quantizer, grouped, plugins, straight_through, ternary
from localplug_ternary import PackedTernaryLinear, TernaryConfig, TernaryLinear, export, freeze_, ternarize_
from localplug_ternary.card import model_card

IDS = torch.arange(14).reshape(2, 7)


class Threshold(Quantizer):
    """t = sign(w) [|w| > threshold max |w|], s = max |w| / 2, C = the mean of the row."""

    has_bias = True

    def __init__(self, group_size, threshold=0.25, rounded="no"):
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), got {threshold!r}")
        self.group_size, self.threshold, self.rounded = group_size, threshold, rounded

    def quantize(self, w_NK):
        with torch.no_grad():
            w_NGg = grouped(w_NK, self.group_size)
            top_NG = w_NGg.abs().amax(-1)
            t_NGg = w_NGg.sign() * (w_NGg.abs() > self.threshold * top_NG.unsqueeze(-1))
            return ternary(t_NGg, top_NG / 2, w_NGg.mean((-2, -1)))

    def latent(self, w_NK, progress):
        return straight_through(w_NK, self.quantize(w_NK)), grouped(w_NK, self.group_size).mean((-2, -1))

    def is_ternary(self, progress):
        return True


def plugin(**given):
    made = types.ModuleType("localplug_stranger")
    made.localplug_quantizers = localplug.hookimpl(lambda: given)
    made.localplug_quantizers.__name__ = "localplug_quantizers"
    return made


@pytest.fixture
def stranger():
    plugins.reload()
    localplug.register(plugin(threshold=Threshold))
    yield
    plugins.reload()


def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_it_trains_and_freezes_by_its_name(stranger):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
    x, y = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    ternarize_(net, TernaryConfig("threshold", 64, options={"threshold": 0.4}))
    assert type(net[0].method) is Threshold and net[0].method.threshold == 0.4
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    expected = net(x)
    assert torch.equal(freeze_(net)(x), expected) and isinstance(net[0], PackedTernaryLinear)


@pytest.mark.parametrize("packed", [False, True])
def test_a_model_saves_and_loads_with_its_name_and_options(stranger, tmp_path, packed):
    model = ternarize_(tiny(), TernaryConfig("threshold", 64, options={"threshold": 0.4, "rounded": "up"}))
    expected = logits(freeze_(model) if packed else model)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved["method"] == "threshold" and saved["options"] == {"threshold": 0.4, "rounded": "up"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), expected)
    assert any(isinstance(m, PackedTernaryLinear if packed else TernaryLinear) for m in again.modules())
    assert again.config.quantization_config.make_method().rounded == "up"


def test_it_is_exported_as_an_ordinary_model(stranger, tmp_path):
    model = ternarize_(tiny(), TernaryConfig("threshold", 64))
    again = AutoModelForCausalLM.from_pretrained(export.plain(model, tmp_path / "out"))
    torch.testing.assert_close(logits(again), logits(model))


def test_a_saved_model_says_what_is_missing(stranger, tmp_path):
    ternarize_(tiny(), TernaryConfig("threshold", 64)).save_pretrained(tmp_path)
    plugins.reload()
    with pytest.raises(ValueError) as error:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    said = str(error.value)
    assert "no quantizer named 'threshold'" in said and "where the method that it was made with is installed" in said
    assert "pip install" not in said


def test_the_card_names_the_method_as_another_packages(stranger):
    card = model_card(ternarize_(tiny(), TernaryConfig("threshold", 64)))
    assert "`pip install localplug-ternary` and the package that gives the method threshold" in card
    assert "the package that gives" not in model_card(ternarize_(tiny(), TernaryConfig("twn", 64)))


def test_configurations_saved_before_options_existed_load(tmp_path):
    ternarize_(tiny(), TernaryConfig("tequila", 64, lam=0.1)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["quantization_config"].pop("options") is None
    path.write_text(json.dumps(config))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.quantization_config.make_method().lam == 0.1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "treshold", "group_size": 100}, ["did you mean 'threshold'", "group_size must be"]),
        ({"method": "threshold", "options": {"threshold": 2}}, ["threshold must be in [0, 1), got 2"]),
        ({"method": "threshold", "options": {"treshold": 0.1}}, ["no option 'treshold'", "Did you mean 'threshold'"]),
        ({"method": "threshold", "lam": 0.1}, ["lam belongs to method='tequila'"]),
        ({"method": "threshold", "options": {"group_size": 64}}, ["options cannot hold 'group_size'"]),
        ({"method": "threshold", "options": {"threshold": torch.ones(())}}, ["options['threshold'] must be a number"]),
        ({"method": "threshold", "options": [("threshold", 0.1)]}, ["options must be a dictionary"]),
        ({"method": "tequila", "options": {"lam": 0.1}}, ["give lam by its own argument"]),
        ({"method": Threshold}, ["method must be a name"]),
    ],
)
def test_what_is_wrong_is_said_at_the_door(stranger, given, words):
    with pytest.raises(ValueError) as error:
        TernaryConfig(**{"group_size": 64, **given})
    assert all(word in str(error.value) for word in words), error.value


def test_a_quantizer_that_breaks_its_contract_is_not_packed(stranger):
    class Five(Threshold):
        def quantize(self, w_NK):
            made = super().quantize(w_NK)
            return made._replace(codes=made.codes * 2)

    class Lost(Threshold):
        def __init__(self, group_size):
            self.group_size = 128

    localplug.register(plugin(five=Five, lost=Lost, none=lambda group_size: {}), name="broken")
    net = ternarize_(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 2)), TernaryConfig("five", 64))
    with pytest.raises(
        ValueError, match=r"'0': its method Five breaks its contract: codes must be -1, 0 or 1; they go"
    ):
        freeze_(net)
    assert isinstance(net[0], TernaryLinear)
    with pytest.raises(ValueError, match="makes group_size=64 into 128"):
        TernaryConfig("lost", 64)
    with pytest.raises(ValueError, match="not a localplug.Quantizer"):
        TernaryConfig("none", None)


def test_two_packages_that_give_one_name_are_both_refused(stranger):
    localplug.register(plugin(tequila=Threshold), name="another")
    with pytest.raises(ValueError, match="quantizer 'tequila' is given by"):
        TernaryConfig("tequila")
