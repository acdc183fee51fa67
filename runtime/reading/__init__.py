"""Checked reading of what comes from anyone: files of a folder, fields of JSON objects, expressions of sizes.

Lives here: limits of files, and errors that name the place in them. Not here: what a program's fields mean
(`program/`). Start reading at `json_fields.py`.
"""
