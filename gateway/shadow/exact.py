"""How a captured reply is put to a reference: by its whole distributions, where they are kept."""

from collections.abc import Awaitable

from gateway.shadow.embedded_scorer import EmbeddedScorer
from gateway.shadow.records import Captured, ScoredPosition, Scorer
from gateway.shadow.teacher_forcing import text_of


def reading(scorer: Scorer, captured: Captured) -> Awaitable[list[ScoredPosition]]:
    """Return what the reference says of a reply, to come.

    Raises:
        RowsLost: when it is awaited: the distributions are not kept any more.
        ApiError: when it is awaited: the reference refused, failed or is gone.
    """
    text = text_of(captured)
    if captured.rows is None or not isinstance(scorer, EmbeddedScorer):
        return scorer.score(*text)
    return scorer.score_exactly(*text, captured.rows)
