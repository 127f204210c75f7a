"""A torch family fitted by several processes, on one node or many: Ray Train around the family's own `fit`."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from app.errors import MantaError
from app.models.candidate import CandidateModel
from app.models.families import load_model
from app.models.interactions import Catalogue, Interactions
from app.models.warm import WarmModel
from tune.trial import cap_threads, refit


def fit_together_task(
    held: list[Any],
    events: int,
    family: str,
    params: Mapping[str, Any],
    seed: int,
    passes: int,
    before: tuple[WarmModel, Catalogue] | None = None,
    *,
    workers: int,
    cpus: float,
    gpus: float,
) -> CandidateModel:
    """What `tune.worker.refit_task` gives, by `workers` processes that take every step together, as a Ray task.

    Args:
        held: one reference of the interactions and the catalogue; a bare one would be fetched for the task.
        cpus: that each process reserves.
        gpus: the same, of the GPU; 0: gloo on CPUs, else nccl.

    Raises:
        MantaError: the fit failed, also a second time.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def fit() -> dict[str, bytes]:
        cap_threads(cpus)
        interactions, catalogue = _shared(held)
        model = refit(family, params, interactions.first(events), catalogue, seed=seed, passes=passes, before=before)
        return _files(model) if ray.train.get_context().get_world_rank() == 0 else {}

    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    with tempfile.TemporaryDirectory(prefix="manta-train-") as folder:
        trainer = TorchTrainer(
            fit,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(name=family, storage_path=folder, failure_config=FailureConfig(max_failures=1)),
        )
        try:
            files = trainer.fit().return_value
        except Exception as error:  # Ray Train wraps what a worker raised in its own
            raise MantaError(f"{family}: {workers} processes could not fit it together: {_cause(error)}") from None
    return _model(family, files)


def _shared(held: list[Any]) -> tuple[Interactions, Catalogue]:
    found: tuple[Interactions, Catalogue] = ray.get(held[0])
    return found


def _files(model: CandidateModel) -> dict[str, bytes]:
    """The saved model by file name: it travels as it lies in a bundle, whatever device it was fitted on."""
    with tempfile.TemporaryDirectory(prefix="manta-model-") as folder:
        model.save(Path(folder))
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def _model(family: str, files: Mapping[str, bytes]) -> CandidateModel:
    with tempfile.TemporaryDirectory(prefix="manta-model-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return load_model(family, Path(folder))


def _cause(error: BaseException) -> str:
    """The last line of what the workers said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
