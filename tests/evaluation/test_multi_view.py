"""The multi-view ensemble against the authors' numbers and a slow loop."""

import logging

import numpy as np
import pytest
import torch

from vimpac_ext.evaluation import MultiViewEvaluator


def random_probabilities(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


def evaluate(probabilities, labels, on_missing="error", ensemble="sum", videos=None):
    num_videos, num_views, num_classes = probabilities.shape
    videos = range(num_videos) if videos is None else videos
    evaluator = MultiViewEvaluator(num_videos, num_classes, num_views, ensemble)
    for video in videos:
        evaluator.process([video], probabilities[video : video + 1])
    return evaluator.result(labels, on_missing)


def test_equals_the_original(fixtures_dir):
    fixture = np.load(fixtures_dir / "original" / "finetune_eval.npz")
    logits = torch.from_numpy(fixture["logits"])
    evaluator = MultiViewEvaluator(4, 7, views_per_video=3)
    evaluator.process(torch.tensor([2, 0]), logits[[2, 0]].softmax(-1))
    evaluator.process(torch.tensor([1, 3]), logits[[1, 3]].softmax(-1))
    result = evaluator.result(fixture["prediction"])
    np.testing.assert_allclose(result.scores, fixture["avg_probs"], atol=1e-6)
    np.testing.assert_array_equal(result.predictions, fixture["prediction"])
    assert result.topk_accuracy(1) == 100.0


@pytest.mark.parametrize("ensemble", ["sum", "max"])
def test_equals_a_slow_loop(ensemble):
    probabilities = random_probabilities(20, 6, 9)
    labels = torch.randint(9, (20,), generator=torch.Generator().manual_seed(1))
    result = evaluate(probabilities, labels, ensemble=ensemble)
    hits = {1: 0, 5: 0}
    for video in range(20):
        scores = []
        for cls in range(9):
            values = [float(probabilities[video, view, cls]) for view in range(6)]
            scores.append(sum(values) / 6 if ensemble == "sum" else max(values))
        np.testing.assert_allclose(result.scores[video], scores, rtol=1e-6)
        order = sorted(range(9), key=lambda c: -scores[c])
        assert result.predictions[video] == order[0]
        for k in hits:
            hits[k] += int(labels[video]) in order[:k]
    assert result.topk_accuracy(1) == pytest.approx(5 * hits[1])
    assert result.topk_accuracy(5) == pytest.approx(5 * hits[5])


def test_probabilities_not_logits_are_averaged():
    # One confident view wins against two lukewarm ones when logits are averaged, not here.
    logits = torch.tensor([[[9.0, 0.0], [0.0, 1.5], [0.0, 1.5]]])
    assert logits.mean(1).argmax() == 0
    assert evaluate(logits.softmax(-1), [1]).predictions.tolist() == [1]


def test_order_batches_and_repeats_do_not_matter():
    probabilities = random_probabilities(7, 3, 4)
    labels = np.arange(7) % 4
    expected = evaluate(probabilities, labels)
    evaluator = MultiViewEvaluator(7, 4, 3)
    for batch in ([6, 2, 2], [0, 1, 3, 4, 5], [0, 6]):
        evaluator.process(np.array(batch), probabilities[batch].numpy() + 1e-4)
    result = evaluator.result(labels)
    np.testing.assert_allclose(result.scores, expected.scores, atol=2e-4)
    assert result.topk_accuracy(1) == expected.topk_accuracy(1)
    assert result.counts() == expected.counts()
    assert result.counts()["decoded_views"] == 21


def test_a_repeat_that_disagrees_is_an_error():
    evaluator = MultiViewEvaluator(3, 4, 2)
    evaluator.process([1], random_probabilities(1, 2, 4, seed=0))
    with pytest.raises(ValueError, match="video 1 came twice.*training mode"):
        evaluator.process([1], random_probabilities(1, 2, 4, seed=1))


# Of 5 videos 1 and 3 are missing; 0 and 2 are right, 4 is wrong.
ONE_HOT = torch.eye(3)[[0, 1, 2, 0, 1]].unsqueeze(1).expand(5, 2, 3)
LABELS = [0, 1, 2, 0, 2]


def test_missing_videos_are_an_error_by_default():
    with pytest.raises(ValueError, match=r"2 of 5 test videos are missing \(indices 1, 3\).*skip"):
        evaluate(ONE_HOT, LABELS, videos=[0, 2, 4])
    evaluator = MultiViewEvaluator(9, 3, 1)
    with pytest.raises(ValueError, match=r"9 of 9 .*0, 1, 2, 3, 4, \.\.\."):
        evaluator.result([0] * 9)


def test_skip_scores_the_decoded_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        result = evaluate(ONE_HOT, LABELS, on_missing="skip", videos=[0, 2, 4])
    assert "2 of 5 test videos are missing" in caplog.text
    assert "over the others" in caplog.text
    assert result.topk_accuracy(1) == pytest.approx(200 / 3)
    assert result.topk_accuracy(5) == 100.0
    assert result.predictions.tolist() == [0, -1, 2, -1, 1]
    np.testing.assert_array_equal(result.per_class_accuracy(), [100, np.nan, 50])
    assert result.counts() == {
        "expected_videos": 5,
        "decoded_videos": 3,
        "missing_videos": 2,
        "expected_views": 10,
        "decoded_views": 6,
        "missing_views": 4,
        "scored_videos": 3,
    }


def test_a_missing_video_may_have_no_class_where_it_does_not_count():
    labels = [LABELS[0], -1, *LABELS[2:]]
    result = evaluate(ONE_HOT, labels, on_missing="skip", videos=[0, 2, 3, 4])
    known = evaluate(ONE_HOT, LABELS, on_missing="skip", videos=[0, 2, 3, 4])
    assert result.labels.tolist() == labels
    assert result.ranks.tolist() == known.ranks.tolist()
    assert result.topk_accuracy(1) == known.topk_accuracy(1)
    np.testing.assert_array_equal(result.per_class_accuracy(), known.per_class_accuracy())
    with pytest.raises(ValueError, match="label"):
        evaluate(ONE_HOT, labels, on_missing="count_wrong", videos=[0, 2, 3, 4])
    with pytest.raises(ValueError, match="label"):
        evaluate(ONE_HOT, labels, on_missing="skip", videos=[0, 1, 2, 3])


def test_count_wrong_keeps_the_missing_in_the_denominator(caplog):
    with caplog.at_level(logging.WARNING):
        result = evaluate(ONE_HOT, LABELS, on_missing="count_wrong", videos=[0, 2, 4])
    assert "count them as wrong" in caplog.text
    assert result.topk_accuracy(1) == 40.0
    assert result.topk_accuracy(5) == 60.0  # not 100: a missing video is in no top k
    assert result.per_class_accuracy().tolist() == [50, 0, 50]
    assert result.counts()["scored_videos"] == 5


@pytest.mark.parametrize("on_missing", ["skip", "count_wrong"])
def test_nothing_decoded_is_an_error(on_missing):
    with pytest.raises(ValueError, match="nothing to score"):
        evaluate(ONE_HOT, LABELS, on_missing=on_missing, videos=[])


def test_bfloat16_probabilities_are_taken():
    probabilities = random_probabilities(4, 2, 400).to(torch.bfloat16)
    result = evaluate(probabilities, [0, 1, 2, 3])
    np.testing.assert_allclose(result.scores, probabilities.double().mean(1), atol=1e-6)


def test_wrong_input():
    evaluator = MultiViewEvaluator(4, 3, views_per_video=2)
    good = torch.full((1, 2, 3), 1 / 3)
    with pytest.raises(ValueError, match="video 2 are no probabilities.*softmax"):
        evaluator.process([2], torch.tensor([[[1.0, -2.0, 2.0], [3.0, 0.0, 0.0]]]))
    with pytest.raises(ValueError, match="video 0 are no probabilities"):
        evaluator.process([0], good * torch.tensor([1.0, torch.nan, 1.0]))
    with pytest.raises(ValueError, match=r"\(1, 2, 3\), found \(1, 1, 3\)"):
        evaluator.process([0], good[:, :1])
    with pytest.raises(ValueError, match="video index 4 is not one of 0 to 3"):
        evaluator.process([4], good)
    with pytest.raises(ValueError, match="'mean'.*sum, max"):
        MultiViewEvaluator(4, 3, 2, ensemble="mean")
    with pytest.raises(ValueError, match="'ignore'.*error, skip, count_wrong"):
        evaluator.result([0, 0, 0, 0], on_missing="ignore")


def test_a_single_view_is_scored_beside_the_ensemble():
    probabilities = random_probabilities(12, 4, 5, seed=3)
    labels = torch.arange(12) % 5
    evaluator = MultiViewEvaluator(12, 5, 4, single_view=2)
    evaluator.process(range(1, 12), probabilities[1:])
    result = evaluator.result(labels, "count_wrong")
    alone = evaluate(probabilities[:, 2:3], labels, "count_wrong", videos=range(1, 12))
    np.testing.assert_array_equal(result.single_view_ranks, alone.ranks)
    assert result.single_view_accuracy(1) == alone.topk_accuracy(1)
    together = evaluate(probabilities, labels, "count_wrong", videos=range(1, 12))
    np.testing.assert_array_equal(result.ranks, together.ranks)
    assert together.single_view_accuracy(1) is None


def test_a_single_view_comes_together_from_several_processes():
    probabilities, labels = random_probabilities(6, 3, 4), torch.arange(6) % 4
    parts = []
    for first in (0, 1):
        part = MultiViewEvaluator(6, 4, 3, single_view=1)
        part.process(range(first, 6, 2), probabilities[first::2])
        parts.append(part)
    sums = [parts[1]._decoded.astype(np.int64), parts[1]._scores, parts[1]._single_scores]
    remaining = iter(map(torch.from_numpy, sums))
    parts[0].combine(lambda own: own + next(remaining))
    whole = evaluate(probabilities[:, 1:2], labels)
    np.testing.assert_array_equal(parts[0].result(labels).single_view_ranks, whole.ranks)
