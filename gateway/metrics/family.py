"""What families of metrics are made of: types, units, labels, and what both tables share."""

from typing import Literal, NamedTuple

OTHER = "_other"
"""The label value of everything outside its closed set, such as unknown model names."""

Type = Literal["counter", "gauge", "histogram"]

Unit = Literal[
    "seconds", "bytes", "tokens", "nats", "nats squared", "requests", "ratio", "state", "count"
]
"""Of a sample's value; of a histogram, of what is observed."""

DURATION_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640),
)
FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
)
INTER_TOKEN_S = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10),
)


class Label(NamedTuple):
    """A label: its name, and its values or, where these are configured, what bounds them."""

    name: str
    values: tuple[str, ...] = ()
    bound: str = ""


MODEL = Label("model", bound="the configured aliases, and _other")
VARIANT = Label("variant", bound="the configured variants, and _other")
