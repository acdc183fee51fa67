"""Output: the console, text files, pages of passes, pictures of schedules.

Start reading at `console.py`. The content of reports on programs is made in `driver/report/`. It imports no
other room of `driver/`.
"""
