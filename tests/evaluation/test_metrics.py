"""Metrics against counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vimpac_ext.evaluation import confusion_matrix, label_ranks, per_class_accuracy, topk_accuracy


def slow_topk(scores, labels, k):
    """Percent, by sorting (score descending, class ascending) one row at a time."""
    hits = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        hits += label in order[:k]
    return 100 * hits / len(labels)


@settings(max_examples=100, deadline=None)
@given(
    num_rows=st.integers(1, 12),
    num_classes=st.integers(1, 9),
    levels=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_topk_equals_sorting_with_many_ties(num_rows, num_classes, levels, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (num_rows, num_classes)) / levels
    labels = rng.integers(0, num_classes, num_rows)
    accuracies = topk_accuracy(scores, labels, ks=(1, 3, 5))
    for k, accuracy in accuracies.items():
        assert accuracy == pytest.approx(slow_topk(scores, labels, k))
    assert accuracies[1] <= accuracies[3] <= accuracies[5]
    predictions = scores.argmax(axis=1)
    assert accuracies[1] == pytest.approx(100 * np.mean(predictions == labels))
    counts = confusion_matrix(predictions, labels, num_classes)
    assert np.trace(counts) == np.sum(predictions == labels)


def test_few_classes_clip_k_and_keep_its_name():
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert topk_accuracy(scores, np.array([1, 0])) == {1: 0.0, 5: 100.0}


def test_equal_scores_go_to_the_lower_class():
    scores = np.ones((4, 4))
    assert label_ranks(scores, np.arange(4)).tolist() == [0, 1, 2, 3]
    assert topk_accuracy(scores, np.arange(4), ks=(1, 2)) == {1: 25.0, 2: 50.0}


def test_confusion_and_per_class_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 3])
    predictions = np.array([0, 2, 0, 1, 0, 3])
    expected = np.zeros((4, 4), dtype=int)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[label, prediction] += 1
    np.testing.assert_array_equal(confusion_matrix(predictions, labels, 4), expected)
    accuracy = per_class_accuracy(predictions, labels, 4)
    np.testing.assert_allclose(accuracy, [200 / 3, 50, np.nan, 100])


def test_no_prediction_counts_as_wrong():
    accuracy = per_class_accuracy(np.array([0, -1, -1]), np.array([0, 0, 1]), 2)
    assert accuracy.tolist() == [50.0, 0.0]


def test_wrong_input():
    scores = np.ones((2, 3))
    with pytest.raises(ValueError, match="label 3 of row 1 is not one of 0 to 2"):
        topk_accuracy(scores, np.array([0, 3]))
    with pytest.raises(ValueError, match="label -1 of row 0"):
        topk_accuracy(scores, np.array([-1, 0]))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3,\)"):
        topk_accuracy(scores, np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="row 1 are NaN"):
        topk_accuracy(np.array([[1.0, 0], [np.nan, 0]]), np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="no videos"):
        topk_accuracy(np.ones((0, 3)), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="prediction -1 of row 0"):
        confusion_matrix(np.array([-1]), np.array([0]), 2)
    with pytest.raises(ValueError, match=r"\(1,\) and \(2,\)"):
        confusion_matrix(np.array([0]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="prediction 2 of row 0"):
        per_class_accuracy(np.array([2]), np.array([0]), 2)
