"""MATLAB files, read by scipy in a process of its own: on damaged ones its reader may end the process that calls it."""

import json
import subprocess
import sys
from typing import Any

SECONDS, BYTES = 60, 8 << 30  # that reading may take, and that it may occupy; the benchmarks' files need 1 s and 0.3 GB
SCRIPT = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]),) * 2)
except (ImportError, ValueError, OSError):
    pass
import numpy as np
from scipy.io import loadmat

def plain(value):
    if hasattr(value, "_fieldnames"):
        return {name: plain(getattr(value, name)) for name in value._fieldnames}
    if isinstance(value, np.ndarray):
        return [plain(each) for each in value.reshape(-1).tolist()]
    return value.item() if isinstance(value, np.generic) else value

content = loadmat(sys.argv[1], squeeze_me=True, struct_as_record=False)
if sys.argv[2] not in content:
    sys.exit("it has no " + repr(sys.argv[2]))
values = np.atleast_1d(content[sys.argv[2]]).reshape(-1).tolist()
json.dump([plain(value) for value in values], sys.stdout)
"""


def read_matlab(path: str, key: str) -> list[Any]:
    """Return the values of array `key` of a MATLAB file (version 4 to 7): numbers, strings, dictionaries for records.

    Raises:
        ValueError: it cannot be read, or has no such array.
    """
    line = [sys.executable, "-I", "-c", SCRIPT, path, key, str(BYTES)]
    try:
        done = subprocess.run(line, capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return json.loads(done.stdout)
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said[-1] if said and done.returncode > 0 else f"the reader crashed, status {done.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"reading it takes more than {SECONDS} s"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise ValueError(f"{path} is not a MATLAB file that can be read ({reason[:500]})")
