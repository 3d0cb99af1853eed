"""What Accel needs to know about a model family, as data.

A family is one transformer architecture of diffusers with the pipelines that drive it. Its facts name things (blocks,
streams, attention sites, guidance) and hold no behaviour, so that a method never asks for a model's class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Layout = Literal["BCTHW", "BTCHW", "BCHW", "BC1HW", "BNC"]

# Guiders of diffusers that call the transformer as it is, once for each branch.
PLAIN_GUIDERS = (
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "TangentialClassifierFreeGuidance",
    "AdaptiveProjectedGuidance",
    "AdaptiveProjectedMixGuidance",
    "FrequencyDecoupledGuidance",
    "MagnitudeAwareGuidance",
)
# And those that leave out some layers for one branch, alike in all steps.
SKIPPING_GUIDERS = ("SkipLayerGuidance", "AutoGuidance")


@dataclass(frozen=True)
class AttentionSite:
    """One attention module inside a block.

    `kind`: "self" and "joint" attend to the tokens of the call (and its text), "cross" to a text, "chunk" to the tokens
    of the call and to kept keys and values of the chunks before, "linear" to those of the call without a softmax.
    "cross" also attends to another stream, and "other" among tokens that are none of the image or video, such as sound.
    """

    path: str
    kind: Literal["self", "cross", "joint", "chunk", "linear", "other"]
    processor: str
    # Whether the processor calls diffusers' `dispatch_attention_fn`, or scaled_dot_product_attention itself.
    dispatched: bool
    # Keyword of the block's call that carries a key mask into this attention, if there is one.
    mask: str | None = None
    # The same where the block makes a mask over pairs of tokens of it: the argument, (batch, tokens) of ones and zeros,
    # whose product for a query and a key is added to their score.
    added: str | None = None
    # Some blocks of the stack are without it, and have None in its place.
    optional: bool = False

    @property
    def among_tokens(self) -> bool:
        """Whether it attends among the tokens of the image or video."""
        return self.kind not in ("cross", "other")


@dataclass(frozen=True)
class BlockStack:
    """A `ModuleList` of transformer blocks that run one after the other.

    `streams` are the parameters of the block's forward that it also returns, in the order in which it returns them.
    """

    path: str
    blocks: tuple[str, ...]
    streams: tuple[str, ...]
    attention: tuple[AttentionSite, ...]
    # Config field that says next to which block of the main path each of these runs, where the stack is none of it.
    depths: str | None = None
    # The stream `hidden_states` has the tokens of the text too, as the family's `text` says.
    joined: bool = False
    # Attribute of the blocks that is true in one that returns None for the text, which nothing needs behind it.
    ends_text: str | None = None
    # Streams that are parameters of another name.
    named: dict[str, str] = field(default_factory=dict)
    # How many other values the blocks return before their streams.
    ahead: int = 0


@dataclass(frozen=True)
class Guidance:
    """How a pipeline calls the transformer within one step.

    `form`: "separate" is one call per branch, "batched" one call for all of them, "distilled" one call without an
    unconditional branch (a pipeline whose users may still ask for true guidance makes separate calls then).
    `order`: the branches in the order of the calls, or of the halves of the batch.
    `named`: whether the pipeline tells the branch through the transformer's `cache_context`.
    `told_by`: arguments of the transformer that make a call which is given one a branch of its own beside those of
    `order`, and the branch's name.
    `further`: branches that the pipeline may call and name beside those of `order`, as its user asks.
    """

    form: Literal["separate", "batched", "distilled"]
    order: tuple[str, ...]
    named: bool
    told_by: dict[str, str] = field(default_factory=dict)
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenGrid:
    """How the transformer's `hidden_states` argument becomes a row-major grid of tokens.

    `patch` names the config fields that hold the patch size along (time, height, width); None stands for 1. With
    the layout "BNC" the pipeline has packed the tokens already: `ids` names the argument with a row (axis, h, w) each,
    `shapes` the one with the (time, height, width) of every image of each sample, which are one grid if there is one,
    or `sizes` those with the numbers of tokens along (time, height, width). A list of equal tensors is a batch of them.
    """

    layout: Layout
    patch: tuple[str | None, str | None, str | None] = (None, None, None)
    ids: str | None = None
    shapes: str | None = None
    sizes: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class TokenArgument:
    """An argument of the blocks with an entry for each image token along `axis`: a tensor, or a tuple of tensors.

    `with_text`: the axis has the tokens of the text too, where the family's sequence has them.
    `first_alone`: of a tuple, the first tensor is that of the image, and the others are not.
    """

    name: str
    axis: int
    with_text: bool = False
    first_alone: bool = False


@dataclass(frozen=True)
class FreeOrder:
    """That the blocks may be given the image tokens in another order than the model's, all of them in the same.

    So it is where, apart from attention, the blocks and what the parent does between the first and the last treat every
    token by itself. The order is that of the stream `hidden_states`; `arguments` have to be brought into it too.
    """

    arguments: tuple[TokenArgument, ...] = ()
    # Arguments of the denoiser that bind its tokens to their order in a call that gives them, and why.
    unless_given: dict[str, str] = field(default_factory=dict)
    # Classes of blocks that treat some tokens by their place.
    except_blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chunks:
    """How a transformer that generates chunk by chunk is told where a call stands: by a dict, its argument `argument`.

    `done`: the entry that counts the chunks before this one.
    `filling`: the entry that is true where the call is no step, but keeps the keys and values of what is done.
    """

    argument: str
    done: str
    filling: str


@dataclass(frozen=True)
class CallMarks:
    """Where the runs of a pipeline are found that does not make its bars with `progress_bar`.

    `start`: the method that its call uses once, before the denoising loop.
    `steps`: its attribute that holds the steps of one chunk by then, and later those of all chunks.
    """

    start: str
    steps: str


@dataclass(frozen=True)
class Published:
    """Settings of piecewise sparse attention that a publication used on the family; None where it says nothing.

    `density`: the fraction of key blocks kept. `dense_steps`: the fraction of a run's steps, from the start, and
    `dense_layers`: the number of blocks, from the first, that stay dense.
    """

    source: str
    density: float | None = None
    dense_steps: float | None = None
    dense_layers: int | None = None


@dataclass(frozen=True)
class FrameRate:
    """Frames a second of the videos of a family's published weights.

    `where`: the same of models in whose config, or in their pipeline's, a field is set: the field, and the rate.
    """

    usual: float
    where: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Facts of one family; `pipelines` and `transformers` are class names of diffusers."""

    name: str
    title: str
    transformers: tuple[str, ...]
    pipelines: dict[str, Guidance]
    stacks: tuple[BlockStack, ...]
    text: Literal["prefix", "suffix", "cross", "none"]
    grid: TokenGrid
    # On what its tests run: "random weights" of a small model, "the built-in model", or "real weights".
    tested: tuple[Literal["random weights", "the built-in model", "real weights"], ...] = ("random weights",)
    # What the transformer calls its arguments `hidden_states` and `timestep`, where it does not call them so.
    named: dict[str, str] = field(default_factory=dict)
    # Attributes of the pipeline that hold a denoising transformer, in the order in which a run meets them.
    denoisers: tuple[str, ...] = ("transformer",)
    # Stacks that a transformer class has beside its main path, on the same tokens: attention there is served as in the
    # others, but no cache touches them, because what they return is not what they were given.
    beside: dict[str, tuple[BlockStack, ...]] = field(default_factory=dict)
    # Why the parent may change the hidden states between two blocks; empty where it never does.
    between_blocks: str = ""
    # Linears that quantization leaves alone: paths in the denoiser, which stand for all that is under them, or patterns
    # with "*".
    modules_to_not_convert: tuple[str, ...] = ()
    # Linears inside the blocks that make scales and shifts of the timestep, likewise: one row for each sample.
    modulation: tuple[str, ...] = ()
    # None where the blocks need the model's order of tokens, or where nobody has looked.
    free_order: FreeOrder | None = None
    # None where the pipelines' calls are told the rate, and where it is not known.
    frame_rate: FrameRate | None = None
    # Of which the pipelines want whole multiples as sides, whatever the autoencoder and the patches need.
    pixels: int = 1
    # The transformer may be given one timestep per token, or per frame, instead of one per sample.
    per_token_timesteps: bool = False
    # None where no publication on piecewise sparse attention has the family.
    published: Published | None = None
    # Where the pipelines generate chunk by chunk.
    chunks: Chunks | None = None
    # Classes of `pipe.guider` that can be followed (see `accel.pipelines.guiders`); empty where pipelines have none.
    guiders: tuple[str, ...] = ()
    # None where the pipelines' bars tell.
    marks: CallMarks | None = None
    # What a table says beside the title, and what the family's page says beside the facts: for people alone.
    remark: str = ""
    notes: tuple[str, ...] = ()

    @property
    def makes_videos(self) -> bool:
        """Whether the tokens have a time axis."""
        return "T" in self.grid.layout or self.grid.sizes is not None
