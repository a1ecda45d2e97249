"""Eight workers fill a chest while the parent reads it."""
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

from chest import Chest


def simulate(chest, seed):
    chest[seed] = [seed * n for n in range(1000)]  # each worker has a handle of its own
    chest.sync()  # now others can see it
    return seed


def main():
    chest = Chest(path="pool")
    with ProcessPoolExecutor(8) as pool:
        work = [pool.submit(partial(simulate, chest), seed) for seed in range(40)]
        for done in as_completed(work):
            assert chest[done.result()][1] == done.result()  # seen at once: committed, and new to the parent
    print(len(chest))


if __name__ == "__main__":
    main()
