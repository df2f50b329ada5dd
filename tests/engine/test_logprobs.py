"""Log-probabilities of single rows of logits, and the largest of them."""

import pytest
import torch

from gateway.engine.logprobs import largest, note, token_logprobs


@pytest.mark.parametrize(("width", "count"), [(49_152, 20), (2_571, 20), (2_559, 20), (40, 40)])
def test_the_largest_are_those_of_a_whole_sort(width: int, count: int) -> None:
    """In whichever blocks they lie, all in one or in the rest behind the last one."""
    logits = torch.randn(9, width, generator=torch.Generator().manual_seed(0))
    logits[1, 7 : 7 + count] += 50
    logits[2, -count:] += 50
    logits[3, ::2] = -torch.inf
    values, ids = largest(logits, count)
    expected = logits.topk(count)
    assert torch.equal(values, expected.values)
    assert torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row)) == count for row in ids.tolist())


def test_equal_values_are_told_once_each() -> None:
    """Of a row of nothing but ties any are the largest, but no id comes twice."""
    values, ids = largest(torch.zeros(2, 6_400), 20)
    assert not values.any()
    assert all(len(set(row)) == 20 for row in ids.tolist())


def test_what_is_noted_is_what_is_told() -> None:
    """Rows are worked on a few at a time; a row alone has the same numbers."""
    logits = 5 * torch.randn(11, 3_000, generator=torch.Generator().manual_seed(1))
    token_ids = list(range(0, 1_100, 100))
    noted = note(logits, token_ids, 5)
    told = token_logprobs(logits, token_ids, [5] * 11)
    expected = logits.log_softmax(1)
    for row, (token_id, entry) in enumerate(zip(token_ids, told, strict=True)):
        assert entry.logprob == pytest.approx(float(expected[row, token_id]), abs=1e-5)
        assert [each for each, _ in entry.top] == expected[row].topk(5).indices.tolist()
        assert noted.top_ids[row].tolist() == [each for each, _ in entry.top]
        alone = note(logits[row : row + 1], [token_id], 5)
        assert torch.equal(alone.top[0], noted.top[row])
