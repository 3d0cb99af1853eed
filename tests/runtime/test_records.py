"""The board and the recorder by themselves."""

from __future__ import annotations

import torch

from accel.runtime.board import Board
from accel.runtime.clock import Moment
from accel.runtime.recorder import Recorder

CPU = torch.device("cpu")


def moment(step: int, chunk: int = 0) -> Moment:
    return Moment(run=0, chunk=chunk, step=step, num_steps=4, branch="cond", denoiser="transformer")


def test_what_is_said_on_the_board_holds_until_the_next_call() -> None:
    board = Board()
    board.demand_compute("search", "the map is due")
    board.demand_dense(3)
    board.keep_change(2)
    assert board.compute_demanded() == "search: the map is due"
    assert board.compute_demanded(besides="search") is None
    assert [board.dense_demanded(block) for block in (2, 3)] == [False, True]
    assert [board.change_kept(block) for block in (2, 3)] == [True, False]
    board.wipe()
    assert board.compute_demanded() is None
    assert not board.dense_demanded(3) and not board.change_kept(2)


def test_chunks_and_blocks_are_counted_apart() -> None:
    recorder = Recorder()
    recorder.start_run(4, CPU)
    for chunk in range(2):
        for step in range(2):
            recorder.call_started(moment(step, chunk))
            for block in range(3):
                recorder.event("delta", "computed" if step == 0 else "reused", moment(step, chunk), block)
    record = recorder.runs[0]
    assert record.steps_seen == 4
    assert record.count("delta") == 12
    assert record.count_by_step("delta", "reused") == [0, 3, 0, 3]
    recorder.end_run(broken=False)
    assert record.state == "finished"


def test_blocks_are_named_by_step() -> None:
    recorder = Recorder()
    recorder.start_run(4, CPU)
    for step, blocks in ((0, [0, 1, 2, 5, 7, 8]), (1, []), (2, [3])):
        recorder.call_started(moment(step))
        for block in blocks:
            recorder.event("delta", "reused", moment(step), block)
    recorder.event("pisa", "sparse", moment(1), 4)
    record = recorder.runs[0]
    assert record.what_ran("delta") == {"transformer": {"cond": {"reused": ["0-2, 5, 7-8", "", "3"]}}}
    assert record.what_ran("pisa") == {"transformer": {"cond": {"sparse": ["", "4", ""]}}}
    assert record.what_ran("tdc") == {}


def test_figures_with_a_place_come_back_by_block_and_step() -> None:
    recorder = Recorder()
    recorder.start_run(3, CPU)
    for step, blocks in ((0, []), (1, [2, 0, 0]), (2, [1])):
        recorder.call_started(moment(step))
        for number, block in enumerate(blocks):
            recorder.figure("pisa", "density", torch.tensor([step + number / 4]), moment(step), block)
    recorder.end_run(broken=False)
    record = recorder.runs[0]
    # The block with two attentions in a call has their mean.
    table = [[None, 1.375, None], [None, None, 2.0], [None, 1.0, None]]
    assert record.figure_by_block("pisa", "density") == {"transformer": {"cond": table}}
    assert record.figure_by_block("pisa", "other") == record.figure_by_block("tdc", "density") == {}


def test_the_seconds_of_a_call_need_both_ends_and_a_run_that_came_to_its_end() -> None:
    recorder = Recorder()

    def run(*, begun: bool = True, over: bool = True, steps: int = 1) -> float | None:
        if begun:
            recorder.call_began(CPU)
        recorder.start_run(1, CPU)
        for step in range(steps):
            recorder.call_ended(recorder.call_started(moment(step)))
        recorder.note("kept")
        recorder.end_run(broken=False)
        if over:
            recorder.call_over()
        return recorder.runs[-1].call_seconds

    found = run()
    assert found is not None and found >= recorder.runs[-1].seconds
    recorder.call_over()
    assert recorder.runs[-1].call_seconds == found, "the first end counts"
    assert run(begun=False) is None, "the beginning was of the call before"
    assert run(over=False) is None and run(steps=0) is None


def test_figures_may_lie_on_several_devices() -> None:
    recorder = Recorder()
    recorder.start_run(1, CPU)
    recorder.figure("delta", "size", torch.tensor([1.0, 2.0]))
    recorder.figure("delta", "size", torch.empty(2, device="meta"))
    recorder.note("kept")
    recorder.end_run(broken=False)
    assert len(recorder.runs[0]._figures["delta", "size"]) == 2


def test_runs_in_which_nothing_happened_are_dropped_unless_something_was_noted() -> None:
    recorder = Recorder()
    recorder.start_run(4, CPU)
    recorder.end_run(broken=False)
    assert recorder.runs == []
    recorder.start_run(4, CPU)
    recorder.note("the transformer was replaced")
    recorder.end_run(broken=False)
    assert [record.state for record in recorder.runs] == ["unseen"]
