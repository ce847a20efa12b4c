"""Kinds of networks that cannot be pruned as they are, told before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pruning.sparse_file import DTYPE_CODES


def check_kind(model: nn.Module) -> None:
    """Raise `ValueError`, one line that names the module or entry, for a network of which no part can be followed or
    stored.

    That is: scripted, traced or replicated networks, lazy modules without weights, and state dicts that hold something
    else than the network's parameters and buffers under their own names, or of a type that model files do not have.
    """
    for name, module in model.named_modules():
        label = repr(name) if name else "the network"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{label} is scripted or traced (torch.jit): give the Python module that it was made from")
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ValueError(f"{label} is a DataParallel on {len(module.device_ids)} devices: give its .module")
        for tensor_name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if is_lazy(tensor):
                kind = type(module).__name__
                raise ValueError(
                    f"{kind} {label} has no {tensor_name} before its first batch: run the network once on an example"
                )
    state = model.state_dict()
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for name, entry in state.items():
        if not isinstance(entry, Tensor):
            raise ValueError(
                f"state dict entry {name!r} is a {type(entry).__name__}, no tensor: model files here hold only tensors"
            )
    for name, tensor in state.items():
        if name not in own:
            raise ValueError(
                f"state dict entry {name!r} is no parameter or buffer: remove the hook or the extra state behind it"
            )
        if tensor.dtype not in DTYPE_CODES:
            raise ValueError(f"tensor {name!r} has type {tensor.dtype}, which model files here cannot hold")
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name not in state:
            raise ValueError(f"parameter {name!r} is not in the state dict: remove the hook that drops it")
