"""The settings that all quantizations have."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from accel.methods.base import Keyword, MethodConfig, Toward
from accel.methods.weight_bytes import WeightFormat

Names = Annotated[tuple[str, ...], Field(strict=False)]


class QuantizationConfig(MethodConfig):
    """Settings that all quantizations have.

    On a model whose weights came stored, they may say what holds there, or nothing.

    Attributes:
        modules_to_not_convert: Linears that stay as they are, beside those that the family's facts name: paths in the
            transformer, which stand for all that is under them, or patterns such as "*.to_q".
        modules_to_convert: Linears that are quantized although the family's facts name them, likewise.
        quantize_modulation: Whether the linears that make scales and shifts of the timestep are stored in NVFP4 too,
            beside activations as they are. They cost memory and no time.
        keep_original: Whether the original weights are kept in the memory of the host, for undo. Without, they are read
            again from the folder that the model was loaded from; what that folder does not have is refused.
    """

    keyword: ClassVar[Keyword] = "quantize"
    # What is said of a linear is the format of its activations; the weights are stored in a smaller one always.
    approximate: ClassVar[frozenset[str]] = frozenset({"nvfp4", "int8", "plain"})
    levers: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(sorted(approximate), ("modules_to_not_convert",))
    toward_plain: ClassVar[dict[str, Toward]] = {"modules_to_not_convert": "extend"}
    # The format of the weights, but for modulation and for layers that are spared.
    weights: ClassVar[WeightFormat] = "nvfp4"

    modules_to_not_convert: Names = ()
    modules_to_convert: Names = ()
    quantize_modulation: bool = False
    keep_original: bool = True

    @property
    def rotates(self) -> bool:
        """Whether activations and weights are to be rotated."""
        return bool(getattr(self, "rotate", False))
