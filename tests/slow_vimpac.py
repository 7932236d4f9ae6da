"""The VIMPAC backbone written as plainly as possible: one clip, one row and one head at a time.

It reads the state dict of a `VimpacTransformer` and nothing else of the library. Slow; for tiny
models only.
"""

import itertools
import math

import torch

AXES = "THW"


def slow_backbone(
    state, clip, layout, num_heads, norm="post", position="hw_separation", drop=lambda x: x
):
    """cls (B, D) and features (B, T, H, W, D) of a clip of token ids (B, T, H, W).

    `drop` is applied wherever the authors' code has dropout.
    """
    results = [_one_clip(state, c, layout, num_heads, norm, position, drop) for c in clip]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def _one_clip(state, clip, layout, num_heads, norm, position, drop):
    embedding = state["token_embedding.weight"]
    is_pad = clip == len(embedding) - 4  # ids V..V+4 are special, V+1 is padding
    cls_position, token_position = _positions(state, clip.shape, position)
    cls = state["cls_token"] + cls_position
    tokens = embedding[clip] + token_position
    if norm == "post":
        cls, tokens = (_layer_norm(state, "input_norm", x) for x in (cls, tokens))
    cls, tokens = drop(cls), drop(tokens)
    num_layers = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    for layer in range(num_layers):
        for index, block in enumerate(layout.split(",")):
            name = f"layers.{layer}.attention_blocks.{index}"
            residual = cls, tokens
            if norm != "post":
                cls, tokens = (_layer_norm(state, f"{name}.norm", x) for x in (cls, tokens))
            if norm == "pre_normalized_residual":
                residual = cls, tokens
            attended = _attention(
                state, f"{name}.attention.qkv", cls, tokens, is_pad, block, num_heads, drop
            )
            cls, tokens = (
                r + drop(_linear(state, f"{name}.output", x))
                for r, x in zip(residual, attended, strict=True)
            )
            if norm == "post":
                cls, tokens = (_layer_norm(state, f"{name}.norm", x) for x in (cls, tokens))
        cls, tokens = (_mlp(state, f"layers.{layer}.mlp", x, norm, drop) for x in (cls, tokens))
    if norm != "post":
        cls, tokens = (_layer_norm(state, "output_norm", x) for x in (cls, tokens))
    return cls, tokens


def _positions(state, grid, form):
    frames, height, width = grid
    tables = {name.split(".")[1]: t for name, t in state.items() if name.startswith("position.")}

    def of_cell(t, i, j):
        if form == "default":
            return tables["joint"][1 + (t * height + i) * width + j]
        if form == "temporal_separation":
            return tables["frames"][t] + tables["spatial"][i * width + j]
        return tables["frames"][t] + tables["height"][i] + tables["width"][j]

    cells = itertools.product(range(frames), range(height), range(width))
    positions = torch.stack([of_cell(*cell) for cell in cells]).unflatten(0, tuple(grid))
    return tables["joint" if form == "default" else "cls"][0], positions


def _attention(state, name, cls, tokens, is_pad, block, num_heads, drop):
    patterns = block.split("|")
    weights = state[f"{name}.weight"].chunk(3 * len(patterns))
    biases = state[f"{name}.bias"].chunk(3 * len(patterns))
    cls_results, token_results = [], []
    for index, pattern in enumerate(patterns):
        projections = list(zip(weights, biases, strict=True))[3 * index : 3 * index + 3]
        cls_of_rows = []
        result = torch.zeros(*tokens.shape[:3], len(weights[0]), dtype=tokens.dtype)
        ranges = [
            [slice(None)] if axis in pattern.split("x") else range(size)
            for axis, size in zip(AXES, tokens.shape[:3], strict=True)
        ]
        for row in itertools.product(*ranges):
            sequence = torch.cat([cls[None], tokens[row].reshape(-1, len(cls))])
            hidden = torch.cat([torch.tensor([False]), is_pad[row].reshape(-1)])
            attended = _attend_row(sequence, hidden, projections, num_heads // len(patterns), drop)
            cls_of_rows.append(attended[0])
            result[row] = attended[1:].reshape(result[row].shape)
        cls_results.append(torch.stack(cls_of_rows).mean(0))
        token_results.append(result)
    return torch.cat(cls_results, -1), torch.cat(token_results, -1)


def _attend_row(sequence, hidden, projections, num_heads, drop):
    query, key, value = ((sequence @ w.T + b).chunk(num_heads, -1) for w, b in projections)
    results = []
    for q, k, v in zip(query, key, value, strict=True):
        scores = (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(hidden, -math.inf)
        exponentials = (scores - scores.max(-1, keepdim=True).values).exp()
        results.append(drop(exponentials / exponentials.sum(-1, keepdim=True)) @ v)
    return torch.cat(results, -1)


def _mlp(state, name, x, norm, drop):
    hidden = x if norm == "post" else _layer_norm(state, f"{name}.norm", x)
    hidden = _linear(state, f"{name}.expand", hidden)
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    x = x + drop(_linear(state, f"{name}.contract", hidden))
    return _layer_norm(state, f"{name}.norm", x) if norm == "post" else x


def _linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _layer_norm(state, name, x):
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]
