"""Methods that differ from MeZO in their update, under the names of ZO-Bench; and `zo`, which composes any parts.

ZO-Bench: Zhang et al., arXiv:2402.11592.

g_hat = (1/q) sum_j c_j z_j. lr and weight_decay are those of the trainer's optimizer.

Options that all of them share:
    eps             width of the finite difference, in parameter units, > 0
    num_directions  q >= 1
    directions      distribution of z: a name such as "gaussian", "rademacher", "rank-1", or a localplug.Distribution
    parameters      what is trained: "all", "lora", names, masks, "smallest:0.2" (localplug.selection)
    backend         how perturbed weights are evaluated (localplug.Perturbation)
"""

from localplug import Distribution, Estimator, Update, ZerothOrder, distribution
from localplug import estimator as make_estimator
from localplug import update as make_update
from localplug.selection import Parameters
from localplug_zo.conservative import Candidates, ConservativeSGD
from localplug_zo.two_sided import TwoSided
from localplug_zo.updates import SGD, Adam, Momentum, Scalar, Sign

Directions = str | Distribution


def zo(
    estimator: str | Estimator = "two-sided",
    directions: Directions = "gaussian",
    update: str | Update = "sgd",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """Any estimator with any distribution and any update: theta <- update(theta, g_hat).

    Args:
        estimator: a name ("two-sided", "one-sided", "residual", "population", "curvature", "forward-gradient") or a
            localplug.Estimator, which carries its own options.
        directions, parameters, backend: see the head of this file.
        update: a name ("sgd", "momentum", "adam", "scalar", "sign", "trainer", "trainer-streamed") or a localplug.Update.

    Example:
        >>> import localplug
        >>> localplug.method("zo", estimator="one-sided", update="adam").cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        make_estimator(estimator),
        make_update(update),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="zo",
    )


def zo_sgd(
    eps: float = 1e-3,
    num_directions: int = 1,
    directions: Directions = "gaussian",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """ZO-SGD: theta <- theta - lr g_hat, two-sided (Ghadimi, Lan, 2013). The same method as mezo.

    Args:
        eps, num_directions, directions, parameters, backend: see the head of this file.

    Example:
        >>> import localplug
        >>> localplug.method("zo-sgd", num_directions=4).cost
        '8 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        SGD(),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="zo-sgd",
    )


def zo_sgd_momentum(
    eps: float = 1e-3,
    num_directions: int = 1,
    momentum: float = 0.9,
    window: int = 20,
    directions: Directions = "gaussian",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """ZO-SGD-MMT: theta <- theta - lr sum_k momentum^k g_hat_{t-k}, without a momentum buffer.

    Args:
        eps, num_directions, directions, parameters, backend: see the head of this file.
        momentum: in [0, 1).
        window: steps that are looked back on; each costs one sweep of noise.

    Example:
        >>> import localplug
        >>> localplug.method("zo-sgd-momentum", momentum=0.5).cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        Momentum(momentum, window),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="zo-sgd-momentum",
    )


def zo_sgd_sign(
    eps: float = 1e-3,
    num_directions: int = 1,
    directions: Directions = "gaussian",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """ZO-SGD-Sign: theta <- theta - lr sign(g_hat) (Liu, Chen, Chen, Hong, ICLR 2019).

    Args:
        eps, num_directions, directions, parameters, backend: see the head of this file.

    Example:
        >>> import localplug
        >>> localplug.method("zo-sgd-sign", num_directions=4).cost
        '8 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        Sign(),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="zo-sgd-sign",
    )


def zo_sgd_conservative(
    eps: float = 1e-3, directions: Directions = "gaussian", parameters: Parameters = None, backend: str = "auto"
) -> ZerothOrder:
    """ZO-SGD-Cons: the best of theta, theta - lr g z and theta + lr g z on the batch (ZO-Bench, arXiv:2402.11592).

    Args:
        eps, directions, parameters, backend: see the head of this file.

    Example:
        >>> import localplug
        >>> localplug.method("zo-sgd-conservative").cost
        '5 forward passes a batch'
    """
    return ZerothOrder(
        Candidates(eps),
        ConservativeSGD(),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="zo-sgd-conservative",
    )


def zo_adam(
    eps: float = 1e-3,
    num_directions: int = 1,
    betas: tuple[float, float] = (0.9, 0.999),
    delta: float = 1e-8,
    window: int = 10,
    directions: Directions = "gaussian",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """ZO-Adam: theta <- theta - lr m / (sqrt(v) + delta), both moments rebuilt from the window (AdaMeZO, arXiv:2605.00650).

    Args:
        eps, num_directions, directions, parameters, backend: see the head of this file.
        betas: decay of the first and the second moment, each in [0, 1).
        delta: > 0, in units of the gradient.
        window: steps that are looked back on; each costs one sweep of noise.

    Example:
        >>> import localplug
        >>> localplug.method("zo-adam", window=4).cost
        '2 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        Adam(betas, delta, window),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="zo-adam",
    )


def zo_scalar_adam(
    eps: float = 1e-3,
    num_directions: int = 1,
    beta: float = 0.99,
    directions: Directions = "gaussian",
    parameters: Parameters = None,
    backend: str = "auto",
) -> ZerothOrder:
    """One scalar second moment: theta <- theta - lr g_hat / (sqrt(v) + 1e-8), v a running mean of c^2 (arXiv:2605.03869).

    Args:
        eps, num_directions, directions, parameters, backend: see the head of this file.
        beta: decay of the mean, in [0, 1).

    Example:
        >>> import localplug
        >>> localplug.method("zo-scalar-adam", num_directions=4).cost
        '8 forward passes a batch'
    """
    return ZerothOrder(
        TwoSided(eps, num_directions),
        Scalar(beta),
        distribution(directions),
        parameters=parameters,
        backend=backend,
        name="zo-scalar-adam",
    )
