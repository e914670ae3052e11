"""In which columns, beside the axes, rows must be alike, and what is told where they are not."""

# Rows alike in these ran right after one another, and may be paired.
PAIRED = ["run_id", "hostname", "repeat"]

# May be averaged: the machine, its software, our own, and the data.
AVERAGED = ["hostname", "environment_fingerprint", "git_commit", "dataset_fingerprint"]

# May be compared: else no ratio means anything.
COMPARED = (
    "dataset_fingerprint",
    "cpu_model",
    "cpu_count",
    "os_version",
    "python_version",
    "torch_version",
    "torchvision_version",
    "cuda_version",
    "driver_version",
    "rresnet_version",
    "variables",
    "model_code",
)
# What two machines may differ in without its being said that they may: it is what they are compared in.
OF_THE_MACHINE = ("cpu_model", "cpu_count", "os_version", "cuda_version", "driver_version")

# Ran on one kind of machine; and of two result sets these are of one setting.
MACHINE = ["cpu_model", "cpu_count", "gpu_name"]
MATCHED = ["cell_id", *MACHINE, "dataset_fingerprint"]

# Trained the same: settings that differ in these do not beat one another.
TASK = ["model", "dataset", "dataset_fingerprint", "image_size"]

# Told: of two machines; of two result sets, and of a setting that one machine has twice.
OF_TWO_MACHINES = ["hostname", *MACHINE, *(column for column in COMPARED if column not in MACHINE)]
OF_TWO_SETS = ["hostname", *COMPARED, "ray_version", "git_commit"]
