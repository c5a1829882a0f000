"""Latent programs: forward passes alone against the decoder's gradient and against chance, on small patterns.

    python tests/benchmarks/blackbox_latent.py [--quick]

A program is a pattern of 2 x 2 cells in 4 colours. Its input is a grid of 6 x 6 with marks at some of nine places; its output
is the grid with the pattern pasted at every mark. Encoder and decoder are MLPs with two hidden layers of 256, and the latent
has 16 numbers. They are trained by backpropagation, for 800 steps and for 6,000, on three pairs and a fourth, KL weight 1e-4,
with one step of gradient search in the latent, which is not differentiated itself. Each cell of the pattern is coloured with
a chance of 0.5 in training; tested are 100 programs at that density and 100 at 1.0. Recorded is the share of fourth outputs
that are right in all cells: at the encoder's guess, after Adam (rate 0.1, second decay 0.9, clipped to 1, as in the paper) on
the decoder's gradient, after `search_latent` with the same Adam on pairs of directions, and after as many random latents
round the guess; each with the best latent that was visited, by the three pairs. An evaluation is a forward pass of the three
pairs for one latent; a gradient counts as 3.
"""

import argparse
import pathlib
import sys

import torch
from torch import nn
from torch.nn import functional as F

from localplug_blackbox import search_latent

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

SIDE, COLOURS, LATENT, WIDE = 6, 5, 16, 256
CELLS = SIDE * SIDE


def pairs(num, density, generator):
    """Inputs and outputs (num, 4, cells) of as many programs."""
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    colours = torch.randint(1, COLOURS, (num, 2, 2), generator=generator)
    pattern = torch.where(draw(num, 2, 2) < density, colours, torch.zeros_like(colours))
    marks = draw(num, 4, 3, 3) < 0.4
    inputs = torch.zeros(num, 4, SIDE, SIDE, dtype=torch.long)
    inputs[:, :, ::2, ::2] = marks.long()
    outputs = torch.einsum("nkrc,nab->nkracb", marks.long(), pattern).reshape(num, 4, SIDE, SIDE)
    return inputs.flatten(2), outputs.flatten(2)


class Programs(nn.Module):
    def __init__(self):
        super().__init__()
        mlp = lambda wide_in, wide_out: nn.Sequential(  # noqa: E731
            nn.Linear(wide_in, WIDE), nn.SiLU(), nn.Linear(WIDE, WIDE), nn.SiLU(), nn.Linear(WIDE, wide_out)
        )
        self.encoder, self.decoder = mlp(CELLS * (1 + COLOURS), 2 * LATENT), mlp(CELLS + LATENT, CELLS * COLOURS)

    def encode(self, x, y):
        """Mean and logarithm of the variance of each pair's latent. (..., latent)."""
        return self.encoder(torch.cat([x.float(), F.one_hot(y, COLOURS).float().flatten(-2)], -1)).chunk(2, -1)

    def logits(self, x, z):
        return self.decoder(torch.cat([x.float(), z], -1)).unflatten(-1, (CELLS, COLOURS))


def nll(model, x, y, z):
    """(...): - log p of outputs y for inputs x and latents z, summed over cells."""
    logits = model.logits(x, z)
    return F.cross_entropy(logits.reshape(-1, COLOURS), y.reshape(-1), reduction="none").view(y.shape).sum(-1)


def trained(num_steps):
    torch.manual_seed(0)
    model, generator = Programs(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    for _ in range(num_steps):
        x, y = pairs(64, 0.5, generator)
        mean, log_variance = model.encode(x[:, :3], y[:, :3])
        z = (mean + torch.randn(mean.shape, generator=generator) * (log_variance / 2).exp()).mean(1)
        inner = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(nll(model, x[:, :3], y[:, :3], inner[:, None].expand(-1, 3, -1)).sum(), inner)
        z = z - 0.5 * slope / slope.norm(dim=1, keepdim=True).clamp_min(1.0)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        loss = nll(model, x, y, z[:, None].expand(-1, 4, -1)).mean() + 1e-4 * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False), float(loss.detach())


def by_gradient(objective, guess, num_steps):
    z = guess.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1, betas=(0.9, 0.9))
    best, best_z = float("inf"), guess
    for step in range(num_steps + 1):
        loss = objective(z[None])[0]
        if float(loss.detach()) < best:
            best, best_z = float(loss.detach()), z.detach().clone()
        if step < num_steps:
            (z.grad,) = torch.autograd.grad(loss, z)
            nn.utils.clip_grad_norm_([z], 1.0)
            optimizer.step()
    return best_z


def by_chance(objective, guess, num, generator):
    z = torch.cat([guess[None], guess + torch.randn(num - 1, LATENT, generator=generator) * 0.5])
    return z[objective(z).argmin()]


def tested(model, density, num):
    x, y = pairs(num, density, torch.Generator().manual_seed(int(1000 * density)))
    guesses = model.encode(x[:, :3], y[:, :3])[0].mean(1)
    right = {}

    def judge(name, i, z):
        found = model.logits(x[i, 3], z).argmax(-1)
        right.setdefault(name, []).append(bool((found == y[i, 3]).all()))

    for i in range(num):

        def objective(z, i=i):
            n = len(z)
            seen = (part[i, None, :3].expand(n, -1, -1) for part in (x, y))
            return nll(model, *seen, z[:, None].expand(-1, 3, -1)).sum(1)

        judge("guess", i, guesses[i])
        for steps in (20, 100):
            judge(f"gradient, {steps} steps, {3 * steps + 1} evaluations", i, by_gradient(objective, guesses[i], steps))
        for limit in (321, 1701):
            found = search_latent(objective, guesses[i], max_evaluations=limit, batch=16)
            judge(f"zeroth order, {limit} evaluations", i, found.z)
            judge(
                f"chance, {limit} evaluations",
                i,
                by_chance(objective, guesses[i], limit, torch.Generator().manual_seed(i)),
            )
    return {name: sum(values) / num for name, values in right.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="100 steps of training and 5 programs, not recorded")
    options = parser.parse_args()
    num = 5 if options.quick else 100
    result = earlier("blackbox_latent", {"programs": num}, quick=options.quick)
    for num_steps in (100,) if options.quick else (800, 6000):
        name = f"{num_steps} training steps"
        if name in result:
            continue
        model, loss = trained(num_steps)
        result[name] = {"training loss": loss} | {f"density {d}": tested(model, d, num) for d in (0.5, 1.0)}
        if options.quick:
            print(result)
        else:
            save("blackbox_latent", result)


if __name__ == "__main__":
    main()
