"""Forward learning of graph neural networks for localplug: every layer of a PyTorch Geometric model learns by itself.

graph-sf (localplug_graph.single_forward), graph-ff-la (localplug_graph.label_appending), graph-ff-vn
(localplug_graph.virtual_node_forward_forward), graph-top2loss (localplug_graph.top_to_loss), graph-top2input
(localplug_graph.top_to_input). Reference of all: Park, Wang, Simoulin, Yang, Yang, Rossi, Trivedi, Ahmed: Forward Learning
of Graph Neural Networks, ICLR 2024, arXiv:2403.11004.

What all of them expect. The model's layers are modules that are called with (x, edge_index), positional or by name, such as
GCNConv, SAGEConv and GATConv, and maybe with one weight for each edge; or with x alone, such as Linear. Targets are class
labels (N,) of all nodes, with -100 for every node whose label must not be learned from: a label that is handed over is
learned, whatever mask the trainer's own loss has. The last layer (a GCNConv or Linear to K outputs) learns from the trainer's
own loss, of a plain forward pass. localplug_graph.link_forward has LinkForward, the same for pairs of nodes, by its class.
"""

import localplug


@localplug.hookimpl
def localplug_methods():
    return {
        "graph-sf": "localplug_graph.single_forward:SingleForward",
        "graph-ff-la": "localplug_graph.label_appending:LabelAppending",
        "graph-ff-vn": "localplug_graph.virtual_node_forward_forward:VirtualNodeForwardForward",
        "graph-top2loss": "localplug_graph.top_to_loss:TopToLoss",
        "graph-top2input": "localplug_graph.top_to_input:TopToInput",
    }
