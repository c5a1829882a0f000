"""The questions localplug asks a plugin. Each is asked once, at the first need; no hook is called inside a step.

Every hook returns a dictionary {name: value}. A value is a class, a factory, or the string "module:attribute", which
is imported when the name is used: a plugin that answers with strings keeps `localplug plugins` from importing torch.
A name that two distributions give is refused when it is asked for.
"""

import pluggy

PROJECT = "localplug"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def localplug_methods():
    """Give ready algorithms, under the name a user types in `LocalPlugCallback("mezo")`.

    Returns {name: class or factory of localplug.Method}; its keyword arguments are the user's options.
    Asked when a method is looked up by name. Used by localplug-zo (mezo, zo, zo-sgd, zo-sgd-momentum, zo-sgd-sign,
    zo-sgd-conservative, zo-adam, zo-scalar-adam, forward-grad, hizoo, lozo, subzero, tezo, sparse-mezo,
    random-sparse-zo, lezo, block-zo, addax, elastic-zo, fzoo, svrg, es, 1.5-spsa, residual-zo, cge), localplug-tpsgd
    (tpsgd, drtp, dfa, fa), localplug-forward (ff, mono-forward, cafo, pepita, softhebb, phyll), localplug-noprop (noprop-dt,
    noprop-ct, noprop-fm), localplug-greedy (predsim, dgl, infopro), localplug-graph (graph-sf, graph-ff-la, graph-ff-vn,
    graph-top2loss, graph-top2input), localplug-select (sara), localplug-credit (lfp), localplug-experts (vq)
    and localplug-ternary (ternary-signs).

    Example:
        @localplug.hookimpl
        def localplug_methods():
            return {"mezo": "localplug_zo.mezo:MeZO"}
    """


@hookspec
def localplug_estimators():
    """Give estimators: how the losses at perturbed weights become an estimate of the gradient.

    Returns {name: class or factory of localplug.Estimator}; its keyword arguments are the user's options.
    Asked by `localplug.estimator(name)`, which the method `zo` calls for its option `estimator`. Used by localplug-zo
    (two-sided, one-sided, residual, population, curvature, forward-gradient).

    Example:
        @localplug.hookimpl
        def localplug_estimators():
            return {"two-sided": "localplug_zo.two_sided:TwoSided"}
    """


@hookspec
def localplug_perturbations():
    """Give distributions of random directions: what the weights are perturbed along.

    Returns {name: class or factory of localplug.Distribution}; its keyword arguments are the user's options.
    Asked by `localplug.distribution(name)`, which zeroth-order methods call for their option `directions`. Used by
    localplug-zo (gaussian, rademacher, sphere, rank-1, lozo, subzero, tezo, layers).

    Example:
        @localplug.hookimpl
        def localplug_perturbations():
            return {"rank-1": "localplug_zo.low_rank:LowRank"}
    """


@hookspec
def localplug_selectors():
    """Give selectors: which elements of the weights are trained, and when that is decided anew.

    Returns {name: class or factory of localplug.Selector}; its keyword arguments are the user's options.
    Asked by `localplug.selector(name)`, and by the option `parameters="name:0.1"` of zeroth-order methods, where numbers stand
    for the first of those options. Used by localplug-select (sara, magnitude).

    Example:
        @localplug.hookimpl
        def localplug_selectors():
            return {"sara": "localplug_select.sara:SaRA"}
    """


@hookspec
def localplug_target_generators():
    """Give generators of local targets: what a unit of the network should produce for a label.

    Returns {name: class of localplug.TargetGenerator}; generate(labels, output, ...) gives a tensor like output.
    Asked when a layer-local method looks its `target` up. Used by localplug-tpsgd (projection).

    Example:
        @localplug.hookimpl
        def localplug_target_generators():
            return {"projection": "localplug_tpsgd.projection:TargetProjection"}
    """


@hookspec
def localplug_local_losses():
    """Give local losses: how far a unit's output is from its local target.

    Returns {name: callable(output, target) -> scalar tensor}, or a class of torch.nn.Module that is one.
    Asked when a layer-local method looks its `loss` up. Used by localplug-tpsgd (l1, l2).

    Example:
        @localplug.hookimpl
        def localplug_local_losses():
            return {"l2": "localplug_tpsgd.losses:l2"}
    """


