"""Methods that differ from MeZO in their directions: of low rank, on a part of the weights, on some of the layers.

Options that all of them share:
    eps             width of the finite difference, in parameter units, > 0
    num_directions  q >= 1
    directions      distribution of z: a name such as "gaussian", "rademacher", "rank-1", or a localplug.Distribution
    parameters      what is trained: "all", "lora", names, masks, "smallest:0.2" (localplug.selection)
    backend         how perturbed weights are evaluated (localplug.Perturbation)
"""

from localplug import Distribution, ZerothOrder, distribution
from localplug.selection import Parameters
from localplug_zo.low_rank import LOZO, SubZero, TeZO
from localplug_zo.sparse import Coordinates, Layers
from localplug_zo.two_sided import TwoSided
from localplug_zo.updates import SGD

Directions = str | Distribution


def lozo(
    eps: float = 1e-3,
    num_directions: int = 1,
    rank: int = 2,
    refresh: int = 50,
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """LOZO: z = U V^T / sqrt(r), V kept for `refresh` steps (arXiv:2410.07698).

    Args:
        eps, num_directions, parameters, backend: see the head of this file.
        rank: r >= 1.
        refresh: nu, steps >= 1.

    Example:
        >>> import localplug
        >>> localplug.method("lozo", rank=4).cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions), SGD(), LOZO(rank, refresh), parameters=parameters, backend=backend, name="lozo"
    )


def subzero(
    eps: float = 1e-3,
    num_directions: int = 1,
    rank: int = 8,
    refresh: int = 1000,
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """SubZero: z = sqrt(mn) / r U Z0 V^T, U and V orthonormal and kept for `refresh` steps (arXiv:2410.08989).

    Args:
        eps, num_directions, parameters, backend: see the head of this file.
        rank: r >= 1.
        refresh: T0, steps >= 1.

    Example:
        >>> import localplug
        >>> localplug.method("subzero", rank=4).cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        SGD(),
        SubZero(rank, refresh),
        parameters=parameters,
        backend=backend,
        name="subzero",
    )


def tezo(
    eps: float = 1e-3,
    num_directions: int = 1,
    rank: int = 24,
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """TeZO: z = U diag(tau) V^T / sqrt(r), only tau new in each step (arXiv:2501.19057).

    Args:
        eps, num_directions, parameters, backend: see the head of this file.
        rank: r >= 1.

    Example:
        >>> import localplug
        >>> localplug.method("tezo", rank=8).cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions), SGD(), TeZO(rank), parameters=parameters, backend=backend, name="tezo"
    )


def sparse_mezo(
    eps: float = 1e-3,
    num_directions: int = 1,
    keep: float = 0.2,
    directions: Directions = "gaussian",
    backend: str = "auto",
) -> ZerothOrder:
    """Sparse-MeZO: mezo on the weights of smallest magnitude in each matrix (arXiv:2402.15751).

    Args:
        eps, num_directions, directions, backend: see the head of this file.
        keep: share of each matrix that is trained, in (0, 1]; the paper's sparsity is 1 - keep.

    Example:
        >>> import localplug
        >>> localplug.method("sparse-mezo", keep=0.8).cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        SGD(),
        distribution(directions),
        parameters=f"smallest:{keep}",
        backend=backend,
        name="sparse-mezo",
    )


def random_sparse_zo(
    eps: float = 1e-3,
    num_directions: int = 1,
    keep: float = 0.2,
    refresh: int = 1,
    directions: Directions = "gaussian",
    backend: str = "auto",
) -> ZerothOrder:
    """ZO-Bench's sparsity: mezo on a random share of the weights, drawn anew every `refresh` steps (arXiv:2402.11592).

    Args:
        eps, num_directions, directions, backend: see the head of this file.
        keep: share that is trained, in (0, 1].
        refresh: steps >= 1.

    Example:
        >>> import localplug
        >>> localplug.method("random-sparse-zo", keep=0.8).cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        SGD(),
        distribution(directions),
        parameters=f"random:{keep}:{refresh}",
        backend=backend,
        name="random-sparse-zo",
    )


def lezo(
    eps: float = 1e-3,
    num_directions: int = 1,
    keep: float = 0.25,
    directions: Directions = "gaussian",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """LeZO: mezo on a random subset of the layers in each step, and on what lies outside them (arXiv:2410.09823).

    Args:
        eps, num_directions, directions, parameters, backend: see the head of this file.
        keep: share of the layers in (0, 1), or their number.

    Example:
        >>> import localplug
        >>> localplug.method("lezo", keep=0.5).cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        SGD(),
        Layers(keep, "random", True, distribution(directions)),
        parameters=parameters,
        backend=backend,
        name="lezo",
    )


def block_zo(
    eps: float = 1e-3,
    num_directions: int = 1,
    blocks: int = 1,
    directions: Directions = "gaussian",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """ZO-Bench's block-wise ZO: the layers take turns, `blocks` of them in each step (arXiv:2402.11592).

    Args:
        eps, num_directions, directions, parameters, backend: see the head of this file.
        blocks: layers in one step, >= 1.

    Example:
        >>> import localplug
        >>> localplug.method("block-zo", blocks=2).cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        SGD(),
        Layers(blocks, "cyclic", False, distribution(directions)),
        parameters=parameters,
        backend=backend,
        name="block-zo",
    )


def cge(eps: float = 1e-3, num_directions: int = 16, parameters: Parameters = None) -> ZerothOrder:
    """Coordinate-wise gradient estimate: (L(theta + eps e_i) - L(theta - eps e_i)) / (2 eps) for q coordinates a step.

    With q = d it is the whole finite-difference gradient; for heads, adapters and tests. The finite difference along one
    coordinate moves it by eps sqrt(d), as every direction here has length sqrt(d). With sparsity it trains networks in
    DeepZero, arXiv:2310.02025.

    Args:
        eps, num_directions, parameters: see the head of this file.

    Example:
        >>> import localplug
        >>> localplug.method("cge", num_directions=8).cost
        '16 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions), SGD(), Coordinates(num_directions), parameters=parameters, name="cge"
    )
