"""Whether an error says that memory was short, in whichever way the libraries say it."""

import re

import torch

# What PyTorch's CPU allocator, the CUDA driver, cuBLAS and cuDNN say in errors of other kinds.
_MEMORY_SHORT = re.compile("can't allocate memory|out of memory|ALLOC(ATION)?_FAILED")
# What cuDNN says where no kernel's workspace has room, and where it has no kernel at all.
_NO_KERNEL = re.compile("unable to find an engine|Unable to find a valid cuDNN algorithm")
WORKSPACE_SHARE = 0.1  # of a GPU's memory: if that much is free, the workspace was not the cause


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short for the error or for one that it came from: a failed capture reports only itself."""
    met: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in met:
        if isinstance(one, MemoryError | torch.OutOfMemoryError) or _MEMORY_SHORT.search(str(one)):
            return True
        if _NO_KERNEL.search(str(one)) and torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            return free < WORKSPACE_SHARE * total
        met.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return False
