"""What is memory or disk running out, whoever says it, and how it is put."""

from __future__ import annotations

import errno

import pytest
import torch

from trainscope.errors import TrainingError
from trainscope.trainer.failures import LESS_TO_SAMPLE, LESS_TO_STEP, explained, is_out_of_memory

OUT_OF_MEMORY: dict[str, BaseException] = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python": MemoryError(),
    "the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "CUDA": RuntimeError("CUDA error: out of memory"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
    "a mapping": OSError(errno.ENOMEM, "Cannot allocate memory"),
}
OTHERS: dict[str, BaseException] = {
    "a bug": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    "a file": OSError(errno.ENOENT, "No such file or directory"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "a value": ValueError("out of memory"),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY.keys())
def test_memory_that_ran_out(error: BaseException) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(TrainingError, match=r"^out of memory at step 3$") as caught, explained(lambda: "at step 3"):
        raise error
    assert (caught.value.hint, caught.value.exit_code) == (LESS_TO_STEP, 2)


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS.keys())
def test_anything_else_is_not_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(code: int) -> None:
    with pytest.raises(TrainingError, match=r"^at step 3: .*samples/x\.png") as caught, explained(lambda: "at step 3"):
        raise OSError(code, "full", "samples/x.png")
    assert "free disk space" in (caught.value.hint or "")


def test_another_error_of_the_system_has_no_such_hint() -> None:
    with pytest.raises(TrainingError, match="Permission denied") as caught, explained(lambda: "at step 3"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert caught.value.hint is None


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("x")])
def test_a_bug_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)), explained(lambda: "at step 3"):
        raise error


def test_the_inner_one_says_where_it_was() -> None:
    with (
        pytest.raises(TrainingError, match=r"^out of memory in sampling at step 2$") as caught,
        explained(lambda: "at step 3"),
        explained(lambda: "in sampling at step 2", less_memory=LESS_TO_SAMPLE),
    ):
        raise MemoryError
    assert caught.value.hint == LESS_TO_SAMPLE
