"""Zeroth-order fine-tuning for localplug: train with forward passes alone.

Methods: localplug_zo.mezo (its released code bit for bit in localplug_zo.strict), and localplug_zo.recipes_by_*, which compose
the parts: estimators in two_sided, one_sided and forward_gradient, distributions in low_rank and sparse, updates in updates;
hizoo, svrg and conservative hold parts that belong together.
"""

import localplug


@localplug.hookimpl
def localplug_methods():
    return {
        "mezo": "localplug_zo.mezo:MeZO",
        "zo": "localplug_zo.recipes_by_update:zo",
        "zo-sgd": "localplug_zo.recipes_by_update:zo_sgd",
        "zo-sgd-momentum": "localplug_zo.recipes_by_update:zo_sgd_momentum",
        "zo-sgd-sign": "localplug_zo.recipes_by_update:zo_sgd_sign",
        "zo-sgd-conservative": "localplug_zo.recipes_by_update:zo_sgd_conservative",
        "zo-adam": "localplug_zo.recipes_by_update:zo_adam",
        "zo-scalar-adam": "localplug_zo.recipes_by_update:zo_scalar_adam",
        "forward-grad": "localplug_zo.recipes_by_estimator:forward_grad",
        "hizoo": "localplug_zo.recipes_by_estimator:hizoo",
        "lozo": "localplug_zo.recipes_by_direction:lozo",
        "subzero": "localplug_zo.recipes_by_direction:subzero",
        "tezo": "localplug_zo.recipes_by_direction:tezo",
        "sparse-mezo": "localplug_zo.recipes_by_direction:sparse_mezo",
        "random-sparse-zo": "localplug_zo.recipes_by_direction:random_sparse_zo",
        "lezo": "localplug_zo.recipes_by_direction:lezo",
        "block-zo": "localplug_zo.recipes_by_direction:block_zo",
        "addax": "localplug_zo.hybrid:Addax",
        "elastic-zo": "localplug_zo.hybrid:Elastic",
        "fzoo": "localplug_zo.recipes_by_estimator:fzoo",
        "svrg": "localplug_zo.recipes_by_estimator:svrg",
        "es": "localplug_zo.recipes_by_estimator:es",
        "1.5-spsa": "localplug_zo.recipes_by_estimator:curvature_zo",
        "residual-zo": "localplug_zo.recipes_by_estimator:residual_zo",
        "cge": "localplug_zo.recipes_by_direction:cge",
    }


@localplug.hookimpl
def localplug_estimators():
    return {
        "two-sided": "localplug_zo.two_sided:TwoSided",
        "one-sided": "localplug_zo.one_sided:OneSided",
        "residual": "localplug_zo.one_sided:Residual",
        "population": "localplug_zo.one_sided:Population",
        "curvature": "localplug_zo.two_sided:Curvature",
        "forward-gradient": "localplug_zo.forward_gradient:ForwardGradient",
    }


@localplug.hookimpl
def localplug_perturbations():
    return {
        "gaussian": "localplug.distributions:Gaussian",
        "rademacher": "localplug.distributions:Rademacher",
        "sphere": "localplug_zo.sparse:Sphere",
        "rank-1": "localplug_zo.low_rank:LowRank",
        "lozo": "localplug_zo.low_rank:LOZO",
        "subzero": "localplug_zo.low_rank:SubZero",
        "tezo": "localplug_zo.low_rank:TeZO",
        "layers": "localplug_zo.sparse:Layers",
    }


@localplug.hookimpl
def localplug_objectives():
    return {"accuracy": "localplug.objectives:accuracy", "f1": "localplug.objectives:macro_f1"}


@localplug.hookimpl
def localplug_update_rules():
    return {
        "zo-sgd-sign": "localplug_zo.sign:SignSGD",
        "sgd": "localplug_zo.updates:SGD",
        "momentum": "localplug_zo.updates:Momentum",
        "adam": "localplug_zo.updates:Adam",
        "scalar": "localplug_zo.updates:Scalar",
        "sign": "localplug_zo.updates:Sign",
        "trainer": "localplug_zo.updates:Materialized",
        "trainer-streamed": "localplug_zo.updates:Streamed",
    }
