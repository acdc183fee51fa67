"""The compile cache: programs on disk by what they were compiled from, so that a second run compiles nothing.

Start reading at `store.py`. What a key is made of: `driver/compile/cache_key.py`. What an entry is: a program in one
piece (`runtime/program/packed.py`), which is data and is validated as a program folder is.
"""
