"""What the tests from outside share: QMP, processes, a pair of Twinblock daemons, a pair of QEMU processes, and NBD
on the level of its messages. Python's standard library only."""
