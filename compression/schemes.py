"""How one weight tensor can be stored: data only, free of torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


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
    method: Literal["rtn", "mse"] = "rtn"

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return "int8-rows"

    def memory_bytes(self, rows: int, columns: int, itemsize: int) -> int:
        """Return the bytes of a ``[rows, columns]`` weight while it is served."""
        return rows * columns + 2 * rows


class Int4(_Scheme):
    """Int4: one bf16 scale (and zero point, if asymmetric) per ``group_size`` inputs of a row."""

    scheme: Literal["int4"] = "int4"
    group_size: Literal[32, 64, 128] = 32
    symmetric: bool = False
    method: Literal["rtn", "mse"] = "mse"

    @property
    def label(self) -> str:
        """Return the short name used in reports and metrics."""
        return f"int4-g{self.group_size}-{'sym' if self.symmetric else 'asym'}"

    def memory_bytes(self, rows: int, columns: int, itemsize: int) -> int:
        """Return the bytes of a ``[rows, columns]`` weight while it is served.

        The kernel holds a bf16 scale and a bf16 zero point per group, symmetric or not.
        """
        return rows * columns // 2 + 4 * rows * (columns // self.group_size)


WeightScheme = Annotated[Unquantized | Int8 | Int4, Field(discriminator="scheme")]
