"""What is wrong with logits that cannot be used, and the errors that say so."""

import torch

from gateway.errors import ApiError


class BrokenLogits(ApiError):
    """The model's logits are no numbers; anything made from them would be garbage."""

    code = "broken_logits"

    def __init__(self, peak: float) -> None:
        super().__init__(
            f"the model returned logits whose maximum is {peak}: the weights are damaged or "
            "overflow in this data type; build the variant again or use a safer recipe"
        )


class NoTokenAllowed(ApiError):
    """Bans and grammar together leave no token to choose."""

    code = "no_token_allowed"

    def __init__(self) -> None:
        super().__init__(
            "no token is left that the request allows: its form is too complex to go on with, or "
            "its bans exclude what the form needs; simplify the schema or leave out 'logit_bias'"
        )


def is_unusable(peak: float) -> bool:
    """Return whether a row with this maximum is no distribution.

    The maximum is NaN if any logit is, and infinite if the row has one that is, or nothing else.
    """
    return not abs(peak) < float("inf")


def unusable_peak(logits: torch.Tensor) -> float | None:
    """Return the maximum of the first row that is no distribution, None if all rows are sound."""
    peaks: list[float] = logits.amax(dim=1).tolist()
    return next((peak for peak in peaks if is_unusable(peak)), None)
