"""Linear classifiers on frozen features: the fit, the draws, and what a probe says of a model."""

import json

import numpy as np
import paper_tables.probing as probing
import pytest
import torch
from paper_tables.measures import measure
from paper_tables.probing import accuracy, draw, evaluate_probe, fit_linear
from tiny_project import CLASSES, NUM_VIDEOS, make_tiny_project

from vimpac_ext.engine import prepare


def test_the_fit_is_the_minimum_of_the_penalised_cross_entropy():
    """At the minimum the gradient is zero; it is written out here, in numpy."""
    rng = np.random.default_rng(0)
    features = rng.normal(3, 5, (12, 2, 4))
    labels = np.arange(12) % 3
    strength = 0.1
    fit = fit_linear(torch.tensor(features), torch.tensor(labels), 3, strength)
    clips = features.reshape(24, 4)
    clips = (clips - clips.mean(0)) / clips.std(0, ddof=1)
    probabilities = fit(torch.tensor(features)).double().numpy().reshape(24, 3)
    assert probabilities.sum(1) == pytest.approx(np.ones(24), abs=1e-5)
    errors = probabilities - np.eye(3)[labels.repeat(2)]
    assert errors.mean(0) == pytest.approx(np.zeros(3), abs=1e-3)  # of the bias, not penalised
    # The gradient of the weights vanishes where they are -X'E / (n * strength); they give back the
    # probabilities up to a constant of each clip.
    weights = -clips.T @ errors / (24 * strength)
    logits = np.log(probabilities) - clips @ weights
    assert np.ptp(logits - logits[:, :1], axis=0) == pytest.approx(np.zeros(3), abs=2e-2)


def test_a_stronger_penalty_makes_flatter_probabilities():
    features = torch.randn(30, 1, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    peaks = [fit_linear(features, labels, 3, s)(features).max() for s in (1e-3, 1.0)]
    assert peaks[0] > peaks[1]


def test_as_many_of_each_class_are_drawn():
    labels = torch.tensor([0] * 5 + [2] * 9 + [1] * 4)
    generator = torch.Generator().manual_seed(0)
    first, second = (draw(labels, 3, generator) for _ in range(2))
    for chosen in (first, second):
        assert labels[chosen].bincount().tolist() == [3, 3, 3]
    assert not first.equal(second)
    with pytest.raises(ValueError, match="class 1 has 4 labelled videos; drawing 4"):
        draw(labels, 4, generator)


def test_the_mean_over_the_clips_decides():
    """One sure clip outvotes two that are in doubt."""
    scores = torch.tensor([[[0.99, 0.01], [0.4, 0.6], [0.4, 0.6]], [[0.2, 0.8]] * 3])
    assert accuracy(lambda features: scores, torch.zeros(2, 3, 1), torch.tensor([0, 0])) == 50.0


def probe_of(tmp_path, monkeypatch, per_class=1, shift=0):
    monkeypatch.setattr(probing, "LABELS_PER_CLASS", per_class)
    monkeypatch.setattr(probing, "DRAWS", 3)
    configs = make_tiny_project(tmp_path)
    tested = [f"clips/video_{i}.mp4 {(i + shift) % CLASSES}\n" for i in range(NUM_VIDEOS)]
    (tmp_path / "data/test.csv").write_text("".join(tested))
    words = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", "none"]
    words += ["TEST.NUM_SPATIAL_CROPS", "1", "OUTPUT_DIR", str(tmp_path / "probe-1")]
    return evaluate_probe(prepare(configs / "finetune.yaml", words))


def test_tokens_that_tell_the_class_are_told_apart_by_random_features(tmp_path, monkeypatch):
    result = probe_of(tmp_path, monkeypatch)
    assert result["top1"] == 100.0
    assert (result["labelled_videos"], result["test_videos"]) == (NUM_VIDEOS, NUM_VIDEOS)
    assert result["width"] == 3 * 16  # frames, one after the other
    assert len(result["top1_of_draws"]) == 3
    written = json.loads((tmp_path / "probe-1/probe.json").read_text())
    assert written == result
    line = measure(tmp_path, {"probe:motion": "probe-1"})
    assert (line["top1:motion"], line["test_videos"]) == (100.0, NUM_VIDEOS)


def test_it_is_the_test_videos_that_count(tmp_path, monkeypatch):
    """With another label on every test video the same classifiers are always wrong."""
    result = probe_of(tmp_path, monkeypatch, shift=1)
    assert result["top1"] == 0.0
    assert max(result["accuracy_of_strengths"].values()) == 100.0  # on the videos not drawn


def test_too_few_videos_are_named(tmp_path, monkeypatch):
    few = NUM_VIDEOS // CLASSES
    with pytest.raises(ValueError, match=f"class 0 has {few} labelled videos"):
        probe_of(tmp_path, monkeypatch, per_class=few)
