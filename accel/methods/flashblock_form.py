"""What the forms of FlashBlock share: the rule by which a part is computed anew, its calibration, and the memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from accel.errors import AccelError
from accel.methods.base import Context, Method
from accel.methods.fingerprint import adapters, fingerprint
from accel.methods.flashblock_calibration import Calibration, Measurements, place_of
from accel.methods.needs import Slot
from accel.pipelines.context_parallel import sharing_tokens
from accel.pipelines.sites import require_all_tokens
from accel.runtime.clock import Moment
from accel.runtime.memory import free_bytes

_FREE_SHARE = 0.5


class FlashBlockForm(Method):
    """FlashBlock on one pipeline; a subclass says which part is kept."""

    slot: ClassVar[Slot] = "prior"

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self._calibration: Calibration | None = None
        self._adapters: tuple[tuple[str, ...], ...] = ()
        self._measuring: Measurements | None = None
        self._limit: float | None = None
        self._anew: dict[torch.device, dict[str, tuple[Tensor, Tensor]]] = {}

    @property
    def name(self) -> str:
        return self.config.method

    @property
    def fingerprint(self) -> str:
        """That of the weights as they are now."""
        return fingerprint(self.name, self.context.facts.denoisers)

    def measure(self) -> Measurements:
        """From now on computes everything, and collects what a calibration is made of."""
        if self.config.interval == 1 or self.config.calibration is not None:
            raise AccelError(f"{self.name}: a calibration is made without another, and at an interval above 1")
        require_all_tokens(f"{self.name}: a calibration", self.context.facts.denoisers)
        self._measuring = Measurements(self.config.similarity, self.config.lse_drift)
        return self._measuring

    def load_calibration(self) -> None:
        """Reads the file that the configuration names; raises `AccelError` where it does not hold here."""
        if self.config.calibration is not None:
            self._calibration = Calibration.load(self.config.calibration)
            bounds = {name: getattr(self.config, name) for name in ("similarity", "lse_drift")}
            self._calibration.check(fingerprint=self.fingerprint, **bounds)
            self._adapters = adapters(self.context.facts.denoisers)

    def require_same_weights(self) -> None:
        """Raises `AccelError` where an adapter came or went since the calibration was read."""
        if self._calibration is not None and adapters(self.context.facts.denoisers) != self._adapters:
            raise AccelError(
                f"{self.name}: the calibration was made for other weights: an adapter, such as a LoRA, was loaded or "
                "taken out after enable; take it back, or calibrate again with it"
            )

    def hold_to(self, **conditions: Any) -> None:
        """Raises `AccelError` where a calibration was made, or is being made, under others."""
        if self._calibration is not None:
            self._calibration.check(**conditions)
        if self._measuring is not None:
            self._measuring.under(**conditions)

    def heads_anew(
        self, calibration: Calibration, call: tuple[Moment, int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The heads that a call, a moment and a layer, computes anew: bool (H,) and their numbers, int64."""
        if device not in self._anew:
            self._anew[device] = calibration.on_device(device)
        return self._anew[device][place_of(*call)]

    def _forget(self) -> None:
        """Lets go of what is of one run."""
        self._limit = None
        self._anew.clear()

    def stale(self, moment: Moment, step: int) -> bool:
        """Whether the interval asks for what was computed at `step` to be computed anew."""
        return self._calibration is None and moment.step - step >= self.config.interval

    def demand_refresh(self, moment: Moment, oldest: int | None) -> None:
        """Asks for a computed step where a refresh is due; `oldest` is the step of the oldest part that is kept."""
        if oldest is None:
            return
        if self.stale(moment, oldest) or (self._calibration is not None and self._calibration.due(moment)):
            self.context.board.demand_compute(self.name, "a refresh is due")

    def require_room(self, nbytes: int, device: torch.device, what: str) -> None:
        """Raises `AccelError` where so many bytes, over all guidance branches, are more than may be held."""
        if self._limit is None:
            self._limit = self._most_bytes(device)
        if nbytes > self._limit:
            limit = f"memory_limit={self.config.memory_limit} allows"
            if self.config.memory_limit is None:
                limit = f"half of the free memory, {self._limit / 1e9:.3g} GB, allows"
            raise AccelError(f"{self.name} would hold {nbytes / 1e9:.3g} GB, more than {limit}: {what}")

    def _most_bytes(self, device: torch.device) -> float:
        """What may be held; processes that share a run go by the least that one of them has free, and refuse alike."""
        if self.config.memory_limit is not None:
            return self.config.memory_limit * 1e9
        free = free_bytes(device)
        if free is None:
            self.context.recorder.note(
                f"{self.name}: {device.type} does not tell what memory it has free, so that what is held was not "
                "checked: give a memory_limit to have it checked"
            )
            return math.inf
        sharing = (sharing_tokens(denoiser.module) for denoiser in self.context.facts.denoisers)
        ranks = next((each for each in sharing if each is not None), None)
        if ranks is not None:
            free = int(ranks.gathered(torch.tensor(free, device=device)).min())
        return _FREE_SHARE * free

    def layers(self, moment: Moment) -> int:
        """How many attentions of the moment's denoiser are served."""
        denoiser = next(found for found in self.context.facts.denoisers if found.name == moment.denoiser)
        blocks = (*denoiser.blocks, *denoiser.beside)
        return sum(fact.among_tokens for block in blocks for fact in block.attention)

    def branches(self, moment: Moment, seen: Iterable[tuple[str, str]]) -> int:
        """For how many guidance branches the moment's denoiser is called; `seen`: (denoiser, branch) so far."""
        return max(self.context.clock.branches, sum(name == moment.denoiser for name, _ in seen))

    @property
    def rule(self) -> str:
        """By what a part is computed anew, for people."""
        if self._calibration is not None:
            return f"the calibration {self.config.calibration}"
        return f"interval {self.config.interval}, without calibration"


def for_branches(number: int) -> str:
    """For refusals: of how many calls in each step the memory is."""
    return f"for each of {number} guidance branches" if number > 1 else "for the one call in each step"
