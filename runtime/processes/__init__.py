"""Ranks that are processes, under torchrun or started here: collectives, messages, parameters as DTensors, failures.

Start reading at `session.py`. `world.py` says who takes part, `communicator.py` and `messages.py` what they send,
`watchdog.py` makes the message that names a dead or late rank, `launch.py` starts processes of this machine.
"""