@hookspec
def localplug_objectives():
    """Give objectives: scores of a batch that have no gradient, and are raised in the place of the loss.

    Returns {name: callable}, which takes one or more of `outputs`, `batch` and `model` by name and gives a number; see
    localplug.Objective.
    Asked by `localplug.objective(name)`, which `localplug.attach` and the trainer integrations call for their option
    `objective`. Used by localplug-zo (accuracy, f1) and localplug-rewards (ot-samples, ot-tokens).

    Example:
        @localplug.hookimpl
        def localplug_objectives():
            return {"accuracy": "localplug.objectives:accuracy"}
    """


@hookspec
def localplug_update_rules():
    """Give update rules: how an estimate of the gradient changes the weights.

    Returns {name: class}. A torch.optim.Optimizer reads p.grad like any optimizer: hand it to your trainer and let a method
    materialise its estimate with update="trainer". A localplug.Update changes the weights chunk by chunk along directions
    that are made again.
    Asked by `localplug.update_rule(name)` for an optimizer, and by `localplug.update(name)`, which zeroth-order methods call
    for their option `update`, for an Update. Used by localplug-zo (zo-sgd-sign, sgd, momentum, adam, scalar, sign, trainer,
    trainer-streamed), localplug-select (low-rank) and localplug-updates (lion, lion-seeds, prodigy, d-adaptation,
    schedule-free, m-fac).

    Example:
        @localplug.hookimpl
        def localplug_update_rules():
            return {"zo-sgd-sign": "localplug_zo.sign:SignSGD"}
    """


@hookspec
def localplug_solvers():
    """Give solvers: they make a network from the whole data set at once, without steps.

    Returns {name: class or factory}; its keyword arguments are the user's options, and what it makes is called as
    solver(inputs, targets).
    Asked by `localplug.solver(name)`. Used by localplug-convex (relu-admm, relu-scp) and
    localplug-exact (relu-ntk, relu-readout).

    Example:
        @localplug.hookimpl
        def localplug_solvers():
            return {"relu-admm": "localplug_convex.admm:ADMM"}
    """


@hookspec
def localplug_quantizers():
    """Give ternary quantizers: how the weights of a layer become codes in {-1, 0, 1} and scales.

    Returns {name: class or factory of localplug.Quantizer}; it takes `group_size`, and its other keyword arguments are the
    user's options.
    Asked by `localplug.quantizer(name)`, which localplug-ternary's `TernaryConfig(method=name)` calls. Used by
    localplug-ternary (tequila, absmean, twn, sherry, annealed).

    Example:
        @localplug.hookimpl
        def localplug_quantizers():
            return {"tequila": "localplug_ternary.tequila:Tequila"}
    """


@hookspec
def localplug_tasks():
    """Give tasks: a model, its examples in three parts, a loss and a quality, on which methods are compared.

    Returns {name: class or factory of localplug.Task}; it may take `data`, the user's folder of data sets, and its other
    keyword arguments are the user's options.
    Asked by `localplug.task(name)`, which `localplug bench` calls. Used by localplug-bench (digits, vowels, mnist,
    fashion-mnist, cifar10, cora, char-lm, sst2, rte, trec, boolq, permutation), localplug-exact (bfs, bellman-ford) and
    localplug-rewards (linear-models).

    Example:
        @localplug.hookimpl
        def localplug_tasks():
            return {"digits": "localplug_bench.small_tables:Digits"}
    """


@hookspec
def localplug_commands():
    """Give subcommands of the `localplug` command line.

    Returns {name: callable(list of argument strings) -> exit status}. Asked when the command line does not know the
    word itself. Used by localplug-transformers (demo), localplug-ternary (export,
    ternarize), localplug-blackbox (propose) and localplug-bench (bench, report).

    Example:
        @localplug.hookimpl
        def localplug_commands():
            return {"demo": "localplug_transformers.demo:main"}
    """
