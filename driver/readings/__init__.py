"""What plan files and model configs say, read without the code that compiles them, and compared with what was made.

Values do not show a statement that is read wrongly: any placement computes the same, and a reference that is cut or
cast by the same reading is wrong in the same way. So this room shares no code with `dsl/` and with the loaders of
`frontend/targets/`. Start reading at `plan_rows.py`; `plan_text.py` reads plans, `hugging_face_config.py` configs.
"""
