"""Block-local losses of Hugging Face models: next tokens, classes of sequences, padding, adapters; all three doors."""

import logging

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)  # fmt: skip

import localplug
from localplug import Engine
from localplug.testing.local_method import saved_elements
from localplug_greedy.dgl import DGL
from localplug_greedy.infopro import InfoPro
from localplug_greedy.predsim import PredSim, similarity_matching

transformers.utils.logging.set_verbosity_error()

VOCABULARY, LENGTH = 40, 9


def gpt2(depth=3, **changes):
    torch.manual_seed(0)
    config = dict(
        n_embd=16, n_layer=depth, n_head=2, vocab_size=VOCABULARY, n_positions=32, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(GPT2Config(**{**config, **changes}))


def llama(depth=3):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=depth, num_attention_heads=2, vocab_size=VOCABULARY
    )
    return LlamaForCausalLM(config)


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=VOCABULARY, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def stride(num=6, length=LENGTH, seed=1):
    """Each token is the one before plus 5; the first one is random."""
    start = torch.randint(1, VOCABULARY, (num, 1), generator=torch.Generator().manual_seed(seed))
    return 1 + (start + 5 * torch.arange(length)) % (VOCABULARY - 1)


def batch(**given):
    x = stride()
    return dict(input_ids=x, attention_mask=torch.ones_like(x), labels=x.clone()) | given


def gradients(model, given, method):
    engine = Engine(model, method)
    engine.evaluate(lambda: model(**given).loss, targets=given["labels"])
    engine.close()
    return method.owned_modules.modules, {n: p.grad for n, p in model.named_parameters()}


def hidden(model, given):
    """What leaves each block, in the whole model's graph."""
    given = {k: v for k, v in given.items() if k != "labels"}
    seen = []
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    handles = [b.register_forward_hook(lambda m, args, out: seen.append(out)) for b in blocks]
    model(**given)
    for handle in handles:
        handle.remove()
    return blocks, seen


def next_token_loss(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("head", ["auto", "tied"])
def test_each_block_follows_the_loss_of_the_next_token_at_its_own_head(make, head):
    """Unit 0 is the embedding and the first block. A block's own gradient is that of its loss, its input held constant."""
    model, given = make(), batch()
    given["labels"][0, 2:5] = given["labels"][1] = -100
    owned, found = gradients(model, given, DGL(head=head))
    blocks, outputs = hidden(model, given)
    norm = model.transformer.ln_f if make is gpt2 else model.model.norm
    names = {p: n for n, p in model.named_parameters()}
    assert len(owned) == (0 if head == "tied" else 2)
    for i in range(2):
        own = list(owned.values())[i] if owned else lambda h: F.linear(norm(h), model.lm_head.weight)
        J = next_token_loss(own(outputs[i]), given["labels"])
        parameters = list(blocks[i].parameters()) + ([] if head == "tied" else list(own.parameters()))
        for p, wanted in zip(parameters, torch.autograd.grad(J, parameters, retain_graph=True), strict=True):
            got = found[names[p]] if p in names else p.grad
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)
    parameters = [*blocks[2].parameters(), norm.weight]  # the last block learns from the model's own loss
    for p, wanted in zip(parameters, torch.autograd.grad(model(**given).loss, parameters), strict=True):
        torch.testing.assert_close(found[names[p]], wanted, atol=1e-6, rtol=1e-4)


def test_a_tied_head_teaches_the_block_and_not_the_embedding():
    """GPT-2's embedding is its head: it learns from the first block's look-ups, and from the last block's loss alone."""
    model, given = gpt2(), batch()
    _, found = gradients(model, given, DGL(head="tied"))
    constant = gpt2()
    first = hidden(model, given)[1][0]
    J = next_token_loss(F.linear(constant.transformer.ln_f(first), constant.lm_head.weight.detach()), given["labels"])
    (looked_up,) = torch.autograd.grad(J, [model.transformer.wte.weight])
    last = model.transformer.h[2](hidden(model, given)[1][1].detach())
    J = next_token_loss(F.linear(model.transformer.ln_f(last), model.lm_head.weight), given["labels"])
    (through_the_head,) = torch.autograd.grad(J, [model.lm_head.weight])
    torch.testing.assert_close(found["transformer.wte.weight"], looked_up + through_the_head, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("head", "changes"), [("auto", False), ("tied", True)])
def test_what_a_block_reads_above_it_is_what_it_says(head, changes):
    method, found = DGL(head=head), []
    assert bool(method.reads_above) is changes
    for moved in (False, True):
        model = gpt2()
        if moved:
            with torch.no_grad():
                model.transformer.ln_f.weight.mul_(1.5)
                model.transformer.h[1].mlp.c_fc.weight.mul_(1.5)
        found.append(gradients(model, batch(), DGL(head=head))[1]["transformer.h.0.mlp.c_fc.weight"])
    assert torch.equal(*found) is not changes


