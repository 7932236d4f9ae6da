"""Which layer of a backbone a parameter belongs to, for layer-wise learning rates."""

from collections.abc import Sequence


def layer_number(name: str, embedding: Sequence[str], layers: Sequence[str], count: int) -> int:
    """Number of a parameter's layer.

    Args:
        name: of the parameter, within the backbone.
        embedding: beginnings of the names of what comes before the layers.
        layers: beginnings of the names of layers; the layer's position follows.
        count: N, the number of layers.

    Returns:
        0 for the embedding, 1 to N for the layers, N + 1 for all else.
    """
    for start in layers:
        if name.startswith(start):
            return int(name.removeprefix(start).split(".")[0]) + 1
    return 0 if name.startswith(tuple(embedding)) else count + 1
