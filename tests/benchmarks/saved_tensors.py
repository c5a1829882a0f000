"""How much memory autograd holds: what it keeps for a backward pass, weights left out."""

import contextlib

import torch


@contextlib.contextmanager
def saved_bytes(model, *inputs):
    """Bytes that autograd holds at one time inside the `with`, those of weights and inputs left out: [peak]."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *inputs)}
    live, peak = {}, [0]  # storage -> [bytes, how often it is held]

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            entry = live.setdefault(self.key, [tensor.untyped_storage().nbytes(), 0])
            entry[1] += 1
            peak[0] = max(peak[0], sum(size for size, _ in live.values()))

        def __del__(self):
            entry = live[self.key]
            entry[1] -= 1
            if not entry[1]:
                del live[self.key]

    def pack(tensor):
        return tensor if tensor.untyped_storage().data_ptr() in own else Kept(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda k: k.tensor if isinstance(k, Kept) else k):
        yield peak
