"""FlashBlock behind a frozen past: what is kept of earlier chunks and when it is used, memory, refusals, reports."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import accel
from accel.errors import AccelError, AccelWarning
from accel.kernels.forms import use
from accel.measure.calibration import calibrate_flashblock
from accel.methods import flashblock_form
from accel.methods.flashblock import FlashBlockConfig
from accel.methods.flashblock_calibration import Calibration
from accel.methods.flashblock_chunks import ChunkFlashBlock, Past, _go_on, _over
from accel.methods.rules import remarks
from accel.pipelines.attention import AttentionCall, External
from tests.conformance.snapshot import snapshot
from tests.sparse_calls import last
from tests.stand_ins import standing_in
from tests.tiny_pipelines import TINY

CASE = TINY["anyflow_far"]
LAYERS = 4
# 64 tokens a frame, so that two of the chunks are padded; before the third chunk there are 16 coarse tokens and 128.
SMALL: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "num_frames": 7,
    "chunk_partition": [1, 2, 1],
    "num_inference_steps": 5,
}
FORMS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.interpreter)]


@cache
def built() -> tuple[Any, Tensor]:
    """The pipeline, and what it gives plainly; a test gives it back as it found it."""
    pipe = CASE.build()
    return pipe, small(pipe)


def small(pipe: Any, **overrides: Any) -> Tensor:
    return CASE.run(pipe, **{**SMALL, **overrides})


def apart(mine: Tensor, theirs: Tensor) -> float:
    return ((mine - theirs).norm() / theirs.norm()).item()


def report(session: Any, method: str = "flashblock") -> dict[str, Any]:
    return last(session)["methods"][method]


def chunk(seed: int, *, past: int = 37, own: int = 20, padding: int = 12) -> tuple[Tensor, Tensor, Tensor, External]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, own, 2, 16, generator=generator)
    before = torch.randn(2, 1, past, 2, 16, generator=generator)
    zeros = torch.zeros(1, padding, 2, 16)
    key, value = torch.cat([key, zeros], 1), torch.cat([value, zeros], 1)
    return query, key, value, External(past, lambda: (before[0], before[1]))


def over_all(query: Tensor, key: Tensor, value: Tensor, external: External) -> Tensor:
    keys, values = (torch.cat([old, own], 1) for old, own in zip(external.read(), (key, value), strict=True))
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), keys.double()) / query.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values.double())


@pytest.mark.parametrize("form", FORMS)
def test_a_part_just_computed_makes_all_of_the_attention_the_zeros_included(form: str) -> None:
    query, key, value, external = chunk(1)
    with use(form):
        past = Past(*_over(query, external, None), external.tokens, 0)
        out = _go_on(query, key, value, past, None)
    assert past.lse.dtype == torch.float32
    assert apart(out.double(), over_all(query, key, value, external)) < 1e-5
    without = over_all(query, key[:, :20], value[:, :20], external)
    assert apart(out.double(), without) > 1e-2, "zero keys take a share of the softmax"


def test_the_error_of_reuse_shrinks_with_the_change_of_the_queries() -> None:
    query, key, value, external = chunk(1)
    direction = chunk(2)[0]
    past, errors = Past(*_over(query, external, None), external.tokens, 0), []
    for size in (0.1, 0.05, 0.025):
        moved = query + size * direction
        errors.append(apart(_go_on(moved, key, value, past, None).double(), over_all(moved, key, value, external)))
    for larger, smaller in pairwise(errors):
        assert smaller == pytest.approx(larger / 2, rel=0.1), "first order in the change"


def test_the_log_sum_exp_is_float32_in_bfloat16() -> None:
    query, _, _, external = chunk(1)
    out, lse = _over(query.bfloat16(), external, None, torch.tensor([1]))
    assert (out.dtype, lse.dtype, out.shape, lse.shape) == (torch.bfloat16, torch.float32, (1, 20, 1, 16), (1, 1, 20))


def test_chunks_begin_with_a_refresh_and_the_summary_says_so() -> None:
    pipe, plain = built()
    with accel.enable(pipe, cache="flashblock") as session:
        first, second = small(pipe), small(pipe)
        slow = remarks(session.methods[0], 4, "mps")
    assert torch.equal(first, second) and 0 < apart(first, plain) < 0.05
    run, found = last(session), report(session)
    assert run["notes"] == [], "a chunk has few steps, and its past is long"
    assert slow == ["flashblock has fast kernels for cpu, cuda or xpu: on mps it runs slowly"]
    assert (run["steps"], run["planned_steps"], run["chunks"], run["filling_calls"]) == (15, 15, 3, 2)
    assert run["branches"] == ["cond_uncond"] and run["grid"] == [1, 8, 8]
    assert found["refreshed_by_step"] == [0] * 5 + [LAYERS, 0, 0, LAYERS, 0] * 2
    assert found["reused_by_step"] == [0] * 5 + [0, LAYERS, LAYERS, 0, LAYERS] * 2
    assert (found["attention_calls"], found["without_past"], found["dense"]) == (15 * LAYERS, 5 * LAYERS, 0)
    assert found["reused_fraction"] == pytest.approx(6 / 15) and found["heads_refreshed"] == 0
    # The second chunk has 128 keys and 64 before; the third 64, as many zeros, and 16 coarse ones and 128 before.
    keys = (128 / 192 + 128 / 272) / 2
    assert found["density"] == pytest.approx(keys)
    assert found["overall_density"] == pytest.approx((6 * keys + 9) / 15)
    # Guidance in one batch; the second chunk is the largest.
    assert found["held_bytes"] == LAYERS * 2 * 128 * 2 * (64 * 4 + 4)
    text = str(session.summary())
    assert "15 steps in 3 chunks and 2 calls between them, cond_uncond, 64 tokens (1×8×8) in the first" in text
    assert f"reused the attention to earlier chunks in {6 * LAYERS} of {15 * LAYERS} attention calls (40.0%)" in text
    assert f"{4 * LAYERS} refreshed by interval 3, without calibration, 0 were dense" in text


def test_what_no_step_could_reuse_is_left_to_diffusers() -> None:
    pipe, _ = built()
    with accel.enable(pipe, cache="flashblock") as session:
        small(pipe, num_inference_steps=4)
    found = report(session)
    assert found["refreshed_by_step"] == [0] * 4 + [LAYERS, 0, 0, 0] * 2
    assert (found["dense"], found["reused"]) == (2 * LAYERS, 4 * LAYERS)


def test_the_stand_in_gives_the_bits_of_diffusers_with_zeros_and_coarse_keys_too() -> None:
    pipe, plain = built()
    seen: list[tuple[int, int, int]] = []

    def note(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        assert call.external is not None
        old_key, old_value = call.external.read()
        assert old_key.shape == old_value.shape == (2, call.external.tokens, 2, 64)
        seen.append((query.shape[1], key.shape[1], call.external.tokens))
        return call.dense(query, key, value)

    with standing_in(pipe, note):
        assert torch.equal(small(pipe), plain)
    assert list(dict.fromkeys(seen)) == [(64, 128, 0), (128, 128, 64), (64, 128, 144)]
    own = pipe.transformer.blocks[0].attn1.processor
    own._attention_backend = "native"
    with standing_in(pipe, note), pytest.raises(ValueError, match="requires the 'flex' attention backend"):
        small(pipe)
    del own._attention_backend


def test_what_is_kept_for_later_chunks_is_always_computed() -> None:
    """The calls between chunks fill the cache with what the plain transformer makes of the same frames."""
    pipe, _ = built()
    kept: list[tuple[dict[str, Any], dict[int, dict[str, Tensor]]]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs["kv_cache_flag"]["is_cache_step"]:
            cache = {layer: {n: x.clone() for n, x in parts.items()} for layer, parts in kwargs["kv_cache"].items()}
            kept.append(({**kwargs, "hidden_states": kwargs["hidden_states"].clone()}, cache))

    handle = pipe.transformer.register_forward_hook(note, with_kwargs=True)
    with accel.enable(pipe, cache="flashblock", interval=100):
        small(pipe)
    handle.remove()
    assert len(kept) == 2
    again = {layer: {n: torch.zeros_like(x) for n, x in parts.items()} for layer, parts in kept[0][1].items()}
    for kwargs, wanted in kept:
        with torch.no_grad():
            pipe.transformer(**{**kwargs, "kv_cache": again})
        for layer, parts in wanted.items():
            assert all(
                torch.equal(again[layer][name], x) and x.any()
                for name, x in parts.items()
                if x.numel() and (name == "full_cache" or kwargs is kept[1][0])
            )


def bounds(tmp_path: Path, calibration: Calibration) -> FlashBlockConfig:
    conditions = calibration.conditions
    file = str(calibration.save(tmp_path / "calibration.json"))
    return FlashBlockConfig(calibration=file, similarity=conditions.similarity, lse_drift=conditions.lse_drift)


@cache
def calibrated(**limits: float) -> Calibration:
    pipe, plain = built()
    results: list[Tensor] = []
    made = calibrate_flashblock(pipe, [lambda: results.append(small(pipe))], config=FlashBlockConfig(**limits))
    assert apart(results[0], plain) < 1e-4, "a calibration run computes everything"
    assert torch.equal(small(pipe), plain)
    return made


def test_a_calibration_has_every_step_but_a_chunks_first() -> None:
    made = calibrated()
    assert set(made.cosine) == {f"transformer/{step}/{layer}" for step in range(1, 5) for layer in range(LAYERS)}
    assert all(len(heads) == 2 and all(0.5 < cosine < 1 for cosine in heads) for heads in made.cosine.values())
    assert (made.conditions.density, made.conditions.block_size, made.conditions.num_steps) == (None, None, 5)


def test_all_heads_refreshed_is_dense(tmp_path: Path) -> None:
    pipe, plain = built()
    config = bounds(tmp_path, calibrated(similarity=1.0, lse_drift=0.0))
    with (
        accel.enable(pipe, cache=config) as session,
        pytest.warns(AccelWarning, match=r"every call was due for a refresh by the calibration"),
    ):
        assert apart(small(pipe), plain) < 1e-5
    found = report(session)
    assert (found["refreshed"], found["dense"], found["reused"]) == (2 * 4 * LAYERS, 2 * LAYERS, 0)


def test_a_calibration_has_some_heads_computed_anew(tmp_path: Path) -> None:
    pipe, plain = built()
    middle = torch.tensor(list(calibrated().drift.values())).median().item()
    errors = {}
    for drift in (1e9, middle):
        config = bounds(tmp_path, calibrated(similarity=-1.0, lse_drift=drift))
        with accel.enable(pipe, cache=config) as session:
            errors[drift] = apart(small(pipe), plain)
        found = report(session)
        assert found["refreshed_by_step"][5] == LAYERS and found["reused"] > 0
        assert (found["heads_refreshed"] > 0) == (drift == middle)
        assert ("of their heads anew" in str(session.summary())) == (drift == middle)
    assert 0 < errors[middle] < errors[1e9]
    other = small(pipe, num_inference_steps=3)
    with accel.enable(pipe, cache=config), pytest.raises(AccelError, match="made for num_steps=5, not 3"):
        small(pipe, num_inference_steps=3)
    assert torch.equal(small(pipe, num_inference_steps=3), other)


def test_memory_is_checked_before_anything_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, plain = built()
    line = (
        r"flashblock would hold .* GB, more than memory_limit=0.0001 allows: for 4 attentions of 128 tokens it keeps "
        r".* GiB of their attention to earlier chunks for the one call in each step"
    )
    with accel.enable(pipe, cache="flashblock", memory_limit=1e-4) as session:
        with pytest.raises(AccelError, match=line):
            small(pipe)
        assert last(session)["state"] == "broken off" and report(session)["held_bytes"] == 0
    monkeypatch.setattr(flashblock_form, "free_bytes", lambda device: 200_000)
    with (
        accel.enable(pipe, cache="flashblock"),
        pytest.raises(AccelError, match=r"half of the free memory, 0\.0001 GB"),
    ):
        small(pipe)
    assert torch.equal(small(pipe), plain)


def test_an_exception_outside_of_the_denoiser_leaves_the_next_run_clean() -> None:
    pipe, plain = built()
    before = snapshot(pipe)

    def stop(_pipe: Any, step: int, _timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        calls.append(step)
        if len(calls) == 8:  # in the second chunk, with parts kept
            raise KeyboardInterrupt
        return kept

    calls: list[int] = []
    with accel.enable(pipe, cache="flashblock") as session:
        expected = small(pipe)
        with pytest.raises(KeyboardInterrupt):
            small(pipe, callback_on_step_end=stop)
        (method,) = session.methods
        assert isinstance(method, ChunkFlashBlock) and not method._state.values(), "nothing is held any more"
        run = last(session)
        assert (run["state"], run["steps"], run["planned_steps"]) == ("broken off", 8, 15)
        assert torch.equal(small(pipe), expected)
    assert snapshot(pipe) == before
    assert torch.equal(small(pipe), plain)


def test_a_given_beginning_counts_as_a_chunk() -> None:
    pipe, _ = built()
    shape = (1, 1, pipe.transformer.config.in_channels, 16, 16)
    given = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with accel.enable(pipe, cache="flashblock") as session:
        out = small(pipe, video_latents=given)
    assert torch.equal(out[:, :, :1], given.permute(0, 2, 1, 3, 4))
    run, found = last(session), report(session)
    assert (run["steps"], run["planned_steps"], run["chunks"], run["filling_calls"]) == (10, 10, 2, 2)
    assert found["without_past"] == 0 and found["refreshed_by_step"] == [LAYERS, 0, 0, LAYERS, 0] * 2


def test_one_chunk_is_told() -> None:
    pipe, _ = built()
    one = {"num_frames": 3, "chunk_partition": [2]}
    plain = small(pipe, **one)
    line = "did nothing: no call attended to an earlier chunk"
    with accel.enable(pipe, cache="flashblock") as session, pytest.warns(AccelWarning, match=line):
        assert torch.equal(small(pipe, **one), plain)
    assert report(session)["without_past"] == 5 * LAYERS


def test_too_few_steps_are_told() -> None:
    pipe, _ = built()
    plain = small(pipe, num_inference_steps=1)
    line = "every call was due for a refresh at interval=3 and 1 steps in a chunk"
    with accel.enable(pipe, cache="flashblock") as session, pytest.warns(AccelWarning, match=line):
        assert torch.equal(small(pipe, num_inference_steps=1), plain)
    assert last(session)["chunks"] == 3, "also where a chunk begins at the timestep at which the last one did"


@pytest.mark.parametrize("guidance", [{"guidance_scale": 1.0}, {"prompt": ["a red fox", "two hills"]}])
def test_without_guidance_and_with_two_prompts(guidance: dict[str, Any]) -> None:
    pipe, _ = built()
    call = {"num_inference_steps": 3, "negative_prompt": None, **guidance}
    plain = small(pipe, **call)
    with accel.enable(pipe, cache="flashblock") as session:
        assert 0 < apart(small(pipe, **call), plain) < 0.05
    assert report(session)["reused"] == 4 * LAYERS


@pytest.mark.parametrize("cache", [{"cache": "delta"}, {"cache": "tdc", "threshold": 10.0, "max_skips": 2}])
def test_block_caches_begin_anew_with_every_chunk(cache: dict[str, Any]) -> None:
    pipe, plain = built()
    with accel.enable(pipe, **cache) as session:
        assert 0 < apart(small(pipe), plain) < 0.2
    found = report(session, cache["cache"])
    by_step = found["reused_by_step"]
    assert by_step[:5] == by_step[5:10] == by_step[10:] and by_step[0] == 0 < found["reused"] == sum(by_step)
    assert found["block_calls"] == 15 * LAYERS, "calls between chunks are no steps"


def test_a_block_caches_memory_limit_holds_in_the_largest_chunk() -> None:
    """A change takes 131 kB in the first chunk, with its slope, and 262 kB in the second: two units fit there."""
    pipe, _ = built()
    settings = {"threshold": 10.0, "units": "blocks", "memory_limit": 600_000 / 1e9}
    with accel.enable(pipe, cache="tdc", **settings) as session:
        small(pipe, num_frames=5, chunk_partition=[1, 2])
    run, found = last(session), report(session, "tdc")
    assert found["held_bytes"] == 4 * 131_072 == 2 * 262_144
    assert found["reused_by_step"] == [0, 0, 0, LAYERS, 0] * 2 and not run["fallbacks"]
    assert any("holds 2 of 4 units of 0.000262 GB each" in note for note in run["notes"])


def test_beside_a_block_cache_a_refresh_is_computed() -> None:
    pipe, _ = built()
    caches = ["flashblock", {"method": "tdc", "threshold": 10.0, "max_skips": 7, "order": 0, "dense_steps": 0.0}]
    with accel.enable(pipe, cache=caches) as session:
        small(pipe, num_inference_steps=6)
    skipped = report(session, "tdc")["reused_by_step"]
    # A refresh is due at each chunk's fourth step; the first chunk has nothing to refresh.
    assert [count > 0 for count in skipped] == [False, False, True, True, True, False] + [
        False,
        False,
        True,
        False,
        True,
        False,
    ] * 2
    assert report(session)["refreshed_by_step"] == [0] * 6 + [LAYERS, 0, 0, LAYERS, 0, 0] * 2
    assert {found["reason"] for found in last(session)["fallbacks"]} == {"flashblock: a refresh is due"}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"attention": "pisa"}, "pisa works on self or joint attention, and that of AnyFlow-FAR is chunk attention"),
        ({"attention": "adaspa"}, "adaspa works on self or joint attention, .*; cache='delta', .* does without"),
        ({"attention": "adaspa", "cache": "flashblock"}, "adaspa works on self or joint attention"),
        ({"cache": "flashblock", "density": 0.5}, "flashblock: density=0.5 chooses blocks, .*: leave it out"),
        ({"cache": "flashblock", "tiling": "none"}, "flashblock: tiling=none chooses blocks"),
    ],
)
def test_refusals(settings: dict[str, Any], line: str) -> None:
    pipe, _ = built()
    before = snapshot(pipe)
    with pytest.raises(AccelError, match=line):
        accel.enable(pipe, **settings)
    assert snapshot(pipe) == before


def test_model_offload_while_enabled() -> None:
    pipe = CASE.build()
    plain = small(pipe)
    with accel.enable(pipe, cache="flashblock") as session:
        accelerated = small(pipe)
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(small(pipe), accelerated)
        assert report(session)["reused"] > 0
    assert torch.equal(small(pipe), plain)
    pipe.remove_all_hooks()
    assert torch.equal(small(pipe), plain)


def test_compiled_blocks_stay_one_graph_and_are_plain_again() -> None:
    pipe = CASE.build()
    short = {"num_frames": 3, "chunk_partition": [1, 1], "num_inference_steps": 2}
    plain = small(pipe, **short)
    with accel.enable(pipe, cache="flashblock"):
        eager = small(pipe, **short)
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    with accel.enable(pipe, cache="flashblock") as session:
        compiled = small(pipe, **short)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert report(session)["reused"] == LAYERS
    assert apart(compiled, eager) < 1e-5 and apart(eager, plain) > 1e-4
    assert apart(small(pipe, **short), plain) < 1e-5
