"""The flags of every command."""

from collections.abc import Sequence

from absl import flags


def flags_of(command: str, arguments: Sequence[str] = ()) -> flags.FlagValues:
    """Returns the flags of a command, yet to be parsed.

    Args:
        arguments: of the command; an engine of the user's own in them adds its flags.

    Raises:
        UserError: if that engine cannot be imported.
    """
    values = flags.FlagValues()
    if command == "launch":
        from t5lite.cli.launch_flags import define_launch_flags, outside_engine

        define_launch_flags(values, outside_engine(arguments))
        return values
    if command == "report":
        _define_report_flags(values)
        return values
    flags.DEFINE_multi_string(
        "gin_file", [], "A run file; may be repeated, later ones win.", flag_values=values
    )
    flags.DEFINE_list(
        "gin_search_paths",
        [],
        "Folders, with commas between them, where gin files are looked for.",
        flag_values=values,
    )
    flags.DEFINE_boolean("help", False, "Shows this.", short_name="h", flag_values=values)
    if command == "inspect":
        flags.DEFINE_string(
            "checkpoint",
            None,
            "A MODEL_DIR or checkpoints/STEP whose model is printed; no run file is needed.",
            flag_values=values,
        )
    if command == "plan":
        _define_plan_flags(values)
    if command in ("eval", "infer"):
        flags.DEFINE_string(
            "checkpoint",
            "latest",
            "Which: latest (the default), best, a step (eval takes all, or several such as "
            "1000,2000, too), or a folder: a MODEL_DIR, for its latest, or DIR/checkpoints/1000.",
            flag_values=values,
        )
        flags.DEFINE_integer(
            "average",
            1,
            "The mean of the parameters of so many checkpoints that end with it.",
            lower_bound=1,
            flag_values=values,
        )
    if command == "infer":
        for name, text in {
            "input": "Objects with a field `inputs` (and `targets` to score) in .jsonl, or lines "
            "in .txt.",
            "output": "A .jsonl file that is not there yet: the objects with their results.",
        }.items():
            flags.DEFINE_string(name, None, text, flag_values=values)
        flags.DEFINE_enum(
            "mode",
            "predict",
            ["predict", "score"],
            "Whether targets are written, or given ones scored.",
            flag_values=values,
        )
    if command == "eval":
        flags.DEFINE_boolean(
            "watch",
            False,
            "Scores every checkpoint of MODEL_DIR once, as they come, until the run's last step.",
            flag_values=values,
        )
    if command == "convert":
        for name, text in {
            "input": "The checkpoint: a folder of Hugging Face, T5X's checkpoint_STEP, or t5lite's "
            "MODEL_DIR or checkpoints/STEP.",
            "output": "A folder that is not there yet.",
        }.items():
            flags.DEFINE_string(name, None, text, flag_values=values)
        flags.DEFINE_enum(
            "to", "t5lite", ["t5lite", "huggingface"], "Whose format.", flag_values=values
        )
    if command == "data":
        flags.DEFINE_string("split", "train", "show and stats: of the source.", flag_values=values)
        flags.DEFINE_string(
            "data_dir",
            None,
            "list and prune: the folder of data sets; if not given, TFDS_DATA_DIR or "
            "~/tensorflow_datasets.",
            flag_values=values,
        )
        flags.DEFINE_integer(
            "workers",
            None,
            "build: processes; one a processor if not given.",
            lower_bound=1,
            flag_values=values,
        )
        flags.DEFINE_integer(
            "count", 3, "show: examples of each task, and rows.", lower_bound=0, flag_values=values
        )
        flags.DEFINE_integer(
            "records",
            10000,
            "stats: so many of each task are looked at, from all over the split.",
            lower_bound=1,
            flag_values=values,
        )
    if command in ("eval", "data", "inspect", "plan"):
        text = "Prints one JSON document instead of a table."
        if command == "data":
            text = "stats: one JSON document instead of a table."
        flags.DEFINE_boolean("json", False, text, flag_values=values)
    return values


def _define_report_flags(values: flags.FlagValues) -> None:
    texts = {
        "minimize": "The metric that counts; the launch's own, or cross_entropy_nats_per_token of "
        "the evaluation, if not given. SPLIT/NAME is of another split.",
        "maximize": "Or one that is better the higher.",
        "output": "A folder for report.html, which needs no other file, table.csv, table.md and "
        "the plots.",
    }
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_boolean("help", False, "Shows this.", short_name="h", flag_values=values)


def _define_plan_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "topology",
        None,
        "A TPU slice by kind and shape in chips, such as v5e:16x16; cpu:8 for simulated devices.",
        flag_values=values,
    )
    flags.DEFINE_integer("slices", 1, "Slices of that shape.", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean(
        "suggest",
        False,
        "Looks for the mesh, remat policy and microbatches with the least bound that fit.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tries", 4, "suggest: so many are compiled.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "hlo", None, "A file that the compiled program's text is written to.", flag_values=values
    )
