"""Start somebody's script as ``python SCRIPT ARGUMENTS`` does, in a prepared process."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import List, Optional

from tpvformer.engine.device.redirect import find_cards, not_redirected
from tpvformer.engine.distributed.launch import launch, threads
from tpvformer.engine.distributed.parent import RESERVED_PORT, end_with_parent
from tpvformer.engine.foreign.preparations import prepare_all
from tpvformer.engine.foreign.remarks import close_remarks, open_remarks, remark
from tpvformer.errors import ConfigError, UserError

RUNNING: List[str] = []  # the script that runs; the lines of TPVFormer.patch, in a checkout of the reference, look here


def run_script(script: Path, argv: List[str], device: str, cards: Optional[int]) -> int:
    """Run a script with its arguments; return its exit status: 1 after an error, whose traceback is printed.

    ``cards``: how many a processor pretends to be, for scripts that start a process for each. Raises ConfigError for a
    script or a device that is not there.
    """
    if not script.is_file():
        raise ConfigError(f"{script} does not exist; expected a script to run, such as train.py")
    end_with_parent()
    reserved = os.environ.pop(RESERVED_PORT, None)
    if reserved is not None:
        os.close(int(reserved))  # kept by the launcher until now; the script listens there itself
    found = find_cards(device, cards, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    began = open_remarks()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads(found.count)))
    sys.argv = [str(script), *argv]
    sys.path[0] = str(script.resolve().parent)
    prepare_all(*found)
    RUNNING.append(str(script))
    try:
        runpy.run_path(str(script), run_name="__main__")
        return 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except Exception as err:
        traceback.print_exception(type(err), err, _below(err.__traceback__, script))
        reason = _explained(err)
        if reason:
            remark(reason)
        return 1
    finally:
        RUNNING.clear()
        close_remarks(began)


def run_processes(processes: int, argv: List[str]) -> int:
    """Run the command line ``argv`` in processes as torchrun starts them; return the first failure's status, or 0."""
    began = open_remarks()
    try:
        return launch(processes, argv)
    finally:
        close_remarks(began)


def _below(trace: Optional[TracebackType], script: Path) -> Optional[TracebackType]:
    """Return the part of a traceback that begins in the script; all of it if none does."""
    part = trace
    while part is not None and part.tb_frame.f_code.co_filename != str(script):
        part = part.tb_next
    return part or trace


def _explained(err: BaseException) -> Optional[str]:
    """Return what to do about an error that the environment is the reason of."""
    if isinstance(err, UserError):
        return None  # it says so itself
    if isinstance(err, ModuleNotFoundError) and err.name:
        return f"the script needs {err.name.partition('.')[0]}, which is not installed in {sys.executable}"
    return not_redirected(str(err))
