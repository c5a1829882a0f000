"""Mixed-integer programs as graphs: constraints and variables as nodes, with FORGE's ten features, coefficients as edges.

    constraint node:   is it =, <=, >= (one of three), its right-hand side
    variable node:     is it continuous, binary, integer (one of three), objective coefficient, lower bound, upper bound
    edge:              constraint i - variable j, weight A_ij where that is not 0

Numbers are scaled to [0, 1] over the instance (min-max); bounds that are infinite count as the largest finite number. A ranged
row (both sides finite) becomes two rows. Reference: FORGE: Foundational Optimization Representations from Graph Embeddings,
TMLR 2026, arXiv:2508.20330.

Shapes: C constraints, V variables, Z edges.
"""

import dataclasses
import os
from typing import final

import torch
from torch import Tensor


@final
@dataclasses.dataclass
class MIP:
    """The graph of one instance.

    constraints: (C, 4) features in [0, 1], float32.
    variables:   (V, 6) features in [0, 1], float32.
    edges:       (2, Z) numbers of constraint and variable.
    weights:      (Z,) the coefficients as they are, float32.
    """

    constraints: Tensor
    variables: Tensor
    edges: Tensor
    weights: Tensor


def read_mip(path: "str | os.PathLike[str]") -> MIP:
    """The graph of an instance in a file that HiGHS reads: .lp, .mps, .mps.gz.

    Args:
        path: of the file.

    Raises:
        ImportError: highspy is not installed.
        ValueError: HiGHS cannot read the file, or there is no constraint in it.

    Example:
        >>> import pathlib, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = pathlib.Path(folder.name, "tiny.lp")
        >>> _ = path.write_text("maximize 2 x + 3 y\\nsubject to x + y <= 4\\nbinary\\nx\\ngeneral\\ny\\nend\\n")
        >>> found = read_mip(path)
        >>> folder.cleanup()
        >>> found.constraints.shape, found.variables.shape, found.weights.tolist()
        (torch.Size([1, 4]), torch.Size([2, 6]), [1.0, 1.0])

    Reference: see the head of this file.
    """
    try:
        import highspy
    except ImportError as error:
        raise ImportError("reading integer programs needs HiGHS: pip install localplug-experts[mip]") from error
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    if solver.readModel(os.fspath(path)) == highspy.HighsStatus.kError:
        raise ValueError(f"HiGHS cannot read {os.fspath(path)!r}; give a file in its LP or MPS format")
    lp = solver.getLp()
    if not lp.num_row_:
        raise ValueError(f"there is no constraint in {os.fspath(path)!r}")
    is_integer = [kind != highspy.HighsVarType.kContinuous for kind in lp.integrality_] or [False] * lp.num_col_
    matrix, edges = lp.a_matrix_, []
    is_by_row = matrix.format_ == highspy.MatrixFormat.kRowwise
    for line in range(lp.num_row_ if is_by_row else lp.num_col_):
        for at in range(matrix.start_[line], matrix.start_[line + 1]):
            edges.append((line, matrix.index_[at]) if is_by_row else (matrix.index_[at], line))
    weights = list(matrix.value_)[: len(edges)]
    return graph(
        torch.tensor(edges, dtype=torch.long).view(-1, 2).T,
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(list(lp.row_lower_), dtype=torch.float64),
        torch.tensor(list(lp.row_upper_), dtype=torch.float64),
        torch.tensor(list(lp.col_cost_), dtype=torch.float64),
        torch.tensor(list(lp.col_lower_), dtype=torch.float64),
        torch.tensor(list(lp.col_upper_), dtype=torch.float64),
        torch.tensor(is_integer),
    )


def graph(
    edges_2Z: Tensor,
    weights_Z: Tensor,
    row_lower_C: Tensor,
    row_upper_C: Tensor,
    cost_V: Tensor,
    lower_V: Tensor,
    upper_V: Tensor,
    is_integer_V: Tensor,
) -> MIP:
    """The graph of an instance  min cost x,  row_lower <= A x <= row_upper,  lower <= x <= upper.

    Args:
        edges_2Z, weights_Z: A: (constraint, variable) of each coefficient, and the coefficients.
        row_lower_C, row_upper_C: sides of the rows, infinite where there is none.
        cost_V, lower_V, upper_V: of the variables.
        is_integer_V: bool.

    Reference: see the head of this file.
    """
    big = 1e20  # HiGHS writes infinity so
    has_lower, has_upper = row_lower_C > -big, row_upper_C < big
    is_equal = has_lower & has_upper & (row_lower_C == row_upper_C)
    is_ranged = has_lower & has_upper & ~is_equal
    kind_C3 = torch.stack([is_equal, has_upper & ~is_equal, has_lower & ~has_upper], 1).double()
    side_C = torch.where(has_upper, row_upper_C, row_lower_C)
    second = torch.nonzero(is_ranged).flatten()  # the other side of a ranged row
    if len(second):
        kind_C3 = torch.cat([kind_C3, torch.tensor([[0.0, 0.0, 1.0]]).double().expand(len(second), 3)])
        side_C = torch.cat([side_C, row_lower_C[second]])
        number = torch.full((len(row_lower_C),), -1).index_copy_(
            0, second, len(row_lower_C) + torch.arange(len(second))
        )
        again = number[edges_2Z[0]] >= 0
        copied = torch.stack([number[edges_2Z[0][again]], edges_2Z[1][again]])
        edges_2Z, weights_Z = torch.cat([edges_2Z, copied], 1), torch.cat([weights_Z, weights_Z[again]])
    is_binary = is_integer_V & (lower_V == 0) & (upper_V == 1)
    kind_V3 = torch.stack([~is_integer_V, is_binary, is_integer_V & ~is_binary], 1).double()
    finite = [b[b.abs() < big] for b in (lower_V, upper_V)]
    top = max([float(b.abs().max()) for b in finite if len(b)], default=1.0)
    bounds = [_scaled(b.clamp(-top, top)) for b in (lower_V, upper_V)]
    variables = torch.cat([kind_V3, torch.stack([_scaled(cost_V), *bounds], 1)], 1)
    constraints = torch.cat([kind_C3, _scaled(side_C)[:, None]], 1)
    return MIP(constraints.float(), variables.float(), edges_2Z, weights_Z.float())


def _scaled(x: Tensor) -> Tensor:
    """To [0, 1]; zeros where all are equal."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low) if high > low else torch.zeros_like(x)
