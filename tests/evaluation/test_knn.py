"""Weighted k-NN: the authors' numbers, numbers by hand, a slow reference, and the edges."""

import math

import numpy as np
import pytest
import torch

from vimpac_ext.evaluation import knn_accuracy, knn_scores


def test_ranking_is_the_authors(fixtures_dir):
    arrays = np.load(fixtures_dir / "original" / "knn.npz")
    scores = knn_scores(
        *(torch.from_numpy(arrays[name]) for name in ("bank", "bank_labels", "features")),
        num_classes=int(arrays["num_classes"]),
        k=int(arrays["k"]),
        temperature=float(arrays["temperature"]),
    ).numpy()
    ranking = arrays["ranking"]
    assert ranking.shape == scores.shape == (15, 6)
    ranked = np.take_along_axis(scores, ranking, axis=1)
    # Classes of equal score (0: no neighbour) may stand in any order among themselves.
    np.testing.assert_array_equal(ranked, -np.sort(-scores, axis=1))
    unique = [len(set(row)) == len(row) for row in scores.tolist()]
    assert sum(unique) > 3
    np.testing.assert_array_equal(scores.argsort(axis=1)[unique, ::-1], ranking[unique])


def test_scores_by_hand():
    root = math.sqrt(0.5)
    bank = torch.tensor([[2.0, 0.0], [5.0, 5.0], [0.0, 0.1], [-1.0, 0.0]])
    scores = knn_scores(
        bank, torch.tensor([0, 1, 0, 2]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 4, 3, 0.5
    )
    expected = torch.tensor([math.exp(1 / 0.5) + math.exp(0), math.exp(root / 0.5), 0, 0])
    torch.testing.assert_close(scores[0], expected)
    # The second query's third neighbour is one of two with cosine 0, of class 0 or 2.
    assert scores[1, 1] == pytest.approx(math.exp(root / 0.5))
    assert scores[1, [0, 2]].sum() == pytest.approx(math.exp(1 / 0.5) + math.exp(0))


def slow_scores(bank, labels, queries, num_classes, k, temperature):
    scores = np.zeros((len(queries), num_classes))
    for row, query in enumerate(queries):
        cosines = [b @ query / np.linalg.norm(b) / np.linalg.norm(query) for b in bank]
        for index in sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]:
            scores[row, labels[index]] += math.exp(cosines[index] / temperature)
    return scores


@pytest.mark.parametrize(
    ("k", "num_bank", "num_queries"), [(1, 40, 7), (25, 90, 1030), (500, 9, 3)]
)
def test_a_slow_reference_in_double_precision_agrees(k, num_bank, num_queries):
    rng = np.random.default_rng(k)
    bank, queries = rng.normal(size=(num_bank, 8)), rng.normal(size=(num_queries, 8)) * 7
    labels = rng.integers(0, 5, num_bank)
    expected = slow_scores(bank, labels, queries, 5, k, 0.07)
    arrays = (torch.from_numpy(array) for array in (bank, labels, queries))
    scores = knn_scores(*arrays, num_classes=5, k=k)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores, expected, rtol=2e-4)


def test_accuracy_of_clusters_is_full_and_of_noise_is_chance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 8
    centres = torch.randn(8, 16, generator=generator)
    features = centres[labels] + 0.1 * torch.randn(400, 16, generator=generator)
    accuracy = knn_accuracy(features[:300], labels[:300], features[300:], labels[300:], 8, k=20)
    assert accuracy == {1: 100.0, 5: 100.0}
    noise = torch.randn(4000, 16, generator=generator)
    labels = torch.randint(8, (4000,), generator=generator)
    accuracy = knn_accuracy(noise[:2000], labels[:2000], noise[2000:], labels[2000:], 8)
    assert accuracy[1] == pytest.approx(100 / 8, abs=4 * 100 * math.sqrt(1 / 8 * 7 / 8 / 2000))
    assert accuracy[5] == pytest.approx(500 / 8, abs=4 * 100 * math.sqrt(5 / 8 * 3 / 8 / 2000))


def test_only_the_direction_counts():
    generator = torch.Generator().manual_seed(1)
    bank, queries = torch.randn(2, 30, 5, generator=generator)
    labels = torch.arange(30) % 3
    lengths = torch.rand(30, 1, generator=generator) + 0.1
    one = knn_scores(bank, labels, queries, 3, k=7)
    other = knn_scores(bank * lengths, labels, queries * lengths, 3, k=7)
    torch.testing.assert_close(one, other, rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bank": torch.ones(4, 3)}, r"found \(4, 3\) and \(2, 5\)"),
        ({"bank": torch.ones(0, 5), "bank_labels": torch.ones(0)}, "at least one feature"),
        ({"bank_labels": torch.tensor([0, 1, 2])}, r"found \(3,\) labels and 4 features"),
        ({"bank_labels": torch.tensor([0, 1, 3, 0])}, r"labels 0\.\.3, classes are 0\.\.2"),
        ({"bank_labels": torch.tensor([0, 1, -1, 0])}, r"labels -1\.\.1"),
        ({"queries": torch.full((2, 5), torch.nan)}, "features of the queries are not finite"),
        ({"k": 0}, "k=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 positive"),
    ],
)
def test_wrong_input_is_refused(change, reason):
    good = {
        "bank": torch.ones(4, 5),
        "bank_labels": torch.tensor([0, 1, 2, 0]),
        "queries": torch.ones(2, 5),
        "num_classes": 3,
    }
    with pytest.raises(ValueError, match=reason):
        knn_scores(**(good | change))
