"""How the linears of a transformer are stored, as diffusers hands it on and writes it beside the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, cast, get_args

from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from accel.errors import AccelError
from accel.methods.base import nearest
from accel.methods.quantization_settings import QuantizationConfig
from accel.methods.sensitive import StaticFormat
from accel.methods.weight_bytes import WeightFormat

VERSION = 1
FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
_ROTATED = "-rotated"


class Quantizer(StrEnum):
    """The name of Accel's quantizer, as diffusers asks for it: a diffusers that does not know it reads nothing."""

    ACCEL = "dit-accel"


class StoredWeightsConfig(QuantizationConfigMixin):
    """Weights of the transformer's linears stored in INT8 or NVFP4 while it loads, and saved so.

    For `from_pretrained(..., quantization_config=...)` of a transformer, or in diffusers' `PipelineQuantizationConfig(
    quant_mapping={"transformer": ...})`. Activations are left as they are until `accel.enable(pipe, quantize=...)`.

    Args:
        weights: "nvfp4", with 4.5 bits for each number, or "int8".
        rotate: Whether weights are multiplied by a Hadamard matrix in blocks of 128 channels, where 128 divides them.
            None is True for "int8" and False for "nvfp4"; `quantize="mixed"` would have it True.
        modules_to_not_convert: Linears that stay as they are, beside those that the family's facts name: paths in the
            transformer, which stand for all that is under them, or patterns such as "*.to_q".
        modules_to_convert: Linears that are stored although the family's facts name them, likewise.
        quantize_modulation: Whether the linears that make scales and shifts of the timestep are stored in NVFP4 too.
        static_share: Fraction of the linears, those whose weights lose most in NVFP4, that are held in `static_format`.
        static_format: What these are held in: "int8", or "16bit" as they are.
        **saved: What a saved model has beside these: `version`, and `layers`, the stored linears by format.

    Raises:
        AccelError: a setting is unknown or impossible, or a newer Accel saved the model.
    """

    def __init__(
        self,
        weights: WeightFormat = "nvfp4",
        *,
        rotate: bool | None = None,
        modules_to_not_convert: Iterable[str] | None = (),
        modules_to_convert: Iterable[str] | None = (),
        quantize_modulation: bool = False,
        static_share: float = 0.0,
        static_format: StaticFormat = "int8",
        **saved: Any,
    ) -> None:
        version = saved.pop("version", VERSION)
        if type(version) is not int or version > VERSION:
            raise AccelError(
                f"these weights were stored by a newer Accel, in version {version!r}, and this one reads version "
                f"{VERSION}: update dit-accel"
            )
        method = saved.pop("quant_method", Quantizer.ACCEL)
        if method != Quantizer.ACCEL:
            raise AccelError(f"quant_method={method!r} is another quantizer's; Accel's is {Quantizer.ACCEL.value!r}")
        layers = saved.pop("layers", None)
        if saved:
            name = next(iter(saved))
            raise AccelError(f"StoredWeightsConfig has no setting {name!r}{nearest(name, self._settings())}")
        if weights not in FORMATS:
            raise AccelError(f"weights={weights!r} is no format: there are {' and '.join(map(repr, FORMATS))}")
        rotate = weights == "int8" if rotate is None else rotate
        for setting, value in (("rotate", rotate), ("quantize_modulation", quantize_modulation)):
            if not isinstance(value, bool):
                raise AccelError(f"{setting}={value!r} is not possible: it is True or False")
        if not (isinstance(static_share, (int, float)) and 0.0 <= static_share <= 1.0):
            raise AccelError(f"static_share={static_share!r} is not possible: it is a fraction, from 0 to 1")
        if static_share and weights != "nvfp4":
            raise AccelError(f"static_share spares linears from NVFP4, and weights={weights!r} has none in it")
        if static_format not in get_args(StaticFormat):
            raise AccelError(f"static_format={static_format!r} is no format: there are 'int8' and '16bit'")
        self.quant_method = cast(Any, Quantizer.ACCEL)
        self.version = VERSION
        self.weights = weights
        self.rotate = rotate
        self.modules_to_not_convert = _names("modules_to_not_convert", modules_to_not_convert)
        self.modules_to_convert = _names("modules_to_convert", modules_to_convert)
        self.quantize_modulation = quantize_modulation
        self.static_share = static_share
        self.static_format = static_format
        self.layers = None if layers is None else _checked(layers)

    @classmethod
    def of(cls, config: QuantizationConfig) -> StoredWeightsConfig:
        """Weights as a quantization would store them."""
        return cls(
            config.weights,
            rotate=config.rotates,
            modules_to_not_convert=config.modules_to_not_convert,
            modules_to_convert=config.modules_to_convert,
            quantize_modulation=config.quantize_modulation,
            static_share=getattr(config, "static_share", 0.0),
            static_format=getattr(config, "static_format", "int8"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in the model's `config.json`."""
        return {**vars(self), "quant_method": Quantizer.ACCEL.value}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same; all of it is worth printing."""
        return self.to_dict()

    def stored(self) -> dict[str, tuple[WeightFormat, bool]]:
        """Of a saved model, by the path of each stored linear: its format, and whether it is rotated."""
        return {
            path: (cast(WeightFormat, kind.removesuffix(_ROTATED)), kind.endswith(_ROTATED))
            for kind, paths in (self.layers or {}).items()
            for path in paths
        }

    def keep(self, stored: Mapping[str, tuple[WeightFormat, bool]]) -> None:
        """Notes what `stored` is to give back."""
        self.layers = {}
        for path, (weight_format, rotated) in stored.items():
            self.layers.setdefault(f"{weight_format}{_ROTATED if rotated else ''}", []).append(path)

    @staticmethod
    def _settings() -> list[str]:
        return [
            "weights",
            "rotate",
            "modules_to_not_convert",
            "modules_to_convert",
            "quantize_modulation",
            "static_share",
            "static_format",
        ]


def _names(setting: str, given: Any) -> list[str]:
    names: list[Any] = [] if given is None else list(given) if _is_list(given) else [None]
    if not all(isinstance(name, str) for name in names):
        raise AccelError(f"{setting} is a list of paths or patterns, as in {setting}=['blocks.0', '*.to_q']")
    return names


def _is_list(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str)


def _checked(layers: Any) -> dict[str, list[str]]:
    kinds = [*FORMATS, *(f"{weight_format}{_ROTATED}" for weight_format in FORMATS)]
    if not isinstance(layers, Mapping) or not all(map(_is_list, layers.values())):
        raise AccelError("layers is what Accel writes beside stored weights: save the model again")
    unknown = next((kind for kind in layers if kind not in kinds), None)
    if unknown is not None:
        raise AccelError(
            f"linears are stored in {unknown!r}, which this Accel does not read: it reads {', '.join(kinds)}"
        )
    return {kind: list(paths) for kind, paths in layers.items()}
