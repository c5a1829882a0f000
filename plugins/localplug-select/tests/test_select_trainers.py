"""The masks under the trainers: chosen at the start, chosen anew, saved and resumed."""

import warnings

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")
from localplug_transformers import LocalPlugCallback  # noqa: E402


def language_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        return transformers.LlamaForCausalLM(config)


def fitted(folder, steps, **resume):
    model = language_model()
    rows = [{"input_ids": x, "labels": x} for x in torch.arange(8 * 12).view(8, 12) % 32]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, save_steps=3, learning_rate=0.05, max_grad_norm=0.0, report_to=[], use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=4, lr_scheduler_type="constant",
    )  # fmt: skip
    callback = LocalPlugCallback("sara", share=0.2, refresh=2)
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train(**resume)
    return {n: p.detach() for n, p in model.named_parameters()}


def test_a_transformers_run_resumes_between_two_choices(tmp_path):
    whole = fitted(tmp_path / "whole", 6)
    fitted(tmp_path / "half", 3)
    resumed = fitted(tmp_path / "half", 6, resume_from_checkpoint=True)
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    before = dict(language_model().named_parameters())
    w, v = (torch.cat([p[n].detach().flatten() for n in whole]) for p in (before, whole))
    h = w.abs().kthvalue(round(0.2 * w.numel())).values
    assert (w != v).any() and not (w != v)[w.abs() > h].any()


def test_a_lightning_run_trains_the_mask():
    lightning = pytest.importorskip("lightning.pytorch")
    from localplug_lightning import LocalPlugStrategy

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    module, data = Module(), torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # workers, logging: Lightning's advice
        lightning.Trainer(
            strategy=LocalPlugStrategy("mezo", parameters="magnitude:0.3"), max_steps=3, accelerator="cpu",
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, torch.utils.data.DataLoader(data, batch_size=4))  # fmt: skip
    moved = torch.cat([p.detach().flatten() for p in module.parameters()]) != before
    h = before.abs().kthvalue(round(0.3 * before.numel())).values
    assert torch.equal(moved, before.abs() <= h)
