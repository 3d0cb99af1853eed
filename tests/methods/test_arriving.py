"""What is measured on parts of the tokens arrives as the parts of all processes, with one exchange."""

from __future__ import annotations

from typing import Any

import torch

from accel.methods.arriving import Arriving, summed


class Two:
    """Two processes, of which the other has three times the numbers of this one."""

    def __init__(self) -> None:
        self.exchanges = 0

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        self.exchanges += 1
        return torch.stack([x, 3 * x])


def test_parts_of_all_processes_arrive_together() -> None:
    ranks: Any = Two()
    arriving: Arriving[str] = Arriving()
    arriving.add("a", torch.tensor([1.0, 2.0]), ranks)
    arriving.add("b", torch.tensor([[5.0]]), ranks)
    assert arriving.take() == [("a", [[1.0, 2.0], [3.0, 6.0]]), ("b", [[5.0], [15.0]])]
    assert ranks.exchanges == 1
    assert arriving.take() == [] and ranks.exchanges == 1, "nothing is asked for nothing"
    assert summed([[1.0, 2.0], [3.0, 6.0]]) == [4.0, 8.0]


def test_one_process_asks_nobody() -> None:
    arriving: Arriving[int] = Arriving()
    arriving.add(1, torch.tensor([0.1, 2.0]), None)
    arriving.add(2, torch.tensor([7.0]), None)
    taken = arriving.take()
    assert taken == [(1, [torch.tensor([0.1, 2.0]).tolist()]), (2, [[7.0]])]
    assert summed(taken[0][1]) == taken[0][1][0], "the very numbers"
    arriving.add(3, torch.tensor([1.0]), None)
    arriving.clear()
    assert arriving.take() == []
