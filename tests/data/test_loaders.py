from itertools import islice

import pytest

from vimpac_ext.data.loaders import UpdateSampler


def sampler(**changes):
    options = {"num_items": 11, "batch_size": 4, "micro_batch_size": 2, "num_epochs": 3, "seed": 5}
    return UpdateSampler(**{**options, **changes})


def test_an_epoch_has_every_item_at_most_once_and_whole_batches_only():
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 3 * 2 * 2
    for epoch in range(3):
        items = [index for batch in batches for e, index in batch if e == epoch]
        assert len(items) == len(set(items)) == 8
        assert set(items) <= set(range(11))


def test_epochs_and_seeds_differ():
    first, second = (batches for batches in (list(sampler()), list(sampler(seed=6))))
    assert first != second
    assert [i for b in first[:4] for _, i in b] != [i for b in first[4:8] for _, i in b]


@pytest.mark.parametrize("first_update", range(7))
def test_a_later_start_gives_what_an_unbroken_run_would_have_had(first_update):
    whole = list(sampler())
    resumed = sampler(first_update=first_update)
    assert list(resumed) == list(islice(whole, 2 * first_update, None))
    assert len(resumed) == len(whole) - 2 * first_update


def test_fewer_videos_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match=r"BATCH_SIZE is 4 but there are only 3"):
        sampler(num_items=3)
