"""What documents say of the families, out of their facts."""

from __future__ import annotations

from collections.abc import Iterable

from accel.pipelines.facts import AttentionSite, BlockStack, Family, Guidance, TokenGrid
from accel.pipelines.families import families

_FORMS = {"separate": "a call for each branch", "batched": "one batch", "distilled": "distilled, one call"}
_TEXT = {
    "prefix": "in one sequence with the image or video, before it",
    "suffix": "in one sequence with the image or video, behind it",
    "cross": "by attention of its own",
    "none": "none; the model is told a class",
}
_AXES = ("time", "height", "width")


def in_short() -> list[tuple[str, ...]]:
    """A row for each family, those that make videos first: title, pipelines, guidance in a few words."""
    rows: list[tuple[str, ...]] = [("family", "pipelines", "guidance")]
    for family in sorted(families().values(), key=lambda family: not family.makes_videos):
        remark = f" ({family.remark})" if family.remark else ""
        rows.append((f"{family.title}{remark}", _code(family.pipelines), _guidance_in_short(family)))
    return rows


def in_full() -> list[str]:
    """All facts of every family, under a heading each."""
    lines: list[str] = []
    for family in families().values():
        lines += ["", f"## {family.title}", "", *(f"- {fact}" for fact in _facts(family))]
    return [*lines, ""]


def origin(family: Family) -> str:
    """Where the settings come from that piecewise sparse attention has on a family."""
    known, published = "Wan" if family.makes_videos else "FLUX.1", family.published
    if published is None:
        return f"chosen by us, as {known}"
    ours = [part for part in ("density", "dense_steps", "dense_layers") if getattr(published, part) is None]
    if not ours:
        return "published"
    return f"published; {' and '.join(ours)} chosen by us{'' if family.title.startswith(known) else f', as {known}'}"


def _guidance_in_short(family: Family) -> str:
    forms = {guidance.form for guidance in family.pipelines.values()}
    if family.guiders:
        return "two or three calls, by a guider"
    if "distilled" in forms:
        return "distilled, or two calls"
    words = "two calls" if "separate" in forms else "one batch"
    further = any(guidance.further for guidance in family.pipelines.values())
    return f"{words}, and what its guidance calls beside" if further else words


def _facts(family: Family) -> Iterable[str]:
    yield f"Name: `{family.name}`. Transformer: {_code(family.transformers)}, in {_code(family.denoisers)}."
    for guidance in _distinct(family.pipelines.values()):
        alike = [name for name, found in family.pipelines.items() if found == guidance]
        yield f"{_code(alike)}: {_guidance(guidance)}."
    if family.guiders:
        yield f"Guiders that can be followed: {_code(family.guiders)}."
    for stack in family.stacks:
        yield _stack(stack)
    for transformer, stacks in family.beside.items():
        for stack in stacks:
            yield f"Beside the main path of `{transformer}`: {_stack(stack)}"
    yield f"Text: {_TEXT[family.text]}."
    yield f"Tokens: {_grid(family.grid)}."
    yield f"Timesteps: {'for each sample, or for each token' if family.per_token_timesteps else 'for each sample'}."
    if family.chunks is not None:
        yield f"Chunks: told by `{family.chunks.argument}`."
    if family.between_blocks:
        yield f"Between blocks: {family.between_blocks}."
    yield f"Order of the tokens: {_order(family)}."
    stacks = (*family.stacks, *(stack for stacks in family.beside.values() for stack in stacks))
    roots = ("*", *(stack.path for stack in stacks))
    inside = [entry for entry in family.modules_to_not_convert if entry.partition(".")[0] in roots]
    kept = f"all outside the blocks{f', and {_code(inside)}' if inside else ''}"
    optional = f"; {_code(family.modulation)} unless `quantize_modulation=True`" if family.modulation else ""
    yield f"Linears not quantized: {kept}{optional}."
    if any(site.kind in ("self", "joint") for stack in family.stacks for site in stack.attention):
        yield f"Settings of piecewise sparse attention: {origin(family)}{_source(family)}."
    yield from (f"Note: {note}." for note in family.notes)
    unreal = "" if "real weights" in family.tested else ", on no real ones"
    yield f"Tested on {' and '.join(family.tested)}{unreal}."


def _source(family: Family) -> str:
    return "" if family.published is None else f" ({family.published.source})"


def _distinct(guidances: Iterable[Guidance]) -> list[Guidance]:
    found: list[Guidance] = []
    for guidance in guidances:
        if guidance not in found:
            found.append(guidance)
    return found


def _guidance(guidance: Guidance) -> str:
    branches = f"{_FORMS[guidance.form]}, in the order {', '.join(guidance.order)}"
    if guidance.form == "distilled":
        branches += " where a pipeline can be asked for both"
    told = "named by `cache_context`" if guidance.named else "not named"
    beside = [*guidance.further, *(f"{name} (told by `{given}`)" for given, name in guidance.told_by.items())]
    and_beside = f"; beside them {', '.join(beside)}" if beside else ""
    return f"{branches}; branches are {told}{and_beside}"


def _stack(stack: BlockStack) -> str:
    streams = _code(stack.named.get(name, name) for name in stack.streams)
    joined = " (with the text in it)" if stack.joined else ""
    sites = "; ".join(_site(site) for site in stack.attention)
    return f"Blocks `{stack.path}` ({_code(stack.blocks)}), on {streams}{joined}: {sites}."


def _site(site: AttentionSite) -> str:
    way = "diffusers' dispatcher" if site.dispatched else "scaled_dot_product_attention"
    masks = [f"mask `{site.mask}`"] if site.mask else []
    masks += [f"added to the scores `{site.added}`"] if site.added else []
    some = ["not in all blocks"] if site.optional else []
    return f"`{site.path}`, {', '.join([f'{site.kind} attention', f'`{site.processor}`', way, *masks, *some])}"


def _grid(grid: TokenGrid) -> str:
    patch = [f"{axis} `{name}`" for axis, name in zip(_AXES, grid.patch, strict=True) if name is not None]
    by = [f"patches along {', '.join(patch)}"] if patch else []
    by += [f"places in `{grid.ids}`"] if grid.ids else []
    by += [f"shapes in `{grid.shapes}`"] if grid.shapes else []
    by += [f"sizes in {_code(grid.sizes)}"] if grid.sizes else []
    return f"{grid.layout}, {', '.join(by)}"


def _order(family: Family) -> str:
    free = family.free_order
    if free is None:
        return "the model's own"
    words = "free"
    if free.arguments:
        words += f", with {_code(argument.name for argument in free.arguments)}"
    if free.unless_given:
        words += f", unless {_code(free.unless_given)} is given"
    return f"{words}, but not in {_code(free.except_blocks)}" if free.except_blocks else words


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
