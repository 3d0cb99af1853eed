"""AccelConfig: keywords, files, presets, flat keywords and paths, and one line for everything impossible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import yaml
from pydantic import model_validator

from accel import AccelConfig, AccelError, DeltaCacheConfig
from accel.methods.base import Keyword, MethodConfig
from accel.presets import PRESETS, preset
from accel.session import resolve

DELTA = {"method": "delta", "interval": 3, "cached_blocks": 0.5}


def test_round_trips_through_json_and_yaml(tmp_path: Path) -> None:
    config = AccelConfig(cache=DeltaCacheConfig(interval=3, boundary=0.25))
    assert AccelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert AccelConfig.from_pretrained(config.save_pretrained(tmp_path).parent) == config
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert AccelConfig.from_pretrained(file) == config


@pytest.mark.parametrize("cache", ["delta", ["delta"], DeltaCacheConfig(), {"method": "delta"}, [DeltaCacheConfig()]])
def test_forms_of_a_method(cache: Any) -> None:
    assert AccelConfig(cache=cache).methods == (DeltaCacheConfig(),)


@pytest.mark.parametrize(("attention", "cache"), [("dense", "none"), (None, None), ("dense", [])])
def test_nothing_on(attention: Any, cache: Any) -> None:
    assert AccelConfig(attention=attention, cache=cache).methods == ()


@pytest.mark.parametrize("path", ["cache.interval", "cache.delta.interval", "delta.interval", "interval"])
def test_settings_by_path(path: str) -> None:
    config = AccelConfig(cache="delta").with_setting(path, 4)
    assert config.cache == (DeltaCacheConfig(interval=4),)


class BetweenConfig(MethodConfig):
    """Its settings are possible only together."""

    method: ClassVar[str] = "between"
    keyword: ClassVar[Keyword] = "quantize"

    least: int = 0
    most: int = 1

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least={self.least} is above most={self.most}")
        return self


@pytest.mark.parametrize("names", [("least", "most"), ("quantize.least", "between.most"), ("most", "least")])
def test_settings_are_put_in_together(names: tuple[str, str]) -> None:
    values = {"least": 5, "most": 6}
    overrides = {name: values[name.rpartition(".")[2]] for name in names}
    config = AccelConfig(cache="delta", quantize=BetweenConfig())
    found = config.with_overrides({**overrides, "interval": 4})
    assert found.methods == (DeltaCacheConfig(interval=4), BetweenConfig(least=5, most=6))
    with pytest.raises(AccelError, match=r"^between: least=5 is above most=1$"):
        config.with_overrides({"least": 5})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_and_take_overrides(name: str) -> None:
    assert preset(name).methods
    config = resolve(name, {}, {"threshold": 0.5})
    assert config.cache[0].model_dump()["threshold"] == 0.5
    assert set(config.optional) == {method.method for method in config.methods}
    assert AccelConfig.from_dict(config.to_dict()) == config


def test_a_method_that_is_asked_for_is_not_optional() -> None:
    assert resolve("fast", {"attention": "pisa"}).optional == ("tdc",)
    assert resolve("fast", {"attention": "adaspa", "cache": "delta"}).optional == ()
    assert resolve("fast", {"cache": "none"}).optional == ("pisa",)
    assert AccelConfig(cache="delta", optional=["delta"]).with_setting("interval", 3).optional == ("delta",)


def test_what_a_call_of_enable_means(tmp_path: Path) -> None:
    assert resolve(None) == preset("balanced")
    assert resolve(None, {"cache": "delta"}).cache == (DeltaCacheConfig(),)
    assert [method.method for method in resolve("fast", {"cache": "none"}).methods] == ["pisa"]
    assert resolve("fast", {"cache": "none", "attention": "dense"}).methods == ()
    assert resolve({"cache": [DELTA]}).cache == (DeltaCacheConfig(interval=3, cached_blocks=0.5),)
    saved = AccelConfig(cache=[DELTA])
    saved.save_pretrained(tmp_path)
    assert resolve(None, beside=tmp_path) == saved
    assert resolve(None, {"cache": "delta"}, beside=tmp_path).cache == (DeltaCacheConfig(),)
    assert resolve("balanced", beside=tmp_path) == preset("balanced")
    assert resolve(str(tmp_path)) == saved


REFUSED = {
    "unknown key": (lambda: AccelConfig.from_dict({"cach": ["delta"]}), "nearest: 'cache'"),
    "version": (lambda: AccelConfig.from_dict({"version": 9}), "version 9"),
    "not a mapping": (lambda: AccelConfig.from_dict(["delta"]), "mapping"),
    "unknown method": (lambda: AccelConfig(cache="delt"), "nearest: 'delta'"),
    "wrong keyword": (lambda: AccelConfig(attention="delta"), "attention has no method 'delta'"),
    "config in the wrong keyword": (lambda: AccelConfig(quantize=DeltaCacheConfig()), "goes to cache="),
    "twice": (lambda: AccelConfig(cache=["delta", "delta"]), "names delta twice"),
    "a list for one": (lambda: AccelConfig(attention=["dense"]), "one method, not a list"),
    "optional without the method": (lambda: AccelConfig(cache="tdc", optional=["pisa"]), "'pisa', which is not on"),
    "optional as a word": (lambda: AccelConfig(cache="tdc", optional="tdc"), "list of names of methods, not 'tdc'"),
    "a number": (lambda: AccelConfig(cache=3), "not 3"),
    "unknown setting": (lambda: AccelConfig(cache={**DELTA, "intervall": 2}), "nearest: 'interval'"),
    "out of range": (lambda: AccelConfig(cache={**DELTA, "interval": 0}), "nearest: 1"),
    "above range": (lambda: AccelConfig(cache={**DELTA, "boundary": 1.5}), "nearest: 1"),
    "text for a number": (lambda: AccelConfig(cache={**DELTA, "interval": "2"}), "interval='2' is not possible"),
    "a truth value for a number": (lambda: AccelConfig(cache={**DELTA, "interval": True}), "interval=True"),
    "not a number": (lambda: AccelConfig(cache={**DELTA, "boundary": float("nan")}), "boundary=nan"),
    "flat keyword of nobody": (lambda: resolve("fast", {}, {"threshhold": 2}), "nearest: 'threshold'"),
    "flat keyword of a method that is off": (lambda: resolve(AccelConfig(), {}, {"interval": 2}), "cache='delta'"),
    "path to nobody": (lambda: AccelConfig(cache="delta").with_setting("quantize.bits", 4), "active: cache.delta"),
    "path to no setting": (lambda: AccelConfig(cache="delta").with_setting("cache.intervl", 4), "nearest: 'interval'"),
    "long path": (lambda: AccelConfig(cache="delta").with_setting("a.b.c.d", 4), "names no single active method"),
    "unknown preset": (lambda: resolve("speedy"), "quality, balanced, fast"),
    "a method as a preset": (lambda: resolve("delta"), "enable(pipe, cache='delta')"),
    "a method's config as a preset": (lambda: resolve(DeltaCacheConfig()), "cache="),
    "a number as a preset": (lambda: resolve(3), "not int"),
    "config object out of range": (lambda: DeltaCacheConfig(interval=0), "nearest: 1"),
    "config object with a typing error": (lambda: DeltaCacheConfig(intervall=2), "nearest: 'interval'"),
    "keys that are no text": (lambda: AccelConfig.from_dict({1: 2}), "mapping"),
    "settings that are no text": (lambda: AccelConfig(cache={"method": "delta", 3: 4}), "no setting '3'"),
    "version as a truth value": (lambda: AccelConfig.from_dict({"version": True}), "version True"),
    "empty text": (lambda: resolve(""), "quality, balanced, fast"),
    "missing file": (lambda: resolve("no/such/file.yaml"), "no such file"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refusals_are_one_line(name: str) -> None:
    act, fragment = REFUSED[name]
    with pytest.raises(AccelError) as refusal:
        act()
    message = str(refusal.value)
    assert fragment in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    ["cache: [delta", "- just\n- a list", "cache: {method: delta, interval: 0}", "\x00", "version: 2026-13-01"],
)
def test_bad_files_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(AccelError) as refusal:
        AccelConfig.from_pretrained(file)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)
