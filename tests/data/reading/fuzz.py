"""Damages every valid file and table of the corpus and looks for anything but an image, a table or a clear refusal.

    python tests/data/reading/fuzz.py --minutes 10 --seed 0 --out findings

A worker process reads the damaged files, with a limit of memory; this process watches the time and starts it again when
it dies. A finding is an exception other than ValueError, OSError or InputError, a crash, a hang, or a message that is
not one clear line. Each is saved below --out: the damaged file, beside it a .txt with what happened.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import logging
import os
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

SECONDS = 10
MEMORY = 4 * 2**30


# --- the worker ------------------------------------------------------------------------------------------------------


def worker() -> None:
    """Reads requests, one JSON a line, and answers each with one line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print what they like
    logging.getLogger().addHandler(logging.NullHandler())  # tifffile's many lines would hide what matters
    from simtrail.data.reading.readers import Reading, open_image
    from simtrail.data.tables import load_table
    from simtrail.errors import InputError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        path = Path(request["path"])
        faulthandler.dump_traceback_later(SECONDS - 1)
        try:
            if request["table"]:
                load_table(path)
            else:
                np.asarray(open_image(path, Reading(**request["reading"])).image).sum(dtype=float)
            outcome = {"kind": "read"}
        except (ValueError, OSError, InputError) as error:
            outcome = {"kind": "refused"}
            message = str(error)
            if not message.strip() or "\n" in message or re.search(r"0x[0-9a-f]{6,}|<[\w.]+ object", message):
                outcome = {"kind": "message", "detail": repr(message)[:500], "where": place(error)}
        except BaseException as error:
            detail = traceback.format_exc()[-3000:]
            outcome = {"kind": type(error).__name__, "detail": detail, "where": place(error)}
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


def place(error: BaseException) -> str:
    """The last line of simtrail in the traceback: findings with the same one are one fault."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "simtrail" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


class Worker:
    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 – as long as the worker
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.answer(120)

    def answer(self, seconds: float) -> str:
        """A line; empty if the worker died, and None after the time."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline().decode() if ready else None

    def read(self, request: dict) -> dict:
        start = os.fstat(self.errors.fileno()).st_size
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        line = self.answer(SECONDS)
        if line:
            return json.loads(line)
        kind = "hang" if line is None else "crash"
        self.close()
        said = os.pread(self.errors.fileno(), 10**7, start).decode(errors="replace")
        said = said[max(0, said.find("Fatal Python error"), said.find("Timeout (")) :][:4000]
        detail = f"{said}\nexit status {self.process.returncode}"
        frames = re.findall(r"simtrail/([\w/]+\.py)\W+line (\d+)", said)
        return {"kind": kind, "detail": detail, "where": ":".join(frames[0]) if frames else "?"}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """The bytes after one to four changes; half of the places are in the first 512 bytes, where headers are."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        if not out:
            break
        size = len(out)
        near = min(size, 512) if rng.random() < 0.5 else size
        at = int(rng.integers(near))
        span = int(min(size - at, rng.choice([1, 2, 4, 8, 16, 64, 256])))
        match rng.integers(10):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                out[at] = int(rng.integers(256))
            case 2:
                del out[at:]
            case 3:
                del out[at : at + span]
            case 4:
                out[at:at] = rng.bytes(span)
            case 5:
                out[at:at] = out[at : at + span]
            case 6:
                out[at : at + span] = bytes(span)
            case 7:
                out[at : at + span] = b"\xff" * span
            case 8:
                values = [0, 1, -1, 2**31 - 1, -(2**31), 2**16, 2**24, 10**6, 65535, 255, size, size - 1, at]
                number = int(rng.choice(values)) & 0xFFFFFFFF
                out[at : at + 4] = number.to_bytes(4, "little" if rng.random() < 0.5 else "big")
            case 9:
                start = int(rng.integers(max(1, len(other))))
                out[at : at + span] = other[start : start + span]
    return bytes(out)


# --- the loop --------------------------------------------------------------------------------------------------------


def seeds(folder: Path) -> list[tuple]:
    """(case, is it a table, its files) for every case that can be read."""
    from corpus import file_cases, table_cases

    found = []
    for case in [*file_cases(), *table_cases()]:
        if case.refused is None and "108" not in case.name and not getattr(case, "isolated", False):
            case.write_in(folder)
            files = [p for p in case.path.parent.rglob("*") if p.is_file() and p.stat().st_size < 200_000]
            if files:
                found.append((case, not hasattr(case, "reading"), files))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--only", default="", help="only cases whose name matches this regular expression")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    rng = np.random.default_rng(options.seed)
    counts, faults = collections.Counter(), collections.Counter()
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        cases = [seed for seed in seeds(Path(folder)) if re.search(options.only, seed[0].name)]
        print(f"{len(cases)} cases", flush=True)
        reader = Worker()
        while time.monotonic() < end:
            case, table, files = cases[rng.integers(len(cases))]
            chosen = files[rng.integers(len(files))]
            other = cases[rng.integers(len(cases))][2][0].read_bytes()
            whole = chosen.read_bytes()
            broken = damaged(whole, rng, other)
            chosen.write_bytes(broken)
            reading = {} if table else case.reading
            outcome = reader.read({"path": str(case.path), "table": table, "reading": reading})
            counts[outcome["kind"]] += 1
            if outcome["kind"] not in ("read", "refused"):
                fault = f"{outcome['kind']} {outcome['where']} {case.file.rsplit('.', 1)[-1].lower()}"
                faults[fault] += 1
                if faults[fault] <= 3:
                    print(f"{fault}: {case.name}: {outcome['detail'].strip().splitlines()[-1][:200]}", flush=True)
                    save(options.out, fault, faults[fault], case, outcome)
                if outcome["kind"] in ("crash", "hang"):
                    reader = Worker()
            chosen.write_bytes(whole)
        reader.close()
    print(dict(counts))
    for fault, times in faults.most_common():
        print(f"{times:6d}  {fault}")
    sys.exit(bool(faults))


def save(out: Path, fault: str, number: int, case, outcome: dict) -> None:
    folder = out / re.sub(r"[^\w.-]+", "_", f"{fault} {number}")
    shutil.copytree(case.path.parent, folder, dirs_exist_ok=True)
    (folder / "what.txt").write_text(f"{case.name}: open {case.file}\n{outcome['kind']}\n{outcome['detail']}\n")


if __name__ == "__main__":
    main()
