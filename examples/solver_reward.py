"""Train a network that writes linear programs by the verdict of a solver on what it wrote.

    pip install localplug-rewards localplug-zo;  python examples/solver_reward.py

The network reads "x earns 6, y earns 8. wood: ..." and writes "max 6x+8y;...". It has learned the language and most of the
copying, and gets some numbers wrong. What it writes is parsed, solved by HiGHS and compared with the known optimum; it is never
run. Lower is better below: 1 is no program at all, 0 a right one for every problem.
"""

import torch
from torch import nn

import localplug
from localplug_rewards.solved import SolverReward
from localplug_rewards.writing import texts


class Writes(nn.Module):
    """The network as a trainer has it; the objective stands in the place of the loss, which would need right programs."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, ids, wanted):
        logits = self.network(ids)
        return {"loss": logits.mean(), "logits": logits}


def write(model, batch):
    """A pair for each row: what the model writes, and the optimum that is wanted."""
    return list(zip(texts(model.network(batch["ids"]).argmax(-1)), batch["wanted"].tolist(), strict=True))


task = localplug.task("linear-models", num_train=300, num_held=50)
parts = task.parts(0)
network = task.fresh_model(0)
adam = torch.optim.Adam(network.parameters(), lr=1e-2)
generator = torch.Generator().manual_seed(0)
while True:  # a start, by backpropagation
    loss = task.loss(network, parts.train.batch(torch.randint(300, (32,), generator=generator)))
    if loss.item() < 0.25:
        break
    loss.backward()
    adam.step()
    adam.zero_grad()

model, reward = Writes(network), SolverReward(write)
ids, _, wanted = parts.train.batch(torch.arange(40))
print(f"loss before {1 - reward(model, {'ids': ids, 'wanted': wanted}):.3f}  (1 - mean reward of 40 programs)")
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
options = {"num_directions": 8, "eps": 0.02, "parameters": ["asks", "query.*"]}
with localplug.attach(model, "es", optimizer, objective=reward, **options):
    for _ in range(30):
        model(ids, wanted=wanted)["loss"].backward()
        optimizer.step()
print(f"loss after {1 - reward(model, {'ids': ids, 'wanted': wanted}):.3f}")
