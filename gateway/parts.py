"""How many parts a JSON body has, counted before anything is built from them."""

from gateway.errors import BodyTooLarge

_BLOCK_BYTES = 1 << 19
_MARKS = (b"{", b"[", b":")
_ITEMS_PER_PART = 40


def check_parts(raw: bytes, max_parts: int) -> None:
    """Refuse a body with more than ``max_parts`` objects, lists and named values.

    Each of these costs the event loop up to two microseconds until the request is on its way, and
    a body of a few megabytes has room for a million. Items of lists cost little, as token ids
    must: 40 commas count as one part.

    Raises:
        BodyTooLarge: says the limit and its setting.
    """
    if _num_parts(raw) > max_parts and _has_more(raw, max_parts):
        raise BodyTooLarge(
            f"the body holds more than {max_parts} objects, lists and named values, of list "
            f"items {_ITEMS_PER_PART} counted as one (setting 'max_body_parts'): send less at once"
        )


def _has_more(raw: bytes, max_parts: int) -> bool:
    """Return whether there are more parts than that outside of texts."""
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_parts, is_text = 0.0, 0
    for start in range(0, len(raw), _BLOCK_BYTES):
        pieces = raw[start : start + _BLOCK_BYTES].split(b'"')
        num_parts += _num_parts(b"".join(pieces[is_text::2]))
        if num_parts > max_parts:
            return True
        is_text ^= (len(pieces) - 1) & 1  # as many quotes
    return False


def _num_parts(raw: bytes) -> float:
    return sum(map(raw.count, _MARKS)) + raw.count(b",") / _ITEMS_PER_PART
