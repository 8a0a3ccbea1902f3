"""Calls of the kernel that Python has no function for, and a filter of those that a program may not make."""

import ctypes
import errno
import os
import struct

# linux/prctl.h, linux/seccomp.h, linux/filter.h, linux/audit.h
PR_SET_SECCOMP, PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 22, 1, 38
SECCOMP_MODE_FILTER = 2
LOAD, JUMP_IF_EQUAL, JUMP_IF_GREATER, JUMP_IF_SET, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
CLONE_THREAD = 0x00010000
# Of x86's third way to call, which has numbers of its own.
X32 = 0x40000000

# Sockets; programs in place of this one; other processes; and io_uring, which could do all of that.
EVERYWHERE = {"io_uring_setup": 425, "pidfd_send_signal": 424}
NUMBERS = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41,
            "fork": 57,
            "vfork": 58,
            "execve": 59,
            "execveat": 322,
            "kill": 62,
            "ptrace": 101,
            "process_vm_writev": 311,
        },
        {"clone": 56, "clone3": 435},
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "execve": 221, "execveat": 281, "kill": 129, "ptrace": 117, "process_vm_writev": 271},
        {"clone": 220, "clone3": 435},
    ),
}


def call(name: str, *arguments) -> None:
    """A function of the C library that sets errno. Raises OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def end_with_parent(signal: int) -> None:
    call("prctl", PR_SET_PDEATHSIG, signal, 0, 0, 0)


def gain_nothing() -> None:
    """No program that this process starts may have more rights than it has."""
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def forbid_network_and_processes() -> None:
    """From here on neither this process nor what it starts can open a socket, start another process or program, or signal one.

    Raises:
        OSError: the kernel has no such filter, or its numbers are unknown.
    """
    machine = os.uname().machine
    if machine not in NUMBERS:
        raise OSError(errno.ENOSYS, f"the system calls of {machine} are not known")
    code = b"".join(instructions(*NUMBERS[machine]))
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def instructions(architecture: int, refused: dict[str, int], cloning: dict[str, int]) -> list[bytes]:
    """The filter, an instruction each: operation, steps ahead if true and if not, operand."""
    denied, unknown = REFUSE | errno.EPERM, REFUSE | errno.ENOSYS
    found = [
        instruction(LOAD, 0, 0, ARCHITECTURE),
        instruction(JUMP_IF_EQUAL, 1, 0, architecture),
        instruction(RETURN, 0, 0, denied),
        instruction(LOAD, 0, 0, NUMBER),
        instruction(JUMP_IF_GREATER, 0, 1, X32 - 1),
        instruction(RETURN, 0, 0, denied),
    ]
    for number in (*refused.values(), *EVERYWHERE.values()):
        found += [instruction(JUMP_IF_EQUAL, 0, 1, number), instruction(RETURN, 0, 0, denied)]
    return [
        *found,
        # The C library asks the older call where this one is not there; only that one shows its flags to a filter.
        instruction(JUMP_IF_EQUAL, 0, 1, cloning["clone3"]),
        instruction(RETURN, 0, 0, unknown),
        instruction(JUMP_IF_EQUAL, 0, 3, cloning["clone"]),
        instruction(LOAD, 0, 0, FIRST_ARGUMENT),
        instruction(JUMP_IF_SET, 1, 0, CLONE_THREAD),
        instruction(RETURN, 0, 0, denied),
        instruction(RETURN, 0, 0, ALLOW),
    ]


def instruction(operation: int, if_true: int, if_not: int, operand: int) -> bytes:
    return struct.pack("HBBI", operation, if_true, if_not, operand)
