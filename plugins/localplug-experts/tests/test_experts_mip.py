"""Integer programs as graphs, by hand and out of files that HiGHS reads; their embeddings."""

import pytest
import torch

from localplug_experts.embedding import InstanceEmbedding
from localplug_experts.mip import graph, read_mip

LP = """
minimize 3 x - 2 y + z
subject to
 eq: x + y + z = 6
 up: 2 x - y <= 4
 lo: y + 3 z >= 1
bounds
 0 <= x <= 10
 0 <= z <= 5
binary
 y
general
 z
end
"""


@pytest.fixture
def lp(tmp_path):
    pytest.importorskip("highspy", reason="pip install localplug-experts[mip]")
    path = tmp_path / "small.lp"
    path.write_text(LP)
    return path


def test_a_file_becomes_the_graph_that_it_says(lp):
    found = read_mip(lp)
    assert found.constraints[:, :3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    torch.testing.assert_close(found.constraints[:, 3], torch.tensor([1.0, 0.6, 0.0]))  # 6, 4, 1
    by_cost = found.variables[found.variables[:, 3].argsort(descending=True)]  # x 3, z 1, y -2
    assert by_cost[:, :3].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    torch.testing.assert_close(by_cost[:, 3], torch.tensor([1.0, 0.6, 0.0]))
    torch.testing.assert_close(by_cost[:, 5], torch.tensor([1.0, 4 / 9, 0.0]))  # 10, 5, 1
    assert found.edges.shape == (2, 7) and sorted(found.weights.tolist()) == [-1, 1, 1, 1, 1, 2, 3]


def test_a_file_that_is_none_is_refused(tmp_path):
    pytest.importorskip("highspy", reason="pip install localplug-experts[mip]")
    with pytest.raises(ValueError, match="HiGHS cannot read"):
        read_mip(tmp_path / "nowhere.lp")


def test_a_row_with_two_sides_is_two_rows():
    one = torch.ones(1).double()
    edges = torch.zeros(2, 1, dtype=torch.long)
    found = graph(edges, one, -2 * one, 3 * one, one, 0 * one, one, torch.tensor([False]))
    assert found.constraints.tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]
    assert found.edges.tolist() == [[0, 1], [0, 0]] and found.weights.tolist() == [1, 1]


def program(seed, cost=None):
    """A random one of 6 rows and 8 binary variables."""
    g = torch.Generator().manual_seed(seed)
    edges = torch.nonzero(torch.rand(6, 8, generator=g) < 0.5).T
    weights = torch.randint(1, 5, (edges.shape[1],), generator=g).double()
    cost = torch.rand(8, generator=g).double() if cost is None else cost
    zeros, ones = torch.zeros(8).double(), torch.ones(8).double()
    return graph(
        edges, weights, torch.full((6,), -torch.inf).double(), torch.arange(6).double(), cost, zeros, ones, ones.bool()
    )


def test_an_embedding_does_not_see_the_order_of_rows_and_variables():
    instances = [program(seed) for seed in range(6)]
    embedding = InstanceEmbedding(num_codes=8, width=16).fit(instances)
    mip = instances[0]
    rows, columns = torch.randperm(6), torch.randperm(8)
    moved = torch.stack([rows.argsort()[mip.edges[0]], columns.argsort()[mip.edges[1]]])
    other = type(mip)(mip.constraints[rows], mip.variables[columns], moved, mip.weights)
    torch.testing.assert_close(embedding([mip]), embedding([other]))
    assert not torch.equal(embedding([mip]), embedding([instances[1]]))


def test_it_is_the_same_for_a_seed_and_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    instances = [program(seed) for seed in range(6)]
    one, two = (InstanceEmbedding(num_codes=8, width=16, seed=s).fit(instances)(instances) for s in (1, 1))
    other = InstanceEmbedding(num_codes=8, width=16, seed=2).fit(instances)(instances)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(one, two) and not torch.equal(one, other)


def test_a_node_hears_its_neighbours_by_their_weights():
    """By the equation at the head of localplug_experts.embedding, for the first variable."""
    embedding, mip = InstanceEmbedding(num_codes=2, width=4), program(0)
    embedding.layers = embedding.layers[:1]
    (S, T), at = embedding.layers[0], mip.edges[1] == 0
    own = torch.cat([torch.zeros(4), mip.variables[0]])
    weight = mip.weights[at]
    heard = (weight[:, None] * mip.constraints[mip.edges[0][at]]).sum(0) / weight.abs().sum()
    expected = (own @ S + torch.cat([heard, torch.zeros(6)]) @ T).relu()
    torch.testing.assert_close(embedding.nodes(mip)[6], expected)


def test_options_are_checked_and_fit_comes_first():
    with pytest.raises(ValueError, match=r"num_codes .* got 1; width .* got 0; passes .* got 0; decay .* got 2"):
        InstanceEmbedding(num_codes=1, width=0, passes=0, decay=2)
    with pytest.raises(ValueError, match="64 codes need at least as many nodes, the instances have 14"):
        InstanceEmbedding().fit([program(0)])
    with pytest.raises(RuntimeError, match="call fit"):
        InstanceEmbedding()([program(0)])
