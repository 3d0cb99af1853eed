"""Names that the facts say and the installed diffusers does not have are refused at enable, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch

import accel
from accel.errors import AccelError
from accel.methods.layer_choice import choose_layers
from accel.pipelines.facts import CallMarks, Family, FreeOrder, TokenArgument
from accel.pipelines.families import families
from accel.pipelines.sites import family_of, inspect_pipeline
from tests.conformance.snapshot import snapshot
from tests.tiny_pipelines import TINY


def _site(**changes: str) -> Callable[[Family], Family]:
    """The family with another fact about the first attention of its first stack."""

    def change(family: Family) -> Family:
        first, *others = family.stacks
        attention = (replace(first.attention[0], **changes), *first.attention[1:])
        return replace(family, stacks=(replace(first, attention=attention), *others))

    return change


def _told(family: Family) -> Family:
    (name, guidance), *others = family.pipelines.items()
    return replace(family, pipelines={name: replace(guidance, told_by={"gone": "third"}), **dict(others)})


def _depths(family: Family) -> Family:
    beside = {name: (replace(stacks[0], depths="gone"),) for name, stacks in family.beside.items()}
    return replace(family, beside=beside)


DOCTORED: tuple[tuple[str, str, Callable[[Family], Family]], ...] = (
    ("wan", "no argument `gone`", lambda f: replace(f, named={"timestep": "gone"})),
    ("wan", "no argument `gone`", lambda f: replace(f, named={"hidden_states": "gone"})),
    ("flux", "no argument `gone`", lambda f: replace(f, grid=replace(f.grid, ids="gone"))),
    ("qwenimage", "no argument `gone`", lambda f: replace(f, grid=replace(f.grid, shapes="gone"))),
    ("ltx", "no argument `gone`", lambda f: replace(f, grid=replace(f.grid, sizes=("num_frames", "gone", "width")))),
    ("wan", "has no number `gone`", lambda f: replace(f, grid=replace(f.grid, patch=(None, "gone", None)))),
    (
        "wan",
        "has no number `patch_size.7`",
        lambda f: replace(f, grid=replace(f.grid, patch=(None, "patch_size.7", None))),
    ),
    ("wan_vace", "has no list `gone` for the 2 blocks of `vace_blocks`", _depths),
    ("sd35", "no argument `gone`", _told),
    ("anyflow_far", "no argument `gone`", lambda f: replace(f, chunks=replace(f.chunks, argument="gone"))),
    ("anyflow_far", "AnyFlowFARPipeline has no `gone`", lambda f: replace(f, marks=CallMarks("gone", "num_timesteps"))),
    (
        "anyflow_far",
        "AnyFlowFARPipeline has no `gone`",
        lambda f: replace(f, marks=CallMarks("prepare_latents", "gone")),
    ),
    (
        "hunyuan_video",
        r"transformer_blocks\.0, a HunyuanVideoTransformerBlock, has no argument `gone`",
        _site(mask="gone"),
    ),
    ("chroma", r"transformer_blocks\.0, a ChromaTransformerBlock, has no argument `gone`", _site(added="gone")),
    (
        "hunyuan_video",
        r"single_transformer_blocks\.0, a \w+, has no argument `freqs_cis`",
        lambda f: replace(f, free_order=FreeOrder(arguments=(TokenArgument("freqs_cis", axis=0),))),
    ),
    (
        "cosmos2_v2w",
        "transformer, in all of its blocks, has no argument `gone`",
        lambda f: replace(
            f, free_order=FreeOrder(arguments=(TokenArgument("image_rotary_emb", 0), TokenArgument("gone", 1)))
        ),
    ),
    ("flux", "no argument `gone`", lambda f: replace(f, free_order=FreeOrder(unless_given={"gone": "of a reason"}))),
)


@pytest.mark.parametrize(("name", "said", "change"), DOCTORED)
def test_a_name_that_diffusers_does_not_have_is_refused(
    name: str, said: str, change: Callable[[Family], Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families()[TINY[name].family.removesuffix("_vace")]
    pipe = TINY[name].build()
    inspect_pipeline(pipe)
    monkeypatch.setattr("accel.pipelines.sites.families", lambda: {family.name: change(family)})
    before = snapshot(pipe)
    with pytest.raises(AccelError, match=f"{said}.*which the facts of the family {family.name} name") as refused:
        accel.enable(pipe, cache="delta")
    assert str(refused.value).endswith("differs from the one that Accel was tested with")
    assert "\n" not in str(refused.value) and snapshot(pipe) == before


def test_a_linear_outside_the_blocks_is_left_whatever_it_is_called() -> None:
    (denoiser,) = inspect_pipeline(TINY["wan"].build()).denoisers
    nothing = {"left": (), "modulation": (), "take_modulation": False}
    layers, others = choose_layers(denoiser, taken=(), **nothing)
    assert layers and all(layer.path.startswith("blocks.") for layer in layers)
    assert others["outside the blocks (modules_to_convert takes them)"] > 0
    taken, _ = choose_layers(denoiser, taken=("proj_out",), **nothing)
    assert [layer.path for layer in taken if layer.block is None] == ["proj_out"]


@pytest.mark.parametrize("present", [False, True])
def test_an_unknown_pipeline_of_a_known_transformer_is_told_the_family(present: bool) -> None:
    """Its class says which transformer it takes, and so does the transformer that it has."""
    said = (
        r"^QwenImageInpaintPipeline drives a QwenImageTransformer2DModel of the family qwenimage, which Accel knows "
        r"under QwenImagePipeline, .*\(pipelines/families/qwenimage\.py, see CONTRIBUTING\.md\)$"
    )
    with pytest.raises(AccelError, match=said):
        if present:
            own = type("QwenImageInpaintPipeline", (), {"transformer": TINY["qwenimage"].build().transformer})
            inspect_pipeline(own())
        else:
            family_of(diffusers.QwenImageInpaintPipeline)


@pytest.mark.parametrize("pipe", [SimpleNamespace(), SimpleNamespace(transformer=torch.nn.Linear(2, 2))])
def test_what_drives_no_known_transformer_is_of_no_family(pipe: SimpleNamespace) -> None:
    with pytest.raises(AccelError, match="SimpleNamespace is of no family that Accel knows"):
        inspect_pipeline(pipe)
