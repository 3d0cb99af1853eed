"""The heat maps of `accel bench --heat`: measured once for each setting, kept beside its runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from accel.cli.printing import Format, say
from accel.measure.cells import Place, Store
from accel.measure.heat import measured_heat
from accel.measure.matrix import Work
from accel.measure.trial import Setting


def measure_heat(work: Work, settings: Sequence[Setting], place: Place, store: Store, form: Format) -> None:
    """Makes the map of every setting of Accel that the store has none of; one that fails is said and not kept."""
    for setting in settings:
        if setting.rival is not None or setting.plain or store.heat(setting) is not None:
            continue
        try:
            found = measured_heat(work.pipe, setting.config, partial(_call, work, setting, place))
        except Exception as error:
            # The figures of the table stand without it.
            say(f"heat map of {setting.name}: none ({type(error).__name__}: {' '.join(str(error).split())})", form)
            continue
        store.keep_heat(setting, {**found, "setting": setting.name, "prompt": place.prompt, "seed": place.seed})
        missing = "".join(f"; no {name}: {why}" for name, why in found["unmeasured"].items())
        say(f"heat map of {setting.name}: measured{missing}", form)


def _call(work: Work, setting: Setting, place: Place) -> None:
    # New arguments for every call: a generator goes on where the last one left it.
    work.call(work.arguments(place, setting.steps))
