"""The order in which training sees its samples."""

from itertools import islice

import pytest

from training.loop import Draws


@pytest.mark.parametrize("first", [0, 1, 23, 24, 61])
def test_draws_go_on_from_anywhere(first):
    whole = list(islice(Draws(12, seed=3), 100))
    assert list(islice(Draws(12, seed=3, first=first), 100 - first)) == whole[first:]
    assert [draw for _, draw in whole] == list(range(100))
    epochs = [[frame for frame, _ in whole[i : i + 12]] for i in range(0, 96, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 8
    assert [frame for frame, _ in islice(Draws(12, seed=4), 12)] != epochs[0]


@pytest.mark.parametrize("n_ranks", [2, 3, 5])
def test_processes_share_the_draws(n_ranks):
    whole = list(islice(Draws(7, seed=0, first=4), 30))
    parts = [list(islice(Draws(7, 0, 4, rank, n_ranks), 30 // n_ranks)) for rank in range(n_ranks)]
    assert [one for together in zip(*parts) for one in together] == whole
