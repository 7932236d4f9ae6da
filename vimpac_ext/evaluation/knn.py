"""Weighted k-nearest-neighbour classification of frozen features (Wu et al., 2018).

The authors of VIMPAC watch their pre-training with it: features of UCF101's training videos are
the bank, those of its validation videos the queries.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from vimpac_ext.evaluation.metrics import topk_accuracy

_CHUNK_SIZE = 512  # queries compared with the whole bank at once


def knn_scores(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.07,
) -> Tensor:
    """Score classes by the labels of a query's nearest neighbours.

    The score of a class is the sum of exp(cosine / temperature) over those of the k features most
    similar to the query that have its label.

    Args:
        bank: float (M, D) features; their length does not matter.
        bank_labels: int (M,) classes of the bank.
        queries: float (N, D) features, on the bank's device.
        num_classes: C.
        k: number of neighbours; all of the bank if it is smaller.
        temperature: divides the cosine.

    Returns:
        float32 (N, C); 0 for a class that no neighbour has.

    Raises:
        ValueError: shapes do not fit, the bank is empty, a label is not a class, a feature is not
            finite, or an option is out of its range.
    """
    _check(bank, bank_labels, queries, num_classes)
    if k < 1 or temperature <= 0:
        raise ValueError(f"k={k} must be at least 1 and temperature={temperature} positive")
    bank = F.normalize(bank.float(), dim=1)
    queries = F.normalize(queries.float(), dim=1)
    bank_labels = bank_labels.long()
    scores = queries.new_zeros(len(queries), num_classes)
    for chunk, chunk_scores in zip(
        queries.split(_CHUNK_SIZE), scores.split(_CHUNK_SIZE), strict=True
    ):
        nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = (nearest.values / temperature).exp()
        chunk_scores.scatter_add_(1, bank_labels[nearest.indices], weights)
    return scores


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.07,
    ks: Sequence[int] = (1, 5),
) -> dict[int, float]:
    """Accuracy of `knn_scores` in percent, for the true class among the 1 and 5 best.

    Args:
        bank: see `knn_scores`, as the arguments not described here.
        bank_labels: see there.
        queries: see there.
        query_labels: int (N,) true classes of the queries.
        num_classes: see there.
        k: see there.
        temperature: see there.
        ks: among how many best classes the true one may be, see `topk_accuracy`.

    Raises:
        ValueError: as `knn_scores` and `topk_accuracy`.
    """
    scores = knn_scores(bank, bank_labels, queries, num_classes, k, temperature)
    return topk_accuracy(scores.cpu().numpy(), query_labels.cpu().numpy(), ks)


def _check(bank: Tensor, bank_labels: Tensor, queries: Tensor, num_classes: int) -> None:
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"expected a bank (M, D) and queries (N, D), found {tuple(bank.shape)} and "
            f"{tuple(queries.shape)}"
        )
    if bank_labels.shape != bank.shape[:1] or not len(bank):
        raise ValueError(
            f"expected a label for each of at least one feature of the bank, found "
            f"{tuple(bank_labels.shape)} labels and {len(bank)} features"
        )
    low, high = int(bank_labels.min()), int(bank_labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"the bank has labels {low}..{high}, classes are 0..{num_classes - 1}")
    for name, features in (("bank", bank), ("queries", queries)):
        if not features.isfinite().all():
            raise ValueError(f"features of the {name} are not finite")
