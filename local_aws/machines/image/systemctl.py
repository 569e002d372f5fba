"""The machine's `systemctl`: hands its words to the machine's init and prints the answer."""

import json
import os
import socket
import sys


def main() -> int:
    """Ask init over its socket, whose path is kept short by going to its folder first."""
    os.chdir(os.path.join(os.environ["ISOMORPH_ROOT"], "run"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect("init.sock")
        connection.sendall(json.dumps(sys.argv[1:]).encode() + b"\n")
        answer = json.loads(connection.makefile().readline() or '{"code": 1}')
    sys.stdout.write(answer.get("out", ""))
    sys.stderr.write(answer.get("err", ""))
    return int(answer["code"])


if __name__ == "__main__":
    sys.exit(main())
