"""Output: the console, files that commands write, pages of passes, and pictures of schedules.

Start reading at `console.py`. What is worth saying about a program is found in `driver/report/`. It imports no other
room of `driver/`.
"""
