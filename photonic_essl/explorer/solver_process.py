"""The process that draws and solves cells for the explorer: this package imports no solver, it asks one."""

import sys
import threading

import numpy as np

from data_gen.messages import Peer

COMMAND = (sys.executable, "-m", "data_gen.explorer_worker")


class SupersededError(Exception):
    """A request was not looked at, as a newer one came while it waited."""


class SolverDiedError(RuntimeError):
    """The process died over a request; another has been started."""


class SolverProcess:
    """A process that answers one request at a time; of those that wait for it, only the newest gets its turn.

    It runs from construction to `close`, or to the end of this process, however that comes: it ends with its standard
    input.
    """

    def __init__(self) -> None:
        self.turn = threading.Condition()
        self.newest, self.busy = 0, False
        self._start()

    def ask(self, task: str, cell: str = "") -> dict[str, np.ndarray]:
        """Return the answer to a request; called from many threads.

        Args:
            task: a task of `data_gen.explorer_worker`.
            cell: JSON text of the cell, as it is described there.

        Raises:
            SupersededError: if another request came while this one waited.
            SolverDiedError: if the process died over this request.
            ValueError: if the process could not do what was asked; its own words.
        """
        with self.turn:
            self.newest += 1
            mine = self.newest
            self.turn.notify_all()
            self.turn.wait_for(lambda: not self.busy or mine != self.newest)
            if mine != self.newest:
                raise SupersededError
            self.busy = True
        try:
            answer = self.peer.ask(task=task, cell=cell)
            if answer is None:
                self.close()
                status = self.peer.process.returncode
                self._start()
                raise SolverDiedError(f"the solver's process died (status {status}); a new one has started: try again.")
        finally:
            with self.turn:
                self.busy = False
                self.turn.notify_all()
        if "error" in answer:
            raise ValueError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """End the process."""
        self.peer.close()

    def _start(self) -> None:
        # A session of its own: Ctrl-C in the terminal is for the page's process, which then ends this one.
        self.peer = Peer(COMMAND, start_new_session=True)
