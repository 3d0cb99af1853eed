"""Block attention as a Triton kernel: an online softmax over the listed blocks, then over the tail.

Scores are kept in units of log 2 and products are accumulated in float32. A small kernel goes over the lists first: it
puts blocks that are not full apart, so that the main loop has no column mask, and marks the listed blocks in a bit
mask for the tail. In the main loop the id of the next block is loaded one iteration ahead, which keeps the loads of
keys and values as deep as the pipeline is.
"""

import triton
import triton.language as tl


@triton.jit
def prepare_lists(
    blocks,
    counts,
    room,
    ordered,
    short_counts,
    full_counts,
    marks,
    blocks_batch,
    blocks_head,
    blocks_row,
    counts_batch,
    counts_head,
    counts_row,
    heads,
    number,
    width,
    words,
    BLOCK: tl.constexpr,
    ORDER: tl.constexpr,
    MARK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Short blocks go to the start of a row of `ordered`, full ones to its end, and those of size 0 nowhere."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0)
    place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + row
    count = tl.load(counts + batch * counts_batch + head * counts_head + row.to(tl.int64) * counts_row)
    blocks += batch * blocks_batch + head * blocks_head + row.to(tl.int64) * blocks_row
    lanes = tl.arange(0, CHUNK)
    shorts = 0
    fulls = 0
    for start in range(0, count, CHUNK):
        listed = start + lanes < count
        block = tl.load(blocks + start + lanes, mask=listed, other=0)
        size = tl.load(room + batch * number + block, mask=listed, other=0)
        if ORDER:
            full = (size == BLOCK).to(tl.int32)
            short = ((size > 0) & (size < BLOCK)).to(tl.int32)
            behind = tl.where(full > 0, width - fulls - tl.cumsum(full, 0), shorts + tl.cumsum(short, 0) - 1)
            tl.store(ordered + place * width + behind, block, mask=size > 0)
            shorts += tl.sum(short, 0)
            fulls += tl.sum(full, 0)
        if MARK:
            tl.atomic_or(marks + place * words + block // 32, 1 << (block % 32), mask=listed)
    if ORDER:
        tl.store(short_counts + place, shorts)
        tl.store(full_counts + place, fulls)


@triton.jit
def _absorb(scores, values, factor, highest, total, acc, PRECISION: tl.constexpr):
    """One tile of scores, of which every row has one that is finite, into the state of the online softmax."""
    raised = tl.maximum(highest, tl.max(scores, 1) * factor)
    kept = tl.exp2(highest - raised)
    weights = tl.exp2(scores * factor - raised[:, None])
    total = total * kept + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * kept[:, None], input_precision=PRECISION)
    return raised, total, acc


@triton.jit
def _load_rows(start, stride, rows, lanes, inside, SIZE: tl.constexpr, HEAD: tl.constexpr, MASKED: tl.constexpr):
    """Rows of SIZE numbers, padded with zeros to HEAD; with MASKED, zeros also for the rows that are not inside."""
    pointers = start + rows[:, None] * stride + lanes[None, :]
    if MASKED and SIZE < HEAD:
        return tl.load(pointers, mask=inside[:, None] & (lanes < SIZE)[None, :], other=0.0)
    if MASKED:
        return tl.load(pointers, mask=inside[:, None], other=0.0)
    if SIZE < HEAD:
        return tl.load(pointers, mask=(lanes < SIZE)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def _scores(
    q,
    query,
    query_token,
    rows,
    present,
    keys,
    key_token,
    columns,
    inside,
    lanes,
    SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    DEPTH: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products of the rows of a query block with rows of keys; with MASKED, 0 for those that are not inside."""
    if PRECISION == "ieee":
        # Such products are not made by tensor cores, and whole rows of both factors would not fit into registers.
        scores = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
        for begin in tl.range(0, SIZE, DEPTH, num_stages=1):
            deep = begin + tl.arange(0, DEPTH)
            within = (deep < SIZE)[None, :]
            some = tl.load(
                query + rows[:, None] * query_token + deep[None, :], mask=present[:, None] & within, other=0.0
            )
            beside = (inside[:, None] & within) if MASKED else within
            others = tl.load(keys + columns[:, None] * key_token + deep[None, :], mask=beside, other=0.0)
            scores = tl.dot(some, tl.trans(others), scores, input_precision=PRECISION)
        return scores
    k = _load_rows(keys, key_token, columns, lanes, inside, SIZE, HEAD, MASKED)
    return tl.dot(q, tl.trans(k), input_precision=PRECISION)


@triton.jit
def attend(
    query,
    key,
    value,
    out,
    lse,
    blocks,
    short_counts,
    full_counts,
    marks,
    room,
    mean_key,
    mean_value,
    first_order,
    prior,
    prior_lse,
    scale,
    query_batch,
    query_token,
    query_head,
    key_batch,
    key_token,
    key_head,
    value_batch,
    value_token,
    value_head,
    blocks_batch,
    blocks_head,
    blocks_row,
    counts_batch,
    counts_head,
    counts_row,
    prior_batch,
    prior_token,
    prior_head,
    heads,
    group,
    length,
    number,
    width,
    words,
    SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    ORDERED: tl.constexpr,
    TAIL: tl.constexpr,
    FIRST_ORDER: tl.constexpr,
    PRIOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pieces: tl.constexpr = BLOCK // COLUMNS
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    key_of = head // group
    row = tl.program_id(0)
    place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + row
    first = row.to(tl.int64) * BLOCK
    factor = scale * 1.4426950408889634
    rows = tl.arange(0, BLOCK)
    lanes = tl.arange(0, HEAD)
    columns = tl.arange(0, COLUMNS)
    present = first + rows < length
    query += batch * query_batch + head * query_head + first * query_token
    q = _load_rows(query, query_token, rows, lanes, present, SIZE, HEAD, True)
    key += batch * key_batch + key_of * key_head
    value += batch * value_batch + key_of * value_head

    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, HEAD), tl.float32)
    if PRIOR:
        known = tl.load(prior_lse + tl.program_id(1).to(tl.int64) * length + first + rows, mask=present, other=0.0)
        highest = known * 1.4426950408889634
        something = highest > float("-inf")
        total = tl.where(something, 1.0, 0.0)
        prior += batch * prior_batch + head * prior_head + first * prior_token
        acc = _load_rows(prior, prior_token, rows, lanes, something & present, SIZE, HEAD, True).to(tl.float32)

    blocks += batch * blocks_batch + head * blocks_head + row.to(tl.int64) * blocks_row
    counted = batch * counts_batch + head * counts_head + row.to(tl.int64) * counts_row
    full = tl.load(full_counts + counted)
    start = 0
    if ORDERED:
        start = width - full
        short = tl.load(short_counts + counted)
        for step in tl.range(0, short * pieces, num_stages=1):
            block = tl.load(blocks + step // pieces)
            begin = (step % pieces) * COLUMNS
            inside = begin + columns < tl.load(room + batch * number + block)
            token = block.to(tl.int64) * BLOCK + begin
            v = _load_rows(value + token * value_token, value_token, columns, lanes, inside, SIZE, HEAD, True)
            scores = _scores(
                q,
                query,
                query_token,
                rows,
                present,
                key + token * key_token,
                key_token,
                columns,
                inside,
                lanes,
                SIZE,
                HEAD,
                DEPTH,
                True,
                PRECISION,
            )
            # The first piece of a block holds a key that counts, so no row is without a maximum afterwards.
            scores = tl.where(inside[None, :], scores, float("-inf"))
            highest, total, acc = _absorb(scores, v, factor, highest, total, acc, PRECISION)

    last = full * pieces - 1
    block = tl.load(blocks + start, mask=full > 0, other=0)
    for step in tl.range(0, full * pieces, num_stages=STAGES):
        token = block.to(tl.int64) * BLOCK + (step % pieces) * COLUMNS
        scores = _scores(
            q,
            query,
            query_token,
            rows,
            present,
            key + token * key_token,
            key_token,
            columns,
            columns >= 0,
            lanes,
            SIZE,
            HEAD,
            DEPTH,
            False,
            PRECISION,
        )
        v = _load_rows(value + token * value_token, value_token, columns, lanes, columns >= 0, SIZE, HEAD, False)
        block = tl.load(blocks + start + tl.minimum(step + 1, last) // pieces)
        highest, total, acc = _absorb(scores, v, factor, highest, total, acc, PRECISION)

    if TAIL:
        mass = tl.zeros((BLOCK,), tl.float32)
        tokens = tl.arange(0, TOKENS)
        key_heads = heads // group
        mean = (batch * number * key_heads + key_of) * SIZE
        for begin in tl.range(0, number, TOKENS, num_stages=STAGES):
            token = begin + tokens
            size = tl.load(room + batch * number + token, mask=token < number, other=0)
            word = tl.load(marks + place * words + token // 32, mask=token < number, other=0)
            left = (size > 0) & (((word >> (token % 32)) & 1) == 0)
            # What is loaded does not wait for the bit mask.
            inside = token < number
            v = _load_rows(mean_value + mean, key_heads * SIZE, token, lanes, inside, SIZE, HEAD, True)
            scores = _scores(
                q,
                query,
                query_token,
                rows,
                present,
                mean_key + mean,
                key_heads * SIZE,
                token,
                inside,
                lanes,
                SIZE,
                HEAD,
                DEPTH,
                True,
                PRECISION,
            )
            weight = tl.log2(tl.maximum(size, 1).to(tl.float32))
            scores = tl.where(left[None, :], scores * factor + weight[None, :], float("-inf"))
            raised = tl.maximum(highest, tl.max(scores, 1))
            # Without a prior and a listed block, a group of exact blocks leaves the maximum at minus infinity.
            finite = tl.where(raised == float("-inf"), 0.0, raised)
            kept = tl.exp2(highest - finite)
            weights = tl.exp2(scores - finite[:, None])
            added = tl.sum(weights, 1)
            total = total * kept + added
            mass = mass * kept + added
            acc = tl.dot(weights.to(v.dtype), v, acc * kept[:, None], input_precision=PRECISION)
            highest = raised
        if FIRST_ORDER:
            first_order += (batch * key_heads + key_of) * SIZE * SIZE
            mass *= scale
            depth = tl.arange(0, DEPTH)
            for begin in tl.range(0, SIZE, DEPTH, num_stages=1):
                deep = begin + depth
                some = tl.load(
                    query + rows[:, None] * query_token + deep[None, :],
                    mask=present[:, None] & (deep < SIZE)[None, :],
                    other=0.0,
                )
                matrix = _load_rows(first_order, SIZE, deep, lanes, deep < SIZE, SIZE, HEAD, True)
                # Half types have no more bits than tf32, and the matrix may be beyond the range of float16.
                acc = tl.dot(
                    some.to(tl.float32) * mass[:, None],
                    matrix,
                    acc,
                    input_precision="ieee" if PRECISION == "ieee" else "tf32",
                )

    nothing = total == 0.0
    divisor = tl.where(nothing, 1.0, total)
    result = (acc / divisor[:, None]).to(out.dtype.element_ty)
    logarithm = tl.where(nothing, float("-inf"), (highest + tl.log2(divisor)) * 0.6931471805599453)
    out += ((batch * length + first) * heads + head) * SIZE
    shown = present[:, None] & (lanes < SIZE)[None, :]
    tl.store(out + rows[:, None] * (heads * SIZE) + lanes[None, :], result, mask=shown)
    tl.store(lse + tl.program_id(1).to(tl.int64) * length + first + rows, logarithm, mask=present)
