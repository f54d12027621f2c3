"""Run the real Triton server on a model repository: `python -m serve`, or `TritonServer(ServerConfig(...))` in a program."""
