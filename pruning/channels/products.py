"""What products do to labels: convolutions, linear layers, attention, embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pruning.channels.call import Call
from pruning.channels.labels import Axes, compacted, narrowed, varies

TWO_KINDS = "a product has two kinds of channels"
BIASED = "numbers that differ along another dimension are added to its channels"
COMPUTED = "the weight that its channels meet is computed from other tensors"


def convolution(call: Call) -> Tensor | None:
    x, weight, bias, transposed, groups = (*call.args[:3], call.args[6], call.args[8])
    found, kernel = call.of(x), call.raw(weight)
    inputs = None
    if found is not None and any(varies(found, dim) for dim in range(found.dim())):
        inputs = call.labels.join_along(found, 0, *range(2, found.dim())).reshape(-1)
    if inputs is not None and groups == x.shape[1] == call.out.shape[1] and _is_fixed(kernel):
        call.hint(inputs, "its channels meet a weight of fixed size")
        return inputs.view(1, -1, *(1,) * (call.out.dim() - 2)).expand(call.out.shape)
    rows = _computed_rows(call, kernel) if groups == 1 and not transposed else None
    if rows is not None:
        call.block(inputs, COMPUTED)
        if (of_bias := call.of(bias)) is not None:
            call.labels.join(rows, of_bias)
        return _fresh(call, rows).view(1, -1, *(1,) * (call.out.dim() - 2)).expand(call.out.shape)
    if not isinstance(kernel, Axes) or kernel.dims != tuple(range(weight.dim())) or _is_computed(call, kernel):
        call.block(call.of(weight), COMPUTED)
        call.block(inputs, COMPUTED)
        return None
    of_outputs, of_inputs = int(transposed), 1 - int(transposed)
    if groups == x.shape[1] and weight.shape[0] == groups and weight.shape[1] == 1 and groups > 1:
        of_outputs, of_inputs = 0, 0  # depthwise: one dimension has both
    elif groups > 1:
        for dim in (0,):
            local = kernel.labels[dim].view(groups, -1)
            call.labels.join_along(local, 0)
    rows, columns = kernel.labels[of_outputs], kernel.labels[of_inputs]
    channels = call.out.shape[1]
    outputs = rows if len(rows) == channels else rows.repeat(channels // len(rows))
    if inputs is not None:
        call.labels.join(
            inputs, columns if len(columns) == len(inputs) else columns.repeat(len(inputs) // len(columns))
        )
    call.notes.emitted.setdefault(kernel.name, set()).add(of_outputs)
    if (of_bias := call.of(bias)) is not None:
        call.labels.join(outputs, of_bias)
    return _fresh(call, outputs).view(1, -1, *(1,) * (call.out.dim() - 2)).expand(call.out.shape)


def _computed_rows(call: Call, kernel: Axes | Tensor | None) -> Tensor | None:
    """Labels of the rows of a weight that is computed row by row from another of the same shape, as in weight
    standardisation.

    A row leaves with the row that it is computed from. None for any other weight.
    """
    if not isinstance(kernel, Tensor) or isinstance(kernel, Axes):
        return None
    roots = call.labels.roots(kernel)
    name = call.notes.tensors.computed_from(roots)
    if name is None or [dim for dim in range(roots.dim()) if varies(roots, dim)] != [0]:
        return None
    if call.notes.tensors.shape(name) != tuple(roots.shape):
        return None
    call.notes.emitted.setdefault(name, set()).add(0)
    return narrowed(roots).reshape(len(roots), -1)[:, 0]


def _is_fixed(kernel: Axes | Tensor | None) -> bool:
    """Whether nothing in the weight can leave, as in a blur whose weight is constant or repeated for each channel."""
    if isinstance(kernel, Axes):
        return False
    return kernel is None or not any(varies(kernel, dim) for dim in range(kernel.dim()))


def _fresh(call: Call, outputs: Tensor) -> Tensor:
    """New labels for what leaves with these indices of a weight."""
    found = call.labels.new(*outputs.shape)
    call.labels.join(found, outputs)
    return found


def _is_computed(call: Call, weight: Axes) -> bool:
    """Whether something else was computed from the weight before, such as its norm."""
    return weight.name in call.notes.computed


def _sides(call: Call, value: Tensor, inner: int) -> tuple[Tensor | None, Tensor | None]:
    """Labels along the summed dimension and along the other one of a matrix; None if they are the same."""
    known = call.raw(value)
    if isinstance(known, Axes) and _is_computed(call, known):
        known = call.of(value)
        call.block(known, COMPUTED)
    if isinstance(known, Axes):
        call.notes.emitted.setdefault(known.name, set()).add(known.dims[1 - inner])
        return known.labels[inner], _fresh(call, known.labels[1 - inner])
    if known is None:
        return None, None
    if varies(known, inner):
        return call.labels.join_along(known, 1 - inner).reshape(-1), None
    return None, known.select(inner, 0) if varies(known, 1 - inner) else None


def _product(call: Call, first: Tensor, second: Tensor, biased: bool = False) -> Tensor | None:
    """Labels of a matrix product; summed channels leave together with those they are multiplied by.

    Args:
        biased: a bias is added in the same operation.
    """
    running = call.notes.running  # a linear layer may also add its bias later
    biased |= running is not None and isinstance(running.module, nn.Linear) and running.module.bias is not None
    inner, rows = _sides(call, first, 1)
    of_second, columns = _sides(call, second, 0)
    if inner is not None and of_second is not None:
        call.labels.join(inner, of_second)
    elif inner is not None or of_second is not None:
        call.hint(inner if inner is not None else of_second, "its channels are multiplied by a tensor of fixed size")
    if rows is not None and columns is not None and biased:
        call.block(rows, BIASED)
    if rows is not None and columns is not None and call.labels.stays(rows):
        rows = None  # channels that stay whole, such as those of an MLP-Mixer
    if rows is not None and columns is not None:
        call.block(columns, TWO_KINDS)
        if not isinstance(call.raw(second), Axes):
            call.block(rows, TWO_KINDS)
            return None
        columns = None
    if columns is not None:
        return columns.expand(first.shape[0], second.shape[1])
    return None if rows is None else rows.unsqueeze(1).expand(first.shape[0], second.shape[1])


def product_of_two(call: Call) -> Tensor | None:
    return _product(call, *call.args[:2])


def product_and_sum(call: Call) -> Tensor | None:
    result, bias = _product(call, call.args[1], call.args[2], biased=True), call.of(call.args[0])
    if result is None or bias is None:
        return result if bias is None else bias.expand(call.out.shape)
    if varies(result, 1):
        call.labels.join(result, bias)
    return result


def linear(call: Call) -> Tensor | None:
    x, weight, bias = call.args[0], call.args[1], call.argument(2, "bias")
    known, found = call.raw(weight), call.of(x)
    if not isinstance(known, Axes):
        raise ValueError("a computed weight")
    outputs, inputs = known.labels
    call.notes.emitted.setdefault(known.name, set()).add(known.dims[0])
    if found is not None and varies(found, found.dim() - 1):
        call.labels.join(call.labels.join_along(found, *range(found.dim() - 1)).reshape(-1), inputs)
    elif found is not None and any(varies(found, dim) for dim in range(found.dim())):
        call.block(outputs, TWO_KINDS)
        return found.narrow(-1, 0, 1).expand(call.out.shape)
    if (of_bias := call.of(bias)) is not None:
        call.labels.join(outputs, of_bias)
    return _fresh(call, outputs).expand(call.out.shape)


def batched_product(call: Call) -> Tensor | None:
    first, second = call.of(call.args[0]), call.of(call.args[1])
    return _batched(call, first, second)


def _batched(call: Call, first: Tensor | None, second: Tensor | None) -> Tensor | None:
    inner = None
    rows = columns = None
    if first is not None and varies(first, -1 % first.dim()):
        inner = call.labels.join_along(first, -2).transpose(-1, -2)
    elif first is not None and any(varies(first, dim) for dim in range(first.dim())):
        rows = first.narrow(-1, 0, 1)
    if second is not None and varies(second, second.dim() - 2):
        line = call.labels.join_along(second, -1)
        if inner is not None:
            call.labels.join(inner, line)
        else:
            call.hint(line, "its channels are multiplied by a tensor of fixed size")
    else:
        if inner is not None:
            call.hint(inner, "its channels are multiplied by a tensor of fixed size")
        if second is not None and any(varies(second, dim) for dim in range(second.dim())):
            columns = second.narrow(-2, 0, 1)
    if rows is None or columns is None:
        found = rows if columns is None else columns
        return None if found is None else found.expand(call.out.shape)
    if varies(rows, rows.dim() - 2) and varies(columns, columns.dim() - 1):
        for labels in (rows, columns):
            call.block(labels, TWO_KINDS)
        return None
    call.labels.join(rows, columns)
    return (columns if varies(columns, columns.dim() - 1) else rows).expand(call.out.shape)


def batched_product_and_sum(call: Call) -> Tensor | None:
    result, start = _batched(call, call.of(call.args[1]), call.of(call.args[2])), call.of(call.args[0])
    if result is None or start is None:
        return result if start is None else start.expand(call.out.shape)
    call.labels.join(result, start)
    return result


def power_iteration(call: Call) -> None:
    """A weight times a vector, as in spectral normalisation: the weight computed from it then depends on all of its
    elements.
    """
    return weight_norm(call)


def attention(call: Call) -> Any:
    query, key, value = (call.of(tensor) for tensor in call.args[:3])
    for labels in (query, key):
        if labels is not None and varies(labels, labels.dim() - 1):
            if call.kwargs.get("scale") is None:
                call.block(labels, "attention scales by the number of its channels")
            else:
                call.hint(labels, "attention takes its channels")
    if query is not None and key is not None:
        call.labels.join(call.labels.join_along(query, -2), call.labels.join_along(key, -2))
    if value is None:
        return None
    if query is not None and not varies(query, query.dim() - 1) and not varies(value, value.dim() - 1):
        call.labels.join(query.narrow(-2, 0, 1), value.narrow(-2, 0, 1))  # heads
    return call.labels.join_along(value, -2).expand(
        call.out[0].shape if not isinstance(call.out, Tensor) else call.out.shape
    )


def embedding(call: Call) -> Tensor | None:
    known = call.raw(call.args[0])
    if isinstance(known, Axes):
        return _fresh(call, known.labels[1]).expand(call.out.shape)
    return None if known is None else compacted(known.narrow(0, 0, 1)).expand(call.out.shape)


def weight_norm(call: Call) -> None:
    """The outputs of weight_norm are weights of their own."""
    for tensor in call.args[:2]:
        known = call.raw(tensor)
        if isinstance(known, Axes):
            call.notes.computed.setdefault(known.name, call.notes.place)
    return
