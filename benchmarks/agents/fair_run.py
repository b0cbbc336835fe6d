"""Start fair-matrix's simulation by its own entry point, on a Ray that ends with this process.

Its actors ask for 5.5 CPUs, which the machine needn't have: Ray counts them and sets nothing aside.
"""

from __future__ import annotations

import os
import runpy

import ray

ray.init(address="local", num_cpus=8, include_dashboard=False, _temp_dir=os.environ["BENCHMARK_RAY"])
runpy.run_module("matrix.agents.p2p_agents", run_name="__main__")
