import importlib.util


def are_installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


# Doctests are looked for in every module, and these cannot be imported without their libraries.
collect_ignore = []
if not are_installed("torch", "transformers"):
    collect_ignore += [f"transformers_{name}.py" for name in ("encoders", "models", "stacks")]
if not are_installed("torch", "transformers", "peft"):
    collect_ignore += ["peft_adapters.py"]