def test_a_batch_without_labels_moves_no_hidden_block():
    """Only the trainer's own loss is a mean over nothing."""
    given = batch(labels=torch.full((6, LENGTH), -100))
    for method in (DGL(), DGL(head="tied"), PredSim(kind="block"), InfoPro(lambda1=(0.0, 0.0))):
        _, found = gradients(gpt2(), given, method)
        for name in ("transformer.h.0.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.weight"):
            assert not found[name].any(), (type(method).__name__, name)


def test_labels_that_are_shifted_already():
    """A model of the user's own, whose targets are the next tokens at each position."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, 8)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
            self.out = nn.Linear(8, VOCABULARY)

        def forward(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = x + torch.tanh(block(x))
            return self.out(x)

    x = stride(length=LENGTH + 1)
    x, y = x[:, :-1], x[:, 1:]
    for shift in (None, True):
        model, method = Net(), DGL(shift=shift)
        Engine(model, method).evaluate(lambda m=model: F.cross_entropy(m(x).flatten(0, 1), y.flatten()), targets=y)
        h = model.embed(x)
        h = h + torch.tanh(model.blocks[0](h))
        (head,) = method.owned_modules.modules.values()
        logits = head(h)
        J = next_token_loss(logits, y) if shift else F.cross_entropy(logits.flatten(0, 1), y.flatten())
        (wanted,) = torch.autograd.grad(J, [model.blocks[0].weight])
        torch.testing.assert_close(model.blocks[0].weight.grad, wanted, atol=1e-6, rtol=1e-4)


def test_predsim_compares_positions_by_their_next_tokens():
    model, given = gpt2(), batch()
    given["labels"][0, 2:5] = -100
    owned, found = gradients(model, given, PredSim(beta=0.5, group=7, kind="block", joins_head=True))
    h, y = hidden(model, given)[1][0][:, :-1], given["labels"][:, 1:]
    h, y = h[y != -100], y[y != -100]
    pair = next(iter(owned.values()))
    J = 0.5 * F.cross_entropy(pair.W(h), y) + 0.5 * similarity_matching(pair.C(h), y, VOCABULARY, 7)
    weight = model.transformer.h[0].mlp.c_fc.weight
    torch.testing.assert_close(
        found["transformer.h.0.mlp.c_fc.weight"], torch.autograd.grad(J, [weight])[0], atol=1e-6, rtol=1e-4
    )


def test_infopro_names_the_tokens_that_came_in():
    """Those of the padding are left out: their token is the configuration's pad_token_id."""
    model, given = gpt2(pad_token_id=0), batch()
    given["input_ids"][2, 6:], given["labels"][2, 6:], given["attention_mask"][2, 6:] = 0, -100, 0
    owned, found = gradients(model, given, InfoPro(lambda1=(2.0, 1.0), lambda2=(0.5, 1.0)))
    _, outputs = hidden(model, given)
    for i, (lambda1, lambda2) in enumerate(((2.0, 0.5), (1.0, 1.0))):
        pair = list(owned.values())[i]
        x = given["input_ids"]
        R = F.cross_entropy(pair.decoder(outputs[i])[x != 0], x[x != 0])
        J = lambda1 * R + lambda2 * next_token_loss(pair.aux(outputs[i]), given["labels"])
        weight = model.transformer.h[i].mlp.c_fc.weight
        (wanted,) = torch.autograd.grad(J, [weight], retain_graph=True)
        torch.testing.assert_close(found[f"transformer.h.{i}.mlp.c_fc.weight"], wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("method", "pool"), [(DGL, "mean"), (DGL, "last"), (PredSim, "mean"), (InfoPro, "mean")])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing_for_the_classes_of_sequences(method, pool, attention):
    """Of the embedding's unit by the padding's token, of those after it by the attention mask."""
    found = []
    for more in (0, 4):
        model = bert()
        model.config._attn_implementation = attention
        x = stride(length=LENGTH)
        mask = torch.ones_like(x)
        x[0, 5:], mask[0, 5:] = 0, 0  # there is padding in either batch
        x, mask = F.pad(x, (0, more)), F.pad(mask, (0, more))
        given = dict(input_ids=x, attention_mask=mask, labels=torch.tensor([0, 1, 2, 0, 1, 2]))
        made = method(kind="block", joins_head=True, pool=pool)
        found.append(gradients(model, given, made)[1])
        assert [name.split("bert.")[-1] for name in made.owned_modules.modules] == ["embeddings", "encoder.layer.1"]
    for name, gradient in found[0].items():
        if gradient is not None and "position_embeddings" not in name:
            torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("options", [{}, {"head": "tied"}, {"rank": 4}], ids=["own", "tied", "rank"])
