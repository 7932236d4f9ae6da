"""Labels that the classification loss refuses (values: test_losses.py)."""

import pytest
import torch

from vimpac_ext.losses import CrossEntropyLoss


def test_labels_that_are_no_class_are_refused():
    logits = {"class_logits": torch.zeros(2, 5)}
    for wrong in (-1, -100, 5):
        with pytest.raises(ValueError, match=rf"{min(wrong, 2)}\.\.{max(wrong, 2)}.*0\.\.4"):
            CrossEntropyLoss()(logits, {"labels": torch.tensor([2, wrong])})
    with pytest.raises(ValueError, match="label_smoothing=1.5"):
        CrossEntropyLoss(label_smoothing=1.5)
