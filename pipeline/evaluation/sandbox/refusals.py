"""What the interpreter asks before a program acts: audit hooks (PEP 578) that refuse the network, and more where the kernel does not."""

import os
from collections.abc import Callable

Hook = Callable[[str, tuple], None]

NETWORK_EVENTS = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"} | {
    f"socket.gethostby{what}" for what in ("name", "addr")
}
PROCESS_EVENTS = {
    *("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile"),
    *("os.kill", "os.killpg", "pty.spawn", "subprocess.Popen"),
}
PATH_EVENTS = {
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("os.utime", "os.setxattr", "os.removexattr", "os.lchflags", "os.chflags", "shutil.rmtree", "shutil.move"),
}
AF_UNIX = 1


class Refused(PermissionError):
    """What the program tried is not allowed here."""


def refuse_network(folder: str) -> Hook:
    def hook(event: str, arguments: tuple) -> None:
        if event in NETWORK_EVENTS or (event == "socket.__new__" and arguments[1] != AF_UNIX):
            raise Refused(f"network access is refused ({event})")

    return hook


def refuse_what_namespaces_would(folder: str) -> Hook:
    """A hook that refuses the network, new processes, foreign code, and files outside of `folder` but for reading."""
    network, own, realpath, fspath = refuse_network(folder), os.path.realpath(folder), os.path.realpath, os.fsdecode

    def inside(path: str | bytes) -> bool:
        return os.path.commonpath([own, realpath(fspath(path))]) == own

    def hook(event: str, arguments: tuple) -> None:
        network(event, arguments)
        if event in PROCESS_EVENTS:
            raise Refused(f"starting or ending processes is refused ({event})")
        if event.startswith("ctypes."):
            raise Refused(f"foreign code is refused ({event})")
        if event in PATH_EVENTS and not all(inside(path) for path in arguments[:2] if isinstance(path, str | bytes)):
            raise Refused(f"changing files outside of the working folder is refused ({event})")
        if event == "open" and isinstance(arguments[0], str | bytes):
            path, flags = realpath(fspath(arguments[0])), arguments[2]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if path.startswith("/proc/") or (writes and not inside(path) and path != "/dev/null"):
                raise Refused(f"opening {path} is refused")

    return hook
