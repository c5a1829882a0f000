"""Rewards without a gradient, for zeroth-order training of whatever writes or draws.

Optimal transport between what is generated and what it should be like, after PISCES (arXiv:2602.01624): ot-samples
(localplug_rewards.distribution), ot-tokens (localplug_rewards.tokens), and the similarity after an optimal map
(localplug_rewards.mapped). Optimization models that a solver verifies, after OptiBench (arXiv:2407.09887) and OptMATH
(arXiv:2502.11102): localplug_rewards.verifying judges a text, localplug_rewards.solved makes it an objective, linear-models
(localplug_rewards.writing) is a task for the bench.
"""

import localplug


@localplug.hookimpl
def localplug_objectives():
    return {"ot-samples": "localplug_rewards.distribution:samples", "ot-tokens": "localplug_rewards.tokens:tokens"}


@localplug.hookimpl
def localplug_tasks():
    return {"linear-models": "localplug_rewards.writing:LinearModels"}
