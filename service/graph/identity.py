"""What tells one network from another: its operators and all its numbers; it does not know plans or files."""

import hashlib

import torch

from service.graph.program import Program


def fingerprint(program: Program, *meaning: object) -> str:
    """Return a hash that two networks share only where they answer alike.

    Args:
        program: The network.
        meaning: What else its answers depend on, each by what `repr` says of it.
    """
    told = hashlib.sha256(program.graph.code.encode())
    told.update(repr(meaning).encode())
    for name, tensor in sorted(program.graph.state_dict().items()):
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        told.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return told.hexdigest()
