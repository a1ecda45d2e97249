"""A script that saves its chest when it is told to end: by Slurm, docker, systemd, or `kill`."""
import os
import signal
import sys

from chest import Chest

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SIGTERM now ends Python the way sys.exit does


def work():
    chest = Chest(path="terminated")
    for n in range(3):
        chest[n] = [n] * 1000
    os.kill(os.getpid(), signal.SIGTERM)  # as the batch system would, from outside


if __name__ == "__main__":
    if os.fork() == 0:
        work()
    os.wait()
    print(len(Chest(path="terminated")), "of 3 values saved")
