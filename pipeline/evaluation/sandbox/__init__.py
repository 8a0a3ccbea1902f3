"""One program that nobody has read, run in a process of its own behind walls. Standard library alone: it starts in a bare interpreter.

The walls are `namespaces` where the kernel allows them: no network device, a process tree that dies with its first process, and a file
system of its own that shows the interpreter read-only and an empty working folder in memory. Else a `filter` of system calls takes the
network and new processes away, where the kernel has that, and an `audit` hook of the interpreter, which Python asks before each such act,
the files outside of the folder. Limits on time, memory and files hold in all three. The hook is always there, for it tells a refusal from a
failure.
"""
