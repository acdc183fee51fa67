"""The zoo: published systems as plans, each with a tiny model, in `examples/zoo`.

`rows.py` finds and reads the folders, `check_zoo.py` compiles, verifies and checks them (with the checks of
`driver/check/` and `driver/calls/`), `zoo_document.py` writes `docs/zoo.md`. `headline_file.py` reads what was
published, `headlines.py` simulates it.
"""
