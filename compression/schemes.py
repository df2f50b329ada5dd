"""How weights, keys and values can be stored: data only, free of torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

DataFreeMethod = Literal["rtn", "mse"]
CalibratedMethod = Literal["imatrix", "gptq", "best"]
CALIBRATED: frozenset[str] = frozenset({"imatrix", "gptq", "best"})
"""The methods that need a calibration text; ``best`` takes the one of least output error."""

AUTO = "auto"
"""The method that the plan chooses: GPTQ where the checkpoint is small and can be calibrated, else
plain rounding (:mod:`compression.automatic`)."""

FEEDBACK: frozenset[str] = frozenset({"gptq", "best"})
"""The methods that make up for one column's error in others, layer after layer."""


INT8_BLOCK = 64
"""Columns of an int8 weight are padded to a multiple while it is served."""
GROUPED_ROWS = 16
"""Rows of a weight in groups are padded to a multiple while it is served."""


class _Scheme(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Unquantized(_Scheme):
    """Keep the tensor as the checkpoint has it."""

    scheme: Literal["none"] = "none"

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return "none"

    def memory_bytes(self, rows: int, columns: int, itemsize: int) -> int:
        """Return the bytes of a ``[rows, columns]`` weight while it is served."""
        return rows * columns * itemsize


class Int8(_Scheme):
    """Symmetric int8, one bf16 scale per output channel (row)."""

    scheme: Literal["int8"] = "int8"
    method: Literal[DataFreeMethod, CalibratedMethod, "auto"] = "rtn"

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return "int8-rows"

    @property
    def at_load(self) -> "Int8":
        """Return how a table that an artifact stores as numbers is rounded when it is loaded.

        Numbers that GPTQ has chosen round plainly to its codes.
        """
        return Int8() if self.method in FEEDBACK or self.method == AUTO else self

    def memory_bytes(self, rows: int, columns: int, itemsize: int) -> int:
        """Return the bytes of a ``[rows, columns]`` weight while it is served, padding included."""
        return rows * -(-columns // INT8_BLOCK) * INT8_BLOCK + 2 * rows


class Grouped(_Scheme):
    """Few bits: one bf16 scale (and zero point, if asymmetric) per ``group_size`` inputs of a row.

    A base of the schemes that say how many bits.
    """

    bits: ClassVar[int]
    scheme: Literal["int4", "int5"]
    group_size: Literal[32, 64, 128] = 32
    symmetric: bool = False
    method: Literal[DataFreeMethod, CalibratedMethod] = "mse"

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return f"{self.scheme}-g{self.group_size}-{'sym' if self.symmetric else 'asym'}"

    def memory_bytes(self, rows: int, columns: int, itemsize: int) -> int:
        """Return the bytes of a ``[rows, columns]`` weight while it is served.

        The kernel holds a bf16 scale and a zero point of a byte per group, symmetric or not.
        """
        padded = -(-rows // GROUPED_ROWS) * GROUPED_ROWS
        return padded * (columns * self.bits // 8 + 3 * (columns // self.group_size))


class Int4(Grouped):
    """Codes of 0…15 in groups."""

    bits: ClassVar[int] = 4
    scheme: Literal["int4"] = "int4"


class Int5(Grouped):
    """Codes of 0…31 in groups."""

    bits: ClassVar[int] = 5
    scheme: Literal["int5"] = "int5"


class Nf4(_Scheme):
    """NormalFloat4 (Dettmers et al. 2023, arXiv 2305.14314): f32 absmax per 64 values."""

    scheme: Literal["nf4"] = "nf4"

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return f"nf4-b{NF4_BLOCK}"

    def memory_bytes(self, rows: int, columns: int, itemsize: int) -> int:
        """Return the bytes of a ``[rows, columns]`` weight while it is served."""
        count = rows * columns
        return (count + 1) // 2 + 4 * -(-count // NF4_BLOCK)


NF4_BLOCK = 64
"""Values that share one absmax."""

QuantizedWeight = Int8 | Int5 | Int4 | Nf4
AnyWeight = Unquantized | QuantizedWeight
WeightScheme = Annotated[AnyWeight, Field(discriminator="scheme")]


class KvUnquantized(_Scheme):
    """Keep keys or values in bf16."""

    scheme: Literal["none"] = "none"

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return "none"

    def bits_per_value(self, head_dim: int) -> float:
        """Return the bits one stored number takes, its share of the scales included."""
        return 16.0


class KvInt8(_Scheme):
    """Symmetric int8, one bf16 scale per token and head; keys after a Hadamard rotation."""

    scheme: Literal["int8"] = "int8"

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return "int8"

    def bits_per_value(self, head_dim: int) -> float:
        """Return the bits one stored number takes, its share of the scales included."""
        return 8 + 16 / head_dim


class KvInt4(_Scheme):
    """Int4 after a Hadamard rotation, bf16 scale and minimum per group of values.

    A head is cut into the fewest equal groups of at most ``group_size`` values.
    """

    scheme: Literal["int4"] = "int4"
    group_size: Literal[32, 64, 128] = 64

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return f"int4-g{self.group_size}"

    def groups(self, head_dim: int) -> int:
        """Return the number of equal groups that a head is cut into."""
        fewest = -(-head_dim // self.group_size)
        return next(count for count in range(fewest, head_dim + 1) if head_dim % count == 0)

    def bits_per_value(self, head_dim: int) -> float:
        """Return the bits one stored number takes, its share of the scales included."""
        return 4 + 32 * self.groups(head_dim) / head_dim


class KvFp8(_Scheme):
    """Float8 e4m3, one bf16 scale per token and head."""

    scheme: Literal["fp8"] = "fp8"

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return "fp8"

    def bits_per_value(self, head_dim: int) -> float:
        """Return the bits one stored number takes, its share of the scales included."""
        return 8 + 16 / head_dim


AnyKv = KvUnquantized | KvInt8 | KvInt4 | KvFp8
KvScheme = Annotated[AnyKv, Field(discriminator="scheme")]
