"""One of the processes that fit a model together (arguments: family, number, how many, folder)."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from app.models.candidate import CandidateModel
from app.models.families import make
from app.models.interactions import Catalogue, Interactions

PARAMS = {
    # No draws, so that a fit is a function of the data; a last batch with fewer rows than processes.
    "sasrec": {"iterations": 2, "dropout": 0.0, "n_negatives": 0, "warm_start": False, "batch_events": 90},
    "two_tower": {"iterations": 2, "dropout": 0.0, "n_negatives": 0, "warm_start": False, "batch": 97},
}


def fitted(family: str) -> CandidateModel:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 1005).astype(np.int32), rng.integers(0, 30, 1005).astype(np.int32)
    data = Interactions(users, items, np.ones(1005, np.float32), np.arange(1005), 40, 30)
    return make(family, PARAMS[family]).fit(data, Catalogue.of([str(item) for item in range(30)]), seed=3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, rank, size, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    distributed.init_process_group("gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=size)
    for one in name.split(","):
        model, saved = fitted(one), folder / f"{one}-{rank}"
        saved.mkdir()
        model.save(saved)
    distributed.destroy_process_group()
