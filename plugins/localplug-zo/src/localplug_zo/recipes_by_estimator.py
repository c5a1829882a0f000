"""Methods that differ from MeZO in their estimator: what the probes are, and what becomes of them.

Options that all of them share:
    eps             width of the finite difference, in parameter units, > 0
    num_directions  q >= 1
    directions      distribution of z: a name such as "gaussian", "rademacher", "rank-1", or a localplug.Distribution
    parameters      what is trained: "all", "lora", names, masks, "smallest:0.2" (localplug.selection)
    backend         how perturbed weights are evaluated (localplug.Perturbation)
"""

from typing import Literal

from localplug import Distribution, ZerothOrder, distribution
from localplug.selection import Parameters
from localplug_zo.forward_gradient import ForwardGradient
from localplug_zo.hizoo import DiagonalCurvature, HiZOOUpdate
from localplug_zo.one_sided import OneSided, Population, Residual
from localplug_zo.svrg import SVRG, AnchoredSGD
from localplug_zo.two_sided import Curvature
from localplug_zo.updates import SGD

Directions = str | Distribution


def fzoo(
    eps: float = 1e-3,
    num_directions: int = 8,
    directions: Directions = "rademacher",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """FZOO: theta <- theta - lr (1/q) sum_j (L_j - L_0) / std(L) z_j, one-sided, random signs (arXiv:2506.09034).

    Args:
        eps, directions, parameters, backend: see the head of this file.
        num_directions: q >= 2; 8 in the paper.

    Example:
        >>> import localplug
        >>> localplug.method("fzoo", num_directions=8).cost
        '9 forward passes a batch'
    """
    return ZerothOrder(
        OneSided(eps, num_directions, normalized=True),
        SGD(),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="fzoo",
    )


def es(
    eps: float = 1e-3,
    num_directions: int = 30,
    directions: Directions = "gaussian",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """Evolution strategies: theta <- theta - lr (1/q) sum_j zscore(L_j) z_j (Salimans et al., 2017; arXiv:2509.24372).

    Args:
        eps: sigma, in parameter units, > 0.
        directions, parameters, backend: see the head of this file.
        num_directions: q >= 2, the population.

    Example:
        >>> import localplug
        >>> localplug.method("es", num_directions=8).cost
        '8 forward passes a batch'
    """
    return ZerothOrder(
        Population(eps, num_directions),
        SGD(),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="es",
    )


def curvature_zo(
    eps: float = 1e-4,
    num_directions: int = 16,
    power: float = 0.1,
    floor: float = 1.0,
    directions: Directions = "rademacher",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """1.5-SPSA: slopes divided by max(floor, |curvature|^power), many random signs, large batches (Chaubard et al., 2026).

    Args:
        eps, num_directions, directions, parameters, backend: see the head of this file.
        power: alpha of the paper, >= 0.
        floor: lambda of the paper, > 0.

    Example:
        >>> import localplug
        >>> localplug.method("1.5-spsa", num_directions=2).cost
        '5 forward passes a batch'
    """
    return ZerothOrder(
        Curvature(eps, num_directions, power, floor),
        SGD(),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="1.5-spsa",
    )


def residual_zo(
    eps: float = 1e-2, directions: Directions = "gaussian", parameters: Parameters = None, backend: str = "auto"
) -> ZerothOrder:
    """Residual feedback: this step's perturbed loss against the last step's, one evaluation a step (Zhang et al., 2022).

    Args:
        eps, directions, parameters, backend: see the head of this file.

    Example:
        >>> import localplug
        >>> localplug.method("residual-zo", eps=0.1).cost
        '1 forward pass a batch'
    """
    return ZerothOrder(
        Residual(eps), SGD(), distribution(directions), parameters=parameters, backend=backend, name="residual-zo"
    )


def svrg(
    eps: float = 1e-3,
    period: int = 20,
    anchor_batches: int = 4,
    directions: Directions = "gaussian",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """MeZO-SVRG: estimates corrected by an anchor's (arXiv:2404.08080); see localplug_zo.svrg.

    Args:
        eps, directions, parameters, backend: see the head of this file.
        period: steps from one anchor to the next.
        anchor_batches: batches that the anchor's estimate is averaged over; the weights rest while it is measured.

    Example:
        >>> import localplug
        >>> localplug.method("svrg", period=6).cost
        '4 forward passes a batch, 2 at the anchor'
    """
    anchored = SVRG(eps, period, anchor_batches)
    return ZerothOrder(
        anchored, AnchoredSGD(anchored), distribution(directions), parameters=parameters, backend=backend, name="svrg"
    )


def hizoo(
    eps: float = 1e-3,
    num_directions: int = 1,
    alpha: float = 1e-6,
    limits: tuple[float, float] = (1e-2, 1e2),
    parameters: Parameters = None,
) -> ZerothOrder:
    """HiZOO: z = y / sqrt(H), and H a running mean of the curvature's diagonal (arXiv:2402.15173); see localplug_zo.hizoo.

    Args:
        eps, num_directions, parameters: see the head of this file.
        alpha: share of a new measurement in H, in [0, 1); 1e-8 to 1e-4 in the paper.
        limits: between which H is kept; (0, inf) leaves it alone.

    Example:
        >>> import localplug
        >>> localplug.method("hizoo", num_directions=2).cost
        '5 forward passes a batch'
    """
    curvature = Curvature(eps, num_directions, power=0.0)
    return ZerothOrder(
        curvature,
        HiZOOUpdate(curvature, alpha, limits),
        DiagonalCurvature(),
        parameters=parameters,
        backend="scratch",
        name="hizoo",
    )


def forward_grad(
    num_directions: int = 1,
    attention: Literal["exact", "kernel"] = "exact",
    directions: Directions = "gaussian",
    parameters: Parameters = None,
) -> ZerothOrder:
    """Forward gradient: c_j = <grad L, z_j> by forward-mode differentiation, no eps (Baydin et al., arXiv:2202.08587).

    Args:
        num_directions, directions, parameters: see the head of this file.
        attention: "exact" computes attention by plain matrix products, "kernel" runs torch's attention kernel as it is and
            takes the tangent of that one operation from a central difference.

    Example:
        >>> import localplug
        >>> localplug.method("forward-grad", num_directions=4).cost
        '4 forward passes a batch'
    """
    return ZerothOrder(
        ForwardGradient(num_directions, attention),
        SGD(),
        distribution(directions),
        parameters=parameters,
        name="forward-grad",
    )
