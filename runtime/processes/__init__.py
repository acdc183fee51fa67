"""Ranks as processes, under torchrun or started here: collectives, messages, parameters as DTensors, failures.

Start reading at `session.py`. `world.py` has the processes and their groups, `communicator.py` and `messages.py` the
communication, `watchdog.py` the detection of dead and late ranks. `launch.py` starts processes on this machine.
"""
