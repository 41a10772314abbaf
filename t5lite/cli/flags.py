"""The flags of every command."""

from absl import flags


def flags_of(command: str) -> flags.FlagValues:
    """Returns the flags of a command, yet to be parsed."""
    values = flags.FlagValues()
    if command == "launch":
        _define_launch_flags(values)
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


def _define_launch_flags(values: flags.FlagValues) -> None:
    texts = {
        "on": "Where: local, slurm or slurm:PARTITION, tpu:v5e-256 and the like, or gke:tpu7x-64.",
        "name": "The launch's; what it writes is in --dir/NAME.",
        "method": "How values are chosen: grid, random, quasi or tpe; a grid where it can be one, "
        "else quasi-random.",
        "prune": "Stops trials that do badly early: asha or hyperband.",
        "minimize": "The metric that counts; cross_entropy_nats_per_token of the evaluation if not "
        "given. SPLIT/NAME is of another split.",
        "maximize": "Or one that is better the higher.",
        "time_limit": "Slurm: of a job, as in 12:00:00; it saves two minutes before, and goes on.",
        "zone": "TPU: Google's, as in us-east5-a.",
        "project": "TPU: Google's; gcloud's own if not given.",
        "runtime_version": "TPU: what machines boot with; what Google says for the kind of TPU.",
        "setup": "TPU, GKE: a shell script that makes a worker ready, in place of launch/setup.sh "
        "or setup_image.sh: it may mount, export and install.",
        "wheel": "TPU, GKE: a wheel of t5lite; one of this checkout if not given.",
        "image": "GKE: a container image with Python, JAX for TPUs and what t5lite requires.",
        "claim": "GKE: a PersistentVolumeClaim that pods mount at --dir.",
        "queue": "GKE: of Kueue.",
    }
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    numbers = {
        "trials": "How many, where the method draws them.",
        "parallel": "Trials at a time; all of them on Slurm and GKE, else 1, if not given.",
        "vectorized": "Here: so many trials train in one program; they may differ in numbers only.",
        "nodes": "Slurm: for each trial; 1 if not given.",
        "processes": "Of JAX, for each trial; on Slurm for each node; 1, or one a GPU.",
        "gpus": "Slurm: for each node.",
        "slices": "TPU, GKE: for each trial, with the data-centre network between them.",
    }
    for name, text in numbers.items():
        flags.DEFINE_integer(name, None, text, lower_bound=1, flag_values=values)
    flags.DEFINE_string("dir", "runs", "The folder of launches.", flag_values=values)
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "NAME=VALUES: a gin binding and a list, range(3), uniform(0.0, 0.3) or log(1e-4, 1e-2), "
        "with a third number for the points of a grid; may be repeated.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "options",
        [],
        "A further line of Slurm's batch file, or a flag of gcloud's queued-resources create or of "
        "kubectl.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "ssh_options",
        [],
        "TPU: a further flag of gcloud's ssh and scp, such as --internal-ip.",
        flag_values=values,
    )
    flags.DEFINE_boolean("spot", False, "TPU, GKE: may be preempted.", flag_values=values)
    flags.DEFINE_boolean("reserved", False, "TPU: from a reservation.", flag_values=values)
    flags.DEFINE_string(
        "sweep_file",
        None,
        "Or a gin file that binds sweep.values, or sweep.listed for the trials one by one.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed", None, "Of values that are drawn; 0 if not given.", flag_values=values
    )
    flags.DEFINE_integer(
        "max_failures",
        3,
        "Restarts of a trial after a crash; those after a preemption are free.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer("trial", None, "logs: of this one.", lower_bound=0, flag_values=values)
    flags.DEFINE_boolean(
        "dry_run", False, "Prints what would be run or submitted, checked.", flag_values=values
    )
    flags.DEFINE_boolean("json", False, "status, results: one JSON document.", flag_values=values)
    flags.DEFINE_boolean("help", False, "Shows this.", short_name="h", flag_values=values)


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
