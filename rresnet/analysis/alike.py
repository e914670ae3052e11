"""In which columns, besides the axes, rows must agree, and which differences are reported."""

# Rows that agree in these ran right after one another, and may be paired.
PAIRED = ["run_id", "hostname", "repeat"]

# Rows that agree in these may be averaged: the machine, its software, our own, and the data.
AVERAGED = ["hostname", "environment_fingerprint", "git_commit", "dataset_fingerprint"]

# Rows that agree in these may be compared: otherwise a ratio means nothing.
COMPARED = (
    "dataset_fingerprint",
    "cpu_model",
    "cpu_count",
    "gpu_name",  # null on a CPU
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
# Two machines may differ in these without being allowed to by name, because these are what is compared.
OF_THE_MACHINE = ("cpu_model", "cpu_count", "gpu_name", "os_version", "cuda_version", "driver_version")

# Rows that agree in MACHINE ran on one kind of machine; rows of two result sets that agree in MATCHED are one setting.
MACHINE = ["cpu_model", "cpu_count", "gpu_name"]
MATCHED = ["cell_id", *MACHINE, "dataset_fingerprint"]

# Rows that agree in these trained the same; settings that differ in these are not ranked against each other.
TASK = ["model", "dataset", "dataset_fingerprint", "image_size"]

# Differences that are reported: of two machines; of two result sets, and of a setting that one machine has twice.
OF_TWO_MACHINES = ["hostname", *MACHINE, *(column for column in COMPARED if column not in MACHINE), "git_commit"]
OF_TWO_SETS = ["hostname", *COMPARED, "ray_version", "git_commit"]
