"""How much a head or a neuron matters, from weights alone or from what flows through it."""

from torch import Tensor


def fluctuation(weight: Tensor, mean: Tensor, mean_square: Tensor) -> Tensor:
    """Return the weighted fluctuation of each input column of ``weight`` [N, K] as [K].

    Var(x) · ‖W[:, c]‖², the WIFV of FLAP (An et al. 2024, arXiv 2312.11983): a column whose input
    hardly changes can go, because its mean can be made up for.
    """
    return (mean_square - mean.square()).clamp_min(0) * weight.square().sum(0)


def head_magnitude(query: Tensor, output: Tensor, head_dim: int) -> Tensor:
    """Return the squared norm of each head's weights in q_proj [K, H] and o_proj [H, K]."""
    columns = query.square().sum(1) + output.square().sum(0)
    return per_head(columns, head_dim)


def neuron_magnitude(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return the squared norm of each neuron's weights in gate, up [I, H] and down [H, I]."""
    return gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)


def per_head(columns: Tensor, head_dim: int) -> Tensor:
    """Return the sums of ``columns`` over whole heads."""
    return columns.view(-1, head_dim).sum(1)
