"""How the built-in model is made: autoencoder, latents, transformer, folder, evaluation, statistics.

Each module is a command, `python -m accel.pipelines.demo.training.<name>`; MODEL_CARD.md lists them in their
order with the settings that made the shipped weights. All run on a CPU and on a GPU. The first three and the
evaluation share their work out under `torchrun` and go on where they were stopped.
"""
