"""What a speed-up is one over: the attention of the plain pipeline, and whether it is compiled."""

from accel.measure.backend import backend
from tests.tiny_pipelines import TINY


def test_a_backend_of_one_model_and_a_compiled_block_are_seen():
    pipe = TINY["wan"].build()
    assert backend(pipe) == {"attention": "native", "compiled": False}
    first = pipe.transformer.blocks[0]
    first.attn1.processor._attention_backend = "flex"
    assert backend(pipe)["attention"] == "flex, native"
    first.compile(backend="eager")
    assert backend(pipe)["compiled"]


def test_a_processor_that_leaves_no_choice_is_told():
    assert backend(TINY["cogvideox"].build()) == {"attention": "the processor's own", "compiled": False}