def test_saved_tensors_do_not_grow_with_depth(options):
    given, peaks = batch(), []
    for depth in (3, 12):
        model = gpt2(depth)
        with saved_elements(model, tuple(given.values())) as peak:
            gradients(model, given, DGL(**options))
        peaks.append(peak[0])
    assert peaks[1] <= 1.02 * peaks[0]


def test_adapters_of_frozen_models_learn_alone():
    from peft import LoraConfig, get_peft_model

    given, found = batch(), {}
    for head in ("auto", "tied"):
        model = get_peft_model(
            gpt2(), LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
        )
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        with localplug.attach(model, "dgl", optimizer, head=head) as plug:
            for _ in range(3):
                loss = model(**given).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            units = [unit.name for unit in plug.engine.method.partition(plug.engine.run)]
        assert [name[-1] for name in units] == ["0", "1", "2"]
        moved = {n for n, p in model.named_parameters() if "lora_B" in n and p.any()}
        assert len(moved) == 3
        found[head] = float(loss.detach())
    assert found["auto"] != found["tied"]


# ---- doors ------------------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.x = stride(64)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return dict(input_ids=self.x[i], labels=self.x[i].clone())


def by_hand(model, batches, lr, **options):
    """The same training in a bare loop: the losses."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0), []
    with localplug.attach(model, "dgl", optimizer, **options):
        for given in batches:
            loss = model(**given).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return losses


class Classes(Rows):
    """The class is what the first token is, in thirds of the vocabulary."""

    def __getitem__(self, i):
        return dict(input_ids=self.x[i], attention_mask=torch.ones_like(self.x[i]), labels=self.x[i][0] // 14)


def under_a_trainer(model, folder, method="dgl", data=None, options=None, **changes):
    from localplug_transformers import LocalPlugCallback

    given = dict(
        output_dir=str(folder), max_steps=60, per_device_train_batch_size=8, learning_rate=1e-2, weight_decay=0.0,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, max_grad_norm=0.0, seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(**{**given, **changes}),
        train_dataset=data or Rows(),
        callbacks=[LocalPlugCallback(method, **(options or {}))],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("make", "head"), [(gpt2, "auto"), (llama, "tied")])
def test_learns_under_a_trainer_what_it_learns_in_a_bare_loop(make, head, tmp_path):
    model, batches = make(), []
    model.register_forward_pre_hook(lambda m, args, kwargs: batches.append(kwargs), with_kwargs=True)
    losses = under_a_trainer(model, tmp_path, options={"head": head})
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]
    assert losses == pytest.approx(by_hand(make(), batches, 1e-2, head=head), rel=1e-3)


@pytest.mark.parametrize("method", ["dgl", "predsim", "infopro"])
def test_an_encoder_learns_to_classify_under_a_trainer(method, tmp_path):
    options = {"kind": "block", "joins_head": True, "pool": "first"}
    losses = under_a_trainer(
        bert(), tmp_path, method, data=Classes(), options=options, max_steps=50, learning_rate=1e-2
    )
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_micro_batches_under_a_trainer_equal_one_batch(tmp_path):
    whole, halves = gpt2(), gpt2()
    for model, size, number in ((whole, 8, 1), (halves, 4, 2)):
        under_a_trainer(
            model,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=number,
            max_steps=1,
            optim="sgd",
        )
    for (name, p), q in zip(whole.named_parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(q, p, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:The '.*' does not have many workers")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # lightning 2.6 on torch 2.13
def test_learns_under_lightning_what_it_learns_in_a_bare_loop(tmp_path):
    import lightning.pytorch as L

    from localplug_lightning import LocalPlugStrategy

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = gpt2(), []

        def training_step(self, given, index):
            loss = self.model(**given).loss
            self.losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)

    data = torch.utils.data.DataLoader(Rows(), batch_size=8)
    module = Module()
    trainer = L.Trainer(
        max_steps=60, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(tmp_path),
        strategy=LocalPlugStrategy("dgl", head="tied"),
    )  # fmt: skip
    trainer.fit(module, data)
    assert sum(module.losses[-5:]) / 5 < 0.4 * module.losses[0]
    batches = [given for _ in range(8) for given in data][:60]
    assert module.losses == pytest.approx(by_hand(gpt2(), batches, 1e-2, head="tied"), rel=1e-3)
