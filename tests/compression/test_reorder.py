"""The channel order of a checkpoint changes; what it computes does not."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compression.errors import UnsupportedArchitecture
from compression.reorder import Reordering, make_reordering, reorder_tensor

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 16, 2


def tiny_reordering(seed: int = 7) -> Reordering:
    """Return a reordering of the tiny Llama."""
    return make_reordering(
        hidden_size=64,
        intermediate_size=128,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        seed=seed,
    )


def reordered(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a whole checkpoint of the tiny Llama reordered."""
    order = tiny_reordering()
    return {name: reorder_tensor(name, tensor, order) for name, tensor in state.items()}


def test_logits_stay(tiny_llama_dir: Path) -> None:
    """A reordered model computes the same logits; fp32 sums in another order differ by < 1e-4."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    tokens = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = model(tokens).logits
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(reordered(state))
        after = model(tokens).logits
    assert before.abs().max() > 5
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


def test_every_tensor_moves(tiny_llama_dir: Path) -> None:
    """No weight stays as it was, and each keeps its shape and its set of values."""
    state = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).state_dict()
    moved = reordered(state)
    assert moved.keys() == state.keys()
    for name, before in state.items():
        assert not torch.equal(moved[name], before), name
        assert moved[name].shape == before.shape
        assert moved[name].is_contiguous()
        assert torch.equal(moved[name].flatten().sort()[0], before.flatten().sort()[0])


def test_three_places_are_reordered() -> None:
    """Residual stream, neurons of each layer and values of each head get their own real order."""
    reordering = tiny_reordering()
    orders = [reordering.residual, *reordering.neurons, *reordering.values]
    for order in orders:
        identity = torch.arange(order.numel())
        assert torch.equal(order.sort()[0], identity)
        assert not torch.equal(order, identity)
    assert not torch.equal(reordering.neurons[0], reordering.neurons[1])
    assert not torch.equal(reordering.values[0], reordering.values[1])


def test_values_stay_in_their_head_and_outputs_follow() -> None:
    """Value rows move within a head, and every query head of its group reads them in that order."""
    reordering = tiny_reordering()
    group = HEADS // KV_HEADS
    for values, outputs in zip(reordering.values, reordering.outputs, strict=True):
        by_head = values.reshape(KV_HEADS, HEAD_DIM)
        assert torch.equal(by_head // HEAD_DIM, torch.arange(KV_HEADS)[:, None].expand(-1, 16))
        assert not torch.equal(by_head[0] % HEAD_DIM, by_head[1] % HEAD_DIM)
        for head, order in enumerate(outputs.reshape(HEADS, HEAD_DIM)):
            assert torch.equal(order // HEAD_DIM, torch.full((HEAD_DIM,), head))
            assert torch.equal(order % HEAD_DIM, by_head[head // group] % HEAD_DIM)


def test_seed_decides() -> None:
    """The same seed gives the same order, another seed another one."""
    assert torch.equal(tiny_reordering(3).residual, tiny_reordering(3).residual)
    assert not torch.equal(tiny_reordering(3).residual, tiny_reordering(4).residual)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "model.extra.weight"])
def test_unknown_tensor_is_refused(name: str) -> None:
    """A tensor whose channels have no known meaning is never passed through silently."""
    with pytest.raises(UnsupportedArchitecture, match=name):
        reorder_tensor(name, torch.zeros(64), tiny_reordering())
