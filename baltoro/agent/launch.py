"""The first thing that runs inside a sandbox: sets the limits of a process, then becomes the command.

Started as a file of its own with no import of ours, since Baltoro need not be readable in there:
`python -I -S -c SOURCE '{"cpu_s": 60, ...}' COMMAND...`. Limits set here hold for every process that it starts.
"""

import json
import os
import resource
import sys


def main() -> None:
    limits, command = json.loads(sys.argv[1]), sys.argv[2:]
    for name, value in (
        ("RLIMIT_CPU", limits["cpu_s"]),
        ("RLIMIT_DATA", limits["memory_bytes"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NPROC", limits["processes"]),
        ("RLIMIT_CORE", 0),
    ):
        if value is not None and hasattr(resource, name):
            kind = getattr(resource, name)
            most = resource.getrlimit(kind)[1]
            least = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (least, least))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
