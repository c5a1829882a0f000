"""An unmodified LightningModule under an unmodified Lightning Trainer, trained without backpropagation: one argument.

The first run makes the strategy, with options, as an object. The second one gives it by name: importing
localplug_lightning registers "localplug_<method>" for every installed method. tpsgd finds the labels in the batch.
"""

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from localplug_lightning import LocalPlugStrategy


class Classifier(L.LightningModule):
    """Nothing in here knows of localplug."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
        self.lr = lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def fit(name: str, strategy: L.strategies.Strategy | str, lr: float) -> None:
    L.seed_everything(0, verbose=False)
    x = torch.randn(256, 8)
    data = TensorDataset(x, (x[:, :3].sum(1) > 0).long())
    model = Classifier(lr)
    trainer = L.Trainer(
        max_epochs=40,
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with torch.no_grad():
        print(f"{name}: loss before {float(model.training_step(data.tensors, 0)):.4f}")
    trainer.fit(model, DataLoader(data, batch_size=64))
    with torch.no_grad():
        print(f"{name}: loss after {float(model.training_step(data.tensors, 0)):.4f}")


if __name__ == "__main__":
    fit("mezo", LocalPlugStrategy("mezo", eps=1e-3, num_directions=4), lr=0.05)
    fit("tpsgd", "localplug_tpsgd", lr=0.1)
