"""Ranks as processes, under torchrun or started here: collectives, messages, parameters as DTensors, failures.

Start reading at `session.py`. `world.py` has the processes and their groups, `communicator.py` and `messages.py` the
communication, `watchdog.py` the detection of dead and late ranks, from the logs of `calls.py`; `diagnosis.py` words
their error (E0322, E0323, E0350, E0360). `joining.py` connects the processes; `launch.py` starts them on this machine
and words the launcher's own error (E0357).
"""
