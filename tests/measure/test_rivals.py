"""Rivals on a tiny Wan: they act, their cost is counted, and the pipeline is the plain one afterwards."""

import copy

import pytest
import torch

from accel.errors import AccelError
from accel.measure.block_calls import count_block_calls
from accel.measure.held_memory import held_bytes
from accel.measure.rivals import RIVALS, mag_ratios, missing, rival
from accel.measure.snapshot import Snapshot
from tests.tiny_pipelines import STEPS, TINY

CASE = TINY["wan"]
BLOCKS = 4
CALLS = 2 * STEPS * BLOCKS

# With so high a threshold every cache reuses whenever it may: (settings, block calls that are left of 64).
# first-block: the whole first step, then the probe. magcache: 4 steps of two branches, as it reuses no more than 3 in
# a row after the first. taylorseer: whole on steps 0, 1, 3, 5, 7. seacache: whole on steps 0, 3, 6, 7. dbcache: three
# steps whole, then the probe.
HIGH = {
    "first-block": ({"threshold": 1e9}, 2 * (BLOCKS + STEPS - 1)),
    "magcache": ({"threshold": 1e9, "retention_ratio": 0.1}, 2 * 2 * BLOCKS),
    "taylorseer": ({"cache_interval": 2, "disable_cache_before_step": 2}, 2 * 5 * BLOCKS),
    "seacache": ({"threshold": 1e9}, 2 * 4 * BLOCKS),
    "dbcache": ({"residual_diff_threshold": 1e9, "max_warmup_steps": 3}, 2 * (3 * BLOCKS + STEPS - 3)),
    "torchao-int8": ({}, CALLS),
    "flex": ({}, CALLS),
}
HOLD_NOTHING = ("torchao-int8", "flex")


@pytest.fixture(scope="module")
def pipe():
    pipe = CASE.build()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def plain(pipe):
    return CASE.run(pipe)


def settings_of(name, pipe):
    settings = dict(HIGH[name][0])
    if name == "magcache":
        settings |= {"mag_ratios": mag_ratios(pipe, STEPS, lambda: CASE.run(pipe)), "num_inference_steps": STEPS}
    return settings


def attributes(pipe):
    modules = pipe.transformer.modules()
    own = [(module, {k: copied(v) for k, v in vars(module).items()}) for module in modules]
    processors = [dict(vars(block.attn1.processor)) for block in pipe.transformer.blocks]
    return own, processors, sorted(vars(pipe)), dict(vars(type(pipe)))


def copied(value):
    """Parameters by what they are, since those of a dictionary have no order by themselves."""
    return [(key, id(one)) for key, one in value.items()] if isinstance(value, dict) else value


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_acts_and_goes_without_a_trace(name, pipe, plain):
    if (reason := missing(name)) is not None:
        pytest.skip(reason)
    before = attributes(pipe)
    with count_block_calls(pipe) as calls, rival(pipe, name, **settings_of(name, pipe)) as found:
        first_calls = calls.computed
        latents = CASE.run(pipe)
        acted = calls.computed - first_calls
        assert torch.equal(CASE.run(pipe), latents)
    assert acted == HIGH[name][1]
    assert torch.isfinite(latents).all() and not torch.equal(latents, plain)
    assert found.library.split()[0] in ("diffusers", "cache-dit", "torchao", "torch")
    tokens = CASE.tokens * pipe.transformer.config.num_attention_heads * pipe.transformer.config.attention_head_dim * 4
    assert found.held_bytes == 0 if name in HOLD_NOTHING else found.held_bytes >= 2 * tokens
    assert found.left_behind
    assert attributes(pipe) == before
    assert torch.equal(CASE.run(pipe), plain)


def test_a_rival_goes_after_an_exception_too(pipe, plain):
    before = attributes(pipe)

    def stop(_pipe, step, _timestep, _kwargs):
        raise RuntimeError(f"stopped at {step}")

    with pytest.raises(RuntimeError, match="stopped at 0"), rival(pipe, "first-block", threshold=1e9):
        CASE.run(pipe, callback_on_step_end=stop)
    assert attributes(pipe) == before
    with rival(pipe, "first-block", threshold=0.0):
        assert torch.equal(CASE.run(pipe), plain)


def test_dbcache_with_its_calibrator_differs_from_plain_reuse(pipe, plain):
    if (reason := missing("dbcache")) is not None:
        pytest.skip(reason)
    latents = []
    # Its calibrator knows a slope from the fourth step on.
    for order in (None, 1):
        with rival(pipe, "dbcache", residual_diff_threshold=1e9, max_warmup_steps=4, taylorseer=order):
            latents.append(CASE.run(pipe))
    assert not torch.equal(*latents)


