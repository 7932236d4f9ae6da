"""Classification metrics. Accuracies are in percent."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def label_ranks(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Position of the true class when the classes are ordered by score, best first.

    Of classes with equal scores the one with the lower index comes first, so the result does not
    depend on a sorting routine, and a model that gives every class the same score always
    predicts class 0.

    Args:
        scores: (N, C), higher is better.
        labels: (N,) class indices.

    Returns:
        (N,) ranks from 0 (the prediction) to C-1.

    Raises:
        ValueError: if shapes disagree, a label is not a class, or a score is NaN.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"expected scores (N, C) and labels (N,), found {scores.shape} and {labels.shape}"
        )
    num_classes = scores.shape[1]
    _check_range("label", labels, 0, num_classes)
    if np.isnan(scores).any():
        raise ValueError(f"scores of row {int(np.isnan(scores).any(axis=1).argmax())} are NaN")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(num_classes) < labels[:, None]
    ahead = (scores > own) | ((scores == own) & earlier)
    ranks: NDArray[np.int64] = ahead.sum(axis=1, dtype=np.int64)
    return ranks


def topk_accuracy(
    scores: NDArray[np.floating], labels: NDArray[np.integer], ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """Share of rows whose true class is among the k best; ties as in `label_ranks`.

    Args:
        scores: (N, C), higher is better.
        labels: (N,) class indices.
        ks: positive. A k above C counts as C, so with 3 classes "top-5" is 100.

    Returns:
        Percent for each k, under the k that was asked for.

    Raises:
        ValueError: for no rows, and as `label_ranks`.
    """
    assert all(k > 0 for k in ks), ks
    ranks = label_ranks(scores, labels)
    if not ranks.size:
        raise ValueError("the accuracy of no videos at all is not defined")
    return {k: 100.0 * float(np.mean(ranks < k)) for k in ks}


def confusion_matrix(
    predictions: NDArray[np.integer], labels: NDArray[np.integer], num_classes: int
) -> NDArray[np.int64]:
    """Count pairs of true and predicted class.

    Args:
        predictions: (N,) class indices.
        labels: (N,) class indices.
        num_classes: C.

    Returns:
        (C, C) counts; rows are true classes, columns predictions.

    Raises:
        ValueError: if the shapes differ or an index is not a class.
    """
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(
            f"expected predictions and labels (N,), found {predictions.shape} and {labels.shape}"
        )
    _check_range("label", labels, 0, num_classes)
    _check_range("prediction", predictions, 0, num_classes)
    cells = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(
    predictions: NDArray[np.integer], labels: NDArray[np.integer], num_classes: int
) -> NDArray[np.float64]:
    """Share of each class's rows that are predicted right.

    Args:
        predictions: (N,) class indices; -1 (no prediction) counts as wrong.
        labels: (N,) class indices.
        num_classes: C.

    Returns:
        (C,) percent; NaN for a class without rows.

    Raises:
        ValueError: if the shapes differ or an index is not a class.
    """
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(
            f"expected predictions and labels (N,), found {predictions.shape} and {labels.shape}"
        )
    _check_range("label", labels, 0, num_classes)
    _check_range("prediction", predictions, -1, num_classes)
    totals = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[predictions == labels], minlength=num_classes)
    accuracy = np.full(num_classes, np.nan)
    np.divide(100.0 * correct, totals, out=accuracy, where=totals > 0)
    return accuracy


def _check_range(name: str, values: NDArray[np.integer], low: int, high: int) -> None:
    wrong = (values < low) | (values >= high)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{name} {values[row]} of row {row} is not one of {low} to {high - 1}")
