"""`state.json` of a run dir: how far the run is, for whoever wants to know; a scheduler knows only its job.

It has one writer, the process that holds the row journal, and is replaced as a whole.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

from matrix.cluster.states import STALE_S, State
from matrix.errors import DataError, MatrixError
from matrix.run.budget import BUDGET_EXIT_CODE
from matrix.run.rundir import RunDir, write_whole
from matrix.run.stop import Interrupted

_BEAT_S = 5.0
_DETAIL_LENGTH = 1000

Status = Literal["running", "succeeded", "failed", "stopped", "requeued"]


@dataclass(frozen=True)
class RunState(State):
    """`state.json`.

    Attributes:
        run_id: Id in the tracker.
        status: How far it is; `stopped`: by a signal or by its budget; `requeued`: its time was over, and Slurm will
            start it again.
        pid: Of its process on `host`.
        host: Name of the machine.
        started: Unix time of this start.
        starts: Which start of the run dir this is, from 1.
        job_id: Of the Slurm job that it is in.
        heartbeat: Unix time of the last write.
        ended: Unix time.
        exit_code: Once it has ended.
        detail: Why it failed or was stopped.
    """

    run_id: str
    status: Status
    pid: int
    host: str
    started: float
    starts: int = 1
    job_id: str | None = None
    heartbeat: float = 0.0
    ended: float | None = None
    exit_code: int | None = None
    detail: str = ""

    @classmethod
    def of_run(cls, run_dir: Path) -> Self | None:
        """The state of a run dir; None if there is none.

        Raises:
            ClusterError: The file holds something else.
        """
        return cls.read(run_dir / "state.json")

    def write_to(self, run_dir: Path) -> None:
        """Replace the run dir's state.

        Raises:
            DataError: It can't be written.
        """
        write_whole(run_dir / "state.json", json.dumps(asdict(self), indent=2) + "\n")

    @property
    def is_alive(self) -> bool:
        """Whether a process works on it, and was heard of lately."""
        return self.status == "running" and time.time() - self.heartbeat < STALE_S

    @property
    def word(self) -> str:
        """How it is, in a word; `lost` if its process is gone without having said so."""
        return "lost" if self.status == "running" and not self.is_alive else self.status

    def ended_with(self, status: Status, exit_code: int, detail: str = "") -> Self:
        """The state at the end."""
        now = time.time()
        detail = detail[:_DETAIL_LENGTH]
        return replace(self, status=status, exit_code=exit_code, detail=detail, heartbeat=now, ended=now)


class StateKeeper:
    """Writes the state of one start.

    Attributes:
        exit_code: What the run ends with, once it is known.
    """

    def __init__(self, run_dir: RunDir) -> None:
        before = RunState.of_run(run_dir.path)
        self.exit_code = 0
        self._folder = run_dir.path
        self._state = RunState(
            run_id=run_dir.run_id,
            status="running",
            pid=os.getpid(),
            host=socket.gethostname(),
            started=time.time(),
            starts=before.starts + 1 if before else 1,
            job_id=os.environ.get("SLURM_JOB_ID"),
        )
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._write()
        self._beating.start()

    def close(self, error: BaseException | None) -> None:
        """Write how it ended."""
        self._over.set()
        self._beating.join()
        self._state = self._ended(error)
        # It must not hide what the run ended with, which on a full disk is the same.
        with suppress(DataError):
            self._write()

    def _ended(self, error: BaseException | None) -> RunState:
        match error:
            case None if self.exit_code == BUDGET_EXIT_CODE:
                return self._state.ended_with("stopped", self.exit_code, "workload.budget_usd is used up")
            case None if self.exit_code:
                return self._state.ended_with("failed", self.exit_code, "no row has an answer")
            case None:
                return self._state.ended_with("succeeded", 0)
            case Interrupted():
                return self._state.ended_with("stopped", error.exit_code, str(error))
            case MatrixError():
                return self._state.ended_with("failed", error.exit_code, str(error))
        return self._state.ended_with("failed", 1, f"an error of matrix itself: {type(error).__name__}: {error}")

    def _write(self) -> None:
        replace(self._state, heartbeat=time.time()).write_to(self._folder)

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            # A full disk ends the run at its next row, with its file named.
            with suppress(DataError):
                self._write()


@contextmanager
def kept_state(run_dir: RunDir) -> Iterator[StateKeeper]:
    """Keep the state of a run for as long as the block goes; only for who holds the run dir's journal.

    Raises:
        DataError: It can't be written.
    """
    keeper = StateKeeper(run_dir)
    try:
        yield keeper
    except BaseException as error:
        keeper.close(error)
        raise
    keeper.close(None)
