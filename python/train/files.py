"""Writing a file so that a run that is stopped leaves the old one or the new one, never half."""

import os
import pathlib


def write_atomically(path, write):
    """Calls `write` with a binary file that becomes `path` when it is complete."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        write(file)
    os.replace(partial, path)
