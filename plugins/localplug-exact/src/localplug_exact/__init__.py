"""Does a method learn a rule or a table? Tasks with an exact answer, and networks that have it without being trained.

bfs, bellman-ford (localplug_exact.node_update): the step of a shortest-path algorithm, learned on small graphs, run on
larger ones. relu-ntk, relu-readout (localplug_exact.wide): what wide networks learn, in closed form.
localplug_exact.permutation: what that means for a permutation of bits, the task `permutation` of localplug-bench.
localplug_exact.compiled: networks that are right by construction. References: arXiv:2502.16763 (exact learning of
permutations), arXiv:2505.18623 (neural compilation).
"""

import localplug


@localplug.hookimpl
def localplug_tasks():
    return {
        "bfs": "localplug_exact.node_update:BreadthFirst",
        "bellman-ford": "localplug_exact.node_update:BellmanFord",
    }


@localplug.hookimpl
def localplug_solvers():
    return {"relu-ntk": "localplug_exact.wide:InfinitelyWide", "relu-readout": "localplug_exact.wide:Readouts"}
