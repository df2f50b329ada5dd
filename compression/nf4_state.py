"""The description that bitsandbytes stores beside an NF4 weight, as bytes."""

import json


def nf4_state(shape: tuple[int, ...], block: int) -> bytes:
    """Return the JSON of bitsandbytes' ``QuantState.as_dict(packed=True)`` without its tensors."""
    fields = {
        "quant_type": "nf4",
        "blocksize": block,
        "dtype": "bfloat16",
        "shape": list(shape),
    }
    return json.dumps(fields).encode()
