"""Calibration of methods that take one, from runs of the pipeline itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from accel.methods.activation_scales import ScaleCalibration
from accel.methods.base import MethodConfig
from accel.methods.fingerprint import fingerprint
from accel.methods.flashblock import FlashBlockConfig
from accel.methods.flashblock_calibration import Calibration
from accel.methods.flashblock_form import FlashBlockForm
from accel.methods.mixed import MixedPrecision, MixedPrecisionConfig
from accel.methods.nvfp4 import NVFP4, NVFP4Config
from accel.methods.precision_calibration import Calibration as PrecisionCalibration
from accel.pipelines.sites import inspect_pipeline
from accel.session import enable


def calibrate_flashblock(
    pipe: Any,
    runs: Sequence[Callable[[], Any]],
    *,
    config: FlashBlockConfig | None = None,
    attention: str | MethodConfig | None = None,
) -> Calibration:
    """Measures for each layer, step and head when FlashBlock has to compute its part anew.

    The runs compute everything and are slower than plain ones. All take the same number of steps; the more their
    prompts differ, the better.

    Args:
        pipe: the pipeline; it is not enabled, and comes back as it was.
        runs: each makes one run, as in `[lambda: pipe("a red fox")]`.
        config: FlashBlock's settings: `similarity` and `lse_drift` are the bounds.
        attention: the sparse attention that will stand beside it.

    Returns:
        The calibration; `save(path)` writes the file that `FlashBlockConfig.calibration` names.

    Raises:
        AccelError: the settings do not go together, or the runs differ in steps or reuse nothing.
    """
    with enable(pipe, attention=attention, cache=config or FlashBlockConfig()) as session:
        (method,) = (method for method in session.methods if isinstance(method, FlashBlockForm))
        measured = method.measure()
        for run in runs:
            run()
    return measured.calibration(method.fingerprint)


def calibrate_mixed(
    pipe: Any,
    runs: Sequence[Callable[[], Any]],
    *,
    config: MixedPrecisionConfig | None = None,
    attention: str | MethodConfig | None = None,
) -> PrecisionCalibration:
    """Measures for each layer how its error with 4-bit activations follows the change of its block.

    The runs give all layers the finer format, compute the coarser product beside it, and are much slower than plain
    ones. The more their prompts differ, the better.

    Args:
        pipe: the pipeline; it is not enabled, and comes back as it was.
        runs: each makes one run, as in `[lambda: pipe("a red fox")]`.
        config: settings of mixed precision, without `calibration` and `threshold`.
        attention: the sparse attention that will stand beside it.

    Returns:
        The calibration; `save(path)` writes the file that `MixedPrecisionConfig.calibration` names.

    Raises:
        AccelError: the settings do not go together, or the runs have a single step.
    """
    # The errors are those of the low format itself, whatever would run in its place.
    settings = (config or MixedPrecisionConfig()).model_copy(update={"emulate": True})
    weights = fingerprint(settings.method, inspect_pipeline(pipe).denoisers)
    with enable(pipe, attention=attention, quantize=settings) as session:
        (method,) = (method for method in session.methods if isinstance(method, MixedPrecision))
        measured = method.measure()
        for run in runs:
            run()
    return measured.calibration(weights, settings.rotate)


def calibrate_nvfp4(
    pipe: Any,
    runs: Sequence[Callable[[], Any]],
    *,
    config: NVFP4Config | None = None,
    attention: str | MethodConfig | None = None,
) -> ScaleCalibration:
    """Measures for each layer which power of two fits the magnitudes of its activations.

    The runs have weights in NVFP4 and activations as they are, and are slower than plain ones. The more their prompts
    differ, the better.

    Args:
        pipe: the pipeline; it is not enabled, and comes back as it was.
        runs: each makes one run, as in `[lambda: pipe("a red fox")]`.
        config: settings of NVFP4 linears, without `calibration`.
        attention: the sparse attention that will stand beside it.

    Returns:
        The calibration; `save(path)` writes the file that `NVFP4Config.calibration` names.

    Raises:
        AccelError: the settings do not go together, or the activations of a layer were not finite.
    """
    settings = config or NVFP4Config()
    weights = fingerprint(settings.method, inspect_pipeline(pipe).denoisers)
    with enable(pipe, attention=attention, quantize=settings) as session:
        (method,) = (method for method in session.methods if isinstance(method, NVFP4))
        measured = method.measure()
        for run in runs:
            run()
    return measured.calibration(settings.method, weights, settings.rotate)
