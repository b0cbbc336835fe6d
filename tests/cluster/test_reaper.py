"""The reaper ends what carries the cluster's mark, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from matrix.cluster.reaper import MARK
from tests.command import environment


def test_it_ends_marked_processes_and_removes_the_folder_when_its_owner_goes(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    (folder / "session").mkdir(parents=True)
    stubborn = ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.2; done"]
    marked = subprocess.Popen(
        stubborn, env=environment(**{MARK: "m1"}), start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    other = subprocess.Popen(
        stubborn, env=environment(**{MARK: "m2"}), start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    for process in (marked, other):
        assert process.stdout
        assert process.stdout.readline() == "up\n"
    # The owner is a process that is killed: nobody closes anything in good order.
    owner = subprocess.Popen(
        [sys.executable, "-c", f"""
import subprocess, sys, time
r = subprocess.Popen([sys.executable, "-m", "matrix.cluster.reaper", "m1", {str(folder)!r}], stdin=subprocess.PIPE,
                     start_new_session=True)
print(r.pid, flush=True)
time.sleep(100)
"""],
        env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout
    reaper = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    marked.wait(timeout=20)
    for _ in range(200):
        if not Path(f"/proc/{reaper}").exists():
            break
        subprocess.run(["sleep", "0.1"], check=True)
    assert not Path(f"/proc/{reaper}").exists()
    assert not folder.exists()
    assert other.poll() is None
    os.killpg(other.pid, 9)
    other.wait()


def test_rays_agents_are_told_by_their_files_and_who_reads_a_log_is_left_alone(tmp_path: Path) -> None:
    """Ray's agents write their titles over the environment, and so over the mark."""
    folder = tmp_path / "ray"
    folder.mkdir()
    code = f"import time; log = open({str(folder / 'log')!r}, 'a'); print('up', flush=True); time.sleep(100)"
    env = environment()
    agent = subprocess.Popen(
        ["ray::Agent", "-c", code], executable=sys.executable, env=env, stdout=subprocess.PIPE, text=True
    )
    reader = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
    for process in (agent, reader):
        assert process.stdout
        assert process.stdout.readline() == "up\n"
    command = [sys.executable, "-m", "matrix.cluster.reaper", "nobody's mark", str(folder)]
    subprocess.run(command, env=env, stdin=subprocess.DEVNULL, timeout=20, check=True)
    assert agent.wait(timeout=5) < 0
    assert reader.poll() is None
    reader.kill()
    reader.wait()
    assert not folder.exists()
