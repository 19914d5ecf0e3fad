"""Why vLLM's own process did not start: it stands in the log alone."""

from rlopt.rollout.vllm_engine import root_cause

LOG = """(EngineCore pid=71) ERROR 11-29 21:53:10 [core.py:1047] EngineCore failed to start.
(EngineCore pid=71) ERROR 11-29 21:53:10 [core.py:1047] Traceback (most recent call last):
(EngineCore pid=71) ERROR 11-29 21:53:10 [core.py:1047]   File "core.py", line 1021, in run_engine_core
(EngineCore pid=71) ERROR 11-29 21:53:10 [core.py:1047] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 MiB.
Traceback (most recent call last):
  File "/usr/lib/python3.11/multiprocessing/process.py", line 314, in _bootstrap
    self.run()
{last}
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{'EngineCore': 1}}
"""


def test_the_last_exception_in_the_log_is_the_cause_and_not_the_one_that_refers_to_it() -> None:
    assert root_cause(LOG.format(last="")) == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 MiB."
    said = "OSError: [Errno 28] No space left on device"
    assert root_cause(LOG.format(last=said)) == said
    assert root_cause(LOG.format(last=f"(EngineCore pid=71) {said}")) == said


def test_of_an_exception_without_a_word_the_line_that_raised_it_is_told() -> None:
    logged = "(Worker pid=7) ERROR 11-30 11:00:25 [multiproc_executor.py:953]"
    lines = ["    assert shape[0] == size", "           ^^^^^^^^^^^^^^^^", "AssertionError"]
    for written in (lines, [f"{logged} {line}" for line in lines]):
        assert root_cause(LOG.format(last="\n".join(written))) == "AssertionError: assert shape[0] == size"


def test_a_log_without_an_exception_has_no_cause() -> None:
    assert root_cause("WARNING: no GPU\nError\n") is None
    assert root_cause("") is None
