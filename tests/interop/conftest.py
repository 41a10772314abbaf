import importlib.util

# Doctests are looked for in every module, and this one cannot be imported without them.
has_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
collect_ignore = [] if has_torch else ["transformers_models.py"]
