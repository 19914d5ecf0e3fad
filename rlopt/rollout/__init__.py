"""vLLM workers that sample and grade, and the pool of them. They do not know what samples are used for."""
