"""What the server of `forked` has imported before an engine's processes are forked from it. Imported for that alone."""

import gc
from importlib import import_module

from rlopt.core.garbage import collect_seldom

collect_seldom()
for name in ("vllm.v1.engine.core", "vllm.v1.worker.cpu_worker", "rlopt.weight_sync.shm_receiver"):
    import_module(name)
gc.freeze()  # the processes share these objects for as long as none of them looks at them
