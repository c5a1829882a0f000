"""Which words made a classifier say so, and which weights it can do without: relevance, without autograd's graph.

    pip install localplug-credit && python examples/credit_words.py

A small network reads reviews as bags of words and learns by LFP, without backpropagation. Then the same relevance pass that
taught it says which words a verdict came from, and which half of its weights no verdict needs.
"""

import torch
from torch import nn

import localplug
from localplug_credit import masks, relevance, scores

GOOD, BAD = ["good", "great", "fine", "lovely", "superb"], ["bad", "dull", "awful", "poor", "weak"]
FILLER = ["the", "film", "was", "a", "plot", "and", "with", "actor", "scene", "music", "story", "it", "had"]
WORDS = GOOD + BAD + FILLER


def reviews(num, seed):
    """(counts of words (num, words), whether the review is positive (num,))."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (num,), generator=generator)
    counts = torch.zeros(num, len(WORDS))
    for row, label in enumerate(labels):
        telling = torch.randint(0, 5, (2,), generator=generator) + (0 if label else 5)
        filling = torch.randint(10, len(WORDS), (8,), generator=generator)
        for word in [*telling, *filling]:
            counts[row, word] += 1
    return counts, labels


def accuracy(net, counts, labels):
    with torch.no_grad():
        return float((net(counts).argmax(1) == labels).float().mean())


def main():
    torch.manual_seed(0)
    counts, labels = reviews(400, seed=0)
    held_counts, held_labels = reviews(200, seed=1)
    net = nn.Sequential(nn.Linear(len(WORDS), 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    with localplug.attach(net, "lfp", optimizer):
        for _ in range(60):
            loss = nn.functional.cross_entropy(net(counts), labels)
            loss.backward()  # stops at the model's output
            optimizer.step()
            optimizer.zero_grad()
    print(f"held-out reviews: {accuracy(net, held_counts, held_labels):.1%} right")

    text = ["the", "plot", "was", "dull", "and", "the", "music", "was", "great", "but", "the", "story", "was", "awful"]
    bag = torch.zeros(1, len(WORDS))
    for word in text:
        if word in WORDS:
            bag[0, WORDS.index(word)] += 1
    found = relevance(net, bag)
    verdict = "positive" if int(net(bag).argmax()) else "negative"
    strongest = found.inputs[0][0].topk(2)
    print(f"{' '.join(text)!r} is {verdict}, because of", ", ".join(WORDS[i] for i in strongest.indices))

    spared = masks(scores(net, [counts]), 0.5, largest=False)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.mul_(~spared[name])
    print(
        f"without the half of its weights that went least into verdicts: {accuracy(net, held_counts, held_labels):.1%}"
    )


if __name__ == "__main__":
    main()
