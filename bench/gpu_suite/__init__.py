"""Everything that wants a GPU, in one command: see `python -m bench.gpu_suite --help`."""
