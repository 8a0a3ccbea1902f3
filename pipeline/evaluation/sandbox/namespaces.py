"""A process with no network, no other processes and no files but the interpreter's: Linux namespaces, without any rights of its own."""

import ctypes
import os
import struct
import sys
from contextlib import suppress

from pipeline.evaluation.sandbox.system_calls import call

# linux/sched.h, sys/mount.h, linux/mount.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 0x1

NOBODY = 65534
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
WORKING_FOLDER = "/program"


def enter(folder: str, megabytes: int) -> None:
    """Leave the machine behind for an empty folder in memory, of so many megabytes; `folder` is where all that is mounted.

    Raises:
        OSError: the kernel does not allow it.
    """
    outside = enter_namespaces()
    show_only(folder, megabytes)
    if outside == 0:
        # The kernel exempts the machine's root from the limit on processes.
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    drop_capabilities()


def enter_namespaces() -> int:
    """Leave the machine's users, network, processes, mounts and semaphores behind. Returns the user's number outside."""
    user, group, process = os.geteuid(), os.getegid(), os.getpid()
    reading, writing = os.pipe()
    # Only a process outside may give this one more than its own user.
    helper = os.fork()
    if helper == 0:
        status = 1
        with suppress(OSError):
            os.close(writing)
            if os.read(reading, 1):
                map_users(process, user, group)
                status = 0
        os._exit(status)
    os.close(reading)
    try:
        call("unshare", CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC)
        os.write(writing, b"1")
    finally:
        os.close(writing)
        _, status = os.waitpid(helper, 0)
    if status:
        raise PermissionError("the kernel does not let users be mapped into a namespace")
    return user


def map_users(process: int, user: int, group: int) -> None:
    if user != 0:
        with open(f"/proc/{process}/setgroups", "w") as file:
            file.write("deny")
    for kind, number in (("uid", user), ("gid", group)):
        rows = f"{number} {number} 1\n" + (f"{NOBODY} {NOBODY} 1\n" if user == 0 else "")
        with open(f"/proc/{process}/{kind}_map", "w") as file:
            file.write(rows)


def show_only(folder: str, megabytes: int) -> None:
    """Make `folder` the root of all files: the system and the interpreter read-only, and an empty working folder in memory."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    shown_paths = [*SYSTEM_FOLDERS, *DEVICES, sys.prefix, sys.base_prefix, *interpreter_folders()]
    for path in outermost([*shown_paths, *map(os.path.realpath, shown_paths)]):
        shown = folder + path
        os.makedirs(os.path.dirname(shown), 0o755, exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), shown)
            continue
        if os.path.isdir(path):
            os.mkdir(shown, 0o755)
        else:
            os.close(os.open(shown, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(path, shown, None, MS_BIND | MS_REC)
    os.mkdir(folder + WORKING_FOLDER)
    if not os.path.lexists(folder + "/tmp"):
        os.symlink(WORKING_FOLDER, folder + "/tmp")
    make_read_only(folder)
    mount("tmpfs", folder + WORKING_FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, f"size={megabytes}m,mode=1777")
    os.chroot(folder)
    os.chdir(WORKING_FOLDER)


def interpreter_folders() -> list[str]:
    """Where the running interpreter's own modules lie; a virtual environment may point elsewhere."""
    return [os.path.dirname(os.path.realpath(os.__file__)), os.path.dirname(os.path.realpath(sys.executable))]


def outermost(paths: list[str]) -> list[str]:
    """Existing paths that lie in no other of them; the root itself is not one."""
    there = {os.path.abspath(path) for path in paths if os.path.lexists(path)} - {"/"}
    kept = [path for path in there if not any(path != other and path.startswith(other + "/") for other in there)]
    return sorted(kept)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def make_read_only(folder: str) -> None:
    """This mount and all below it; devices stay usable."""
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(folder), AT_RECURSIVE, attributes, len(attributes))


def drop_capabilities() -> None:
    version_3 = struct.pack("II", 0x20080522, 0)
    call("capset", version_3, bytes(24))
