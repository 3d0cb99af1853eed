"""How the built-in model is made: autoencoder, latents, transformer, folder, evaluation, statistics.

Each module is a command, `python -m accel.pipelines.demo.training.<name>`; MODEL_CARD.md lists them in their
order with the settings that made the shipped weights. Every one runs on a CPU and on a GPU, under `torchrun`
on several processes, and goes on from its last checkpoint when it is started again.
"""
