"""What one run's figures mean, on real tiny pipelines."""

import pytest

from accel.config import AccelConfig
from accel.measure.one_run import timed_run
from accel.measure.trial import Setting, attempt
from tests.tiny_pipelines import TINY

CACHE = Setting("cache", AccelConfig.from_dict({"cache": "delta"}))


@pytest.mark.parametrize(("name", "evaluations"), [("sd35", 4), ("sd3_heun", 7)])
def test_a_step_is_what_the_scheduler_calls_so_with_methods_and_without(name, evaluations):
    """A second-order scheduler asks the model twice in each step but the last."""
    pipe = TINY[name].build()
    pipe.set_progress_bar_config(disable=True)
    arguments = {**TINY[name].call, "num_inference_steps": 4}
    for setting in (Setting("plain"), CACHE):
        figures = attempt(pipe, setting, arguments, lambda given: timed_run(pipe, given)).figures
        assert (figures["steps"], figures["evaluations"]) == (4, evaluations)
        # Guidance is one batch.
        assert figures["denoiser_calls"] == evaluations
        per_second = figures["tokens_per_second"] * figures["seconds"]["denoiser"]
        assert per_second == pytest.approx(figures["tokens"] * evaluations)
