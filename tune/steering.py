"""How Ray Tune is steered: our proposals as its searcher, one ASHA a family as its scheduler, our journal as callback.

Tune's own saved state is not used: it leaves the scheduler out, and the journal has every result.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from typing_extensions import override

from app.models.families import FAMILIES
from tune.journal import Journal, TrialRecord, trial_name
from tune.search import Proposer, proposer_of
from tune.space import SweepFile

ALL_PASSES = 1_000_000  # no family makes as many: ASHA never ends a trial that is good enough to go on


class SweepSearcher(Searcher):
    """Hands out the trials that have not finished, round by round over the families, the dearest family first."""

    def __init__(self, sweep: SweepFile, finished: Sequence[TrialRecord]) -> None:
        super().__init__(metric="value", mode="max")
        self._proposers: dict[str, Proposer] = {name: proposer_of(sweep, name) for name in sweep.families}
        for record in finished:
            self._proposers[record.family].tell(record.number, record.params, record.value)
        done = {record.name for record in finished}
        order = sorted(
            (number, -FAMILIES[family].fit_cost, family)
            for family, proposer in self._proposers.items()
            for number in range(proposer.count)
            if trial_name(family, number) not in done
        )
        self.queue = [(family, number) for number, _, family in order]
        self.planned = len(self.queue) + len(done)
        self._running: dict[str, tuple[str, int, dict[str, Any]]] = {}

    @override
    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    @override
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.queue:
            return str(Searcher.FINISHED)
        family, number = self.queue.pop(0)
        params = self._proposers[family].propose(number)
        self._running[trial_id] = (family, number, params)
        return {"family": family, "number": number, "params": params}

    @override
    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        family, number, params = self._running.pop(trial_id)
        value = None if error or not result else result.get("value")
        self._proposers[family].tell(number, params, value)

    @override
    def save(self, checkpoint_path: str) -> None:
        """The journal has it all."""

    @override
    def restore(self, checkpoint_path: str) -> None:
        """The journal has it all."""


class FamilyScheduler(FIFOScheduler):
    """ASHA among the trials of one iterative family; the others run to their end.

    Rungs of an interrupted sweep are rebuilt from the recorded passes.
    """

    def __init__(self, sweep: SweepFile, finished: Sequence[TrialRecord]) -> None:
        super().__init__()
        self.stopped: set[str] = set()
        self._asha: dict[str, AsyncHyperBandScheduler] = {}
        if sweep.scheduler == "asha":
            for family in sweep.families:
                if FAMILIES[family].iterative:
                    self._asha[family] = AsyncHyperBandScheduler(
                        time_attr="pass",
                        metric="value",
                        mode="max",
                        max_t=ALL_PASSES,
                        grace_period=sweep.grace,
                        reduction_factor=sweep.reduction,
                    )
        for record in finished:
            self._replay(record)

    def _replay(self, record: TrialRecord) -> None:
        asha = self._asha.get(record.family)
        if asha is None or not record.passes:
            return
        trial = SimpleNamespace(trial_id=record.name)
        results = [{"pass": done, "value": value} for done, value in sorted(record.passes)]
        asha.on_trial_add(None, trial)
        for result in results:
            asha.on_trial_result(None, trial, result)
        asha.on_trial_complete(None, trial, results[-1])

    @override
    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    @override
    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if asha := self._asha.get(trial.config["family"]):
            asha.on_trial_add(tune_controller, trial)

    @override
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        asha = self._asha.get(trial.config["family"])
        if asha is None or result.get("final") or result.get("error"):
            return str(TrialScheduler.CONTINUE)
        decision = str(asha.on_trial_result(tune_controller, trial, result))
        if decision == TrialScheduler.STOP:
            self.stopped.add(trial.trial_id)
        return decision

    @override
    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        asha = self._asha.get(trial.config["family"])
        if asha is not None and not result.get("error"):
            asha.on_trial_complete(tune_controller, trial, result)

    @override
    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if asha := self._asha.get(trial.config["family"]):
            asha.on_trial_error(tune_controller, trial)


class Recorder(Callback):
    """Writes every result into the journal before anybody hears of it."""

    def __init__(self, journal: Journal, scheduler: FamilyScheduler, told: Callable[[], None]) -> None:
        self._journal, self._scheduler, self._told = journal, scheduler, told
        self._running: dict[str, TrialRecord] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks for its own resuming, which is not used

    @override
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        config = trial.config
        record = TrialRecord(
            trial_name(config["family"], config["number"]), config["family"], config["number"], config["params"]
        )
        self._running[trial.trial_id] = record
        self._journal.trials[record.name] = record
        self._told()

    @override
    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._running[trial.trial_id]
        record.take(result)
        if result.get("error"):
            record.state = "failed"
        elif result.get("final"):
            record.state = "done"
        self._journal.write(record)
        self._told()

    @override
    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = self._running.pop(trial.trial_id)
        if record.state == "running":
            record.state = "stopped" if trial.trial_id in self._scheduler.stopped else "cut"
            self._journal.write(record)
        self._told()

    @override
    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = self._running.pop(trial.trial_id)
        record.state, record.error = "failed", _last_line(trial)
        self._journal.write(record)
        self._told()


def _last_line(trial: Trial) -> str:
    """The last line of the traceback says what happened; the whole is in the trial's own folder."""
    error = trial.get_error()
    lines = [line.strip() for line in str(error or "the trial's process died").splitlines() if line.strip()]
    return lines[-1][:500]