def test_block_calls_of_a_plain_run(pipe, plain):
    forwards = [vars(block).get("forward") for block in pipe.transformer.blocks]
    with count_block_calls(pipe) as calls:
        assert torch.equal(CASE.run(pipe), plain)
    assert calls.computed == CALLS
    assert [vars(block).get("forward") for block in pipe.transformer.blocks] == forwards


def test_mag_ratios_are_those_of_a_run(pipe, plain):
    ratios = mag_ratios(pipe, STEPS, lambda: CASE.run(pipe))
    assert len(ratios) == STEPS and ratios[0] == 1.0 and all(0.5 < ratio < 2 for ratio in ratios)
    with pytest.raises(AccelError, match=f"saw {STEPS} of {STEPS + 1} steps"):
        mag_ratios(pipe, STEPS + 1, lambda: CASE.run(pipe))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("seacach", "nearest: 'seacache'"),
        ("pyramid", "gives one guidance branch the attention of the other"),
        ("fastercache", "guidance in one batch"),
    ],
)
def test_what_is_not_measured_is_refused(pipe, plain, name, line):
    with pytest.raises(AccelError, match=line), rival(pipe, name):
        pass


@pytest.mark.parametrize("name", ["dbcache", "torchao-int8"])
def test_a_rival_that_is_not_installed_is_named(monkeypatch, pipe, plain, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing("first-block") is None
    with pytest.raises(AccelError, match=r"is not installed: pip install \"dit-accel\[rivals\]\""), rival(pipe, name):
        pass


def test_flex_attention_is_near_the_plain_attention_and_of_this_pipeline_alone(pipe, plain):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    before = Registry.get_active_backend()
    with rival(pipe, "flex"):
        assert Registry.get_active_backend() == before
        latents = CASE.run(pipe)
    assert torch.allclose(latents, plain, atol=1e-4) and not torch.equal(latents, plain)
    with pytest.raises(AccelError, match="no setting 'block'"), rival(pipe, "flex", block=64):
        pass


def test_flex_attention_is_refused_where_no_attention_takes_a_backend():
    other = TINY["cogvideox"].build()
    with pytest.raises(AccelError, match="FlexAttention cannot go on this model"), rival(other, "flex"):
        pass


def test_torchao_multiplies_in_int8(pipe, plain):
    if (reason := missing("torchao-int8")) is not None:
        pytest.skip(reason)
    linear = pipe.transformer.blocks[0].attn1.to_q
    weight = linear.weight
    with rival(pipe, "torchao-int8") as found:
        assert type(linear.weight).__name__ == "Int8Tensor"
        latents = CASE.run(pipe)
    assert linear.weight is weight and found.left_behind == ["_parameters", "extra_repr"]
    assert 0 < (latents - plain).square().mean().sqrt() < 0.2 * plain.std()


def test_what_fails_while_it_goes_on_leaves_nothing(pipe, plain, monkeypatch):
    before = attributes(pipe)

    def fails(pipe, *_):
        pipe.transformer.blocks[0].mark = pipe.transformer.blocks[0].attn1.processor.mark = 1
        raise RuntimeError("half way")

    monkeypatch.setattr("accel.measure.rivals._diffusers", fails)
    with pytest.raises(RuntimeError, match="half way"), rival(pipe, "first-block"):
        pass
    assert attributes(pipe) == before


def test_a_snapshot_names_and_undoes_what_was_changed(pipe, plain):
    before = attributes(pipe)
    snapshot = Snapshot(pipe)
    block = pipe.transformer.blocks[0]
    block.mark, block.training = 1, None
    handle = block.register_forward_hook(lambda *_: None)
    pipe.mark = type(pipe).mark = 1
    pipe.transformer.blocks = pipe.transformer._modules.pop("blocks")
    left = snapshot.restore()
    assert left == ["WanPipeline.mark", "_forward_hooks", "_modules", "mark", "training"]
    assert attributes(pipe) == before
    assert snapshot.restore() == []
    handle.remove()


def test_held_bytes_counts_each_storage_once():
    tensor = torch.zeros(10)

    class Holder:
        def __init__(self):
            self.inner = {"a": [tensor, tensor[2:]], "b": (copy.copy(self), torch.zeros(3, dtype=torch.float64))}
            self.module = torch.nn.Linear(100, 100)
            self.again = self

    assert held_bytes(Holder(), tensor) == 40 + 24
    assert held_bytes() == 0
