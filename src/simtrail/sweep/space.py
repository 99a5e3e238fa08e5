"""Search spaces: what a sweep varies, its objective and its budget; checked before any trial starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simtrail.errors import InputError
from simtrail.params import NAME, Params, Pretrain, Settings, changed, parse, read_yaml

if TYPE_CHECKING:
    from optuna import Trial

FOLDER = Path("sweeps")
# settings that change the negatives or the scale of the contrastive loss
LOSS_DEPENDS_ON = ("augment", "batch_size", "temperature", "objective", "normalise", "epochs")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Axis(_Strict):
    """The values of a parameter: from `low` to `high`, one of `choices`, or `powers_of_two` from the first to the last.

    Or `sets`: names, each with the settings that it stands for; then the name of the axis can be any word.
    With `when`, the parameter is only searched if other parameters of the space have these values; else it has the
    value of params.yaml.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: list[Any] | None = None
    powers_of_two: tuple[int, int] | None = Field(default=None, strict=False)
    sets: dict[str, Settings] | None = None
    when: Settings = {}

    @model_validator(mode="after")
    def _valid(self) -> Axis:
        low, high = self.low, self.high
        forms = [low is not None or high is not None, self.choices is not None, self.powers_of_two is not None]
        forms.append(self.sets is not None)
        if sum(forms) != 1 or (low is None) != (high is None):
            raise ValueError("must have low and high, or choices, or powers_of_two, or sets")
        if low is not None and high is not None and low >= high:
            raise ValueError(f"low = {low}, high = {high}: an empty range; low must be < high")
        if self.log and (low is None or low <= 0):
            raise ValueError(f"low = {low}: must be > 0 with log: true")
        if low is None and not self.values:
            raise ValueError("no value to choose; choices, powers_of_two or sets must have at least one value")
        return self

    @property
    def values(self) -> list[Any] | None:
        """The list of values, or None for a range."""
        if self.powers_of_two:
            low, high = self.powers_of_two
            return [2**n for n in range(31) if low <= 2**n <= high]
        return list(self.sets) if self.sets is not None else self.choices

    def __contains__(self, value: Any) -> bool:
        if self.values is not None:
            return value in self.values
        return isinstance(value, int | float) and self.low <= value <= self.high  # type: ignore[operator]


class Budget(_Strict):
    trials: int = Field(ge=1)
    """Number of trials that end, completed or pruned."""
    minutes: float | None = Field(default=None, gt=0)
    """After this time, no new trial starts; null: no limit."""
    epochs: int = Field(ge=1)
    """Number of epochs of a trial that is not pruned."""


class Confirm(_Strict):
    """The best settings of a search run again with several seeds, beside those of params.yaml."""

    best: int = Field(3, ge=1)
    """How many of the best trials."""
    seeds: int = Field(3, ge=1)
    """How many seeds for each."""
    epochs: int | None = Field(None, ge=1)
    """Length of each run; null: pretrain.epochs. Only a winner of full length is registered."""


class Space(_Strict):
    """The content of a file sweeps/NAME.yaml."""

    study: str = Field(pattern=NAME)
    objective: Literal["val_probe", "val_knn", "val_effective_rank", "loss"]
    direction: Literal["maximize", "minimize"]
    budget: Budget
    sampler: Literal["tpe", "gp", "grid", "random", "qmc", "cmaes"]
    pruner: Literal["median", "hyperband", "wilcoxon", "none"]
    set: Settings = {}
    """Settings of all trials."""
    confirm: Confirm | None = None
    """What is run again after the search; null: the encoder of the best trial is registered as it is."""
    space: dict[str, Axis] = Field(min_length=1)
    """The parameters that are searched, by their dotted keys in params.yaml."""

    @model_validator(mode="after")
    def _comparable(self) -> Space:
        changes_loss = [key for key in self.searched if key.removeprefix("pretrain.").split(".")[0] in LOSS_DEPENDS_ON]
        if self.objective == "loss" and changes_loss:
            raise ValueError(
                f"objective = 'loss': not comparable between trials that differ in {', '.join(changes_loss)}; "
                "choose val_probe or val_knn, or val_effective_rank if there are no labels"
            )
        if (self.objective == "loss") != (self.direction == "minimize"):
            direction = "minimize" if self.objective == "loss" else "maximize"
            raise ValueError(f"direction = {self.direction!r}: must be {direction!r} for {self.objective}")
        earlier: dict[str, Axis] = {}
        for key, axis in self.space.items():
            for other, value in axis.when.items():
                if other not in earlier or value not in earlier[other]:
                    raise ValueError(
                        f"space.{key}.when.{other} = {value!r}: must be a value of a parameter that is listed before"
                    )
            if self.sampler == "grid" and (axis.values is None or axis.when):
                raise ValueError(f"space.{key}: sampler = 'grid' needs choices or powers_of_two, and no `when`")
            earlier[key] = axis
        if self.sampler == "cmaes" and all(axis.values is not None for axis in self.space.values()):
            raise ValueError("sampler = 'cmaes': needs a parameter with low and high; it draws choices only at random")
        return self

    @property
    def decided(self) -> Settings:
        """Settings of every trial that follow from budget and objective."""
        return {
            "pretrain.epochs": self.budget.epochs,
            "pretrain.max_steps": None,
            "pretrain.monitor.metric": "last" if self.objective == "loss" else self.objective.removeprefix("val_"),
            "pretrain.monitor.patience": None,  # only the pruner stops a trial early
        }

    def settings(self, values: Settings) -> Settings:
        """All settings of a trial with these values of the space."""
        return {**self.set, **self.decided, **self.keys(values)}

    def keys(self, values: Settings) -> Settings:
        """The values by their dotted keys: a named set is replaced by its settings."""
        settings: Settings = {}
        for name, value in values.items():
            sets = self.space[name].sets if name in self.space else None
            settings |= sets[value] if sets is not None else {name: value}
        return settings

    @property
    def searched(self) -> list[str]:
        """The dotted keys that the space changes."""
        keys = [list(self.keys({name: value})) for name, axis in self.space.items() for value in axis.values or [None]]
        return list(dict.fromkeys(key for of_value in keys for key in of_value))

    def present(self, flat: Settings) -> Settings:
        """The values of the space that parameters, by dotted key, have; None for a named set that none matches."""
        values = dict(flat)
        found: Settings = {}
        for name, axis in self.active(values):
            if axis.sets is not None:
                same = (n for n, s in axis.sets.items() if all(flat.get(key) == value for key, value in s.items()))
                values[name] = next(same, None)
            found[name] = values[name]
        return found

    def active(self, values: Settings) -> Iterator[tuple[str, Axis]]:
        """The parameters of a trial, in order. The caller adds the value of each to `values` before the next one."""
        for key, axis in self.space.items():
            if all(values.get(other) == value for other, value in axis.when.items()):
                yield key, axis


def load_space(name: str, params: Params) -> Space:
    """The checked space of sweeps/NAME.yaml.

    All choices and the limits of all ranges must be valid, and the space must include the values of params.yaml, which
    are trial 0. Raises InputError that names every key with an error, or the existing spaces if there is no such file.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.exists():
        existing = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml"))) or "none"
        raise InputError(f"{path}: no such search space; {FOLDER} has {existing}")
    space = parse(Space, read_yaml(path.read_bytes(), path), path)
    for key in (*space.set, *space.searched):
        if not key.startswith("pretrain."):
            raise InputError(
                f"{path}: {key}: only pretrain is searched, because all trials use the same prepared data; remove it"
            )
        if key in space.decided:
            raise InputError(f"{path}: {key}: is set by budget and objective; remove it")
    base = changed(params, space.settings({}), str(path))
    flat = base.flat()
    for key, axis in space.space.items():
        for value in axis.values if axis.values is not None else (axis.low, axis.high):
            changed(params, space.settings({**axis.when, key: value}), str(path))
        if key not in flat and axis.sets is None:
            raise InputError(f"{path}: space.{key}: params.yaml has no single value for this key; set one, for trial 0")
    for key, value in space.present(flat).items():
        if value is None and space.space[key].sets is not None:
            raise InputError(
                f"{path}: space.{key}: params.yaml has none of these sets; add one with its settings, or an empty one, "
                "present: {}, because trial 0 has the values of params.yaml"
            )
        if value not in space.space[key]:
            raise InputError(
                f"{path}: space.{key}: params.yaml, or the plan where it has auto, has {value!r}, which is outside the "
                "space; extend the space, because trial 0 has this value"
            )
    return space


def suggest(trial: Trial, space: Space) -> Settings:
    """The values of a trial, chosen by the sampler of the study."""
    values: Settings = {}
    for key, axis in space.active(values):
        if axis.values is not None:
            values[key] = trial.suggest_categorical(key, axis.values)
        elif isinstance(axis.low, int) and isinstance(axis.high, int):
            values[key] = trial.suggest_int(key, axis.low, axis.high, log=axis.log)
        else:
            values[key] = trial.suggest_float(key, float(axis.low), float(axis.high), log=axis.log)  # type: ignore[arg-type]
    return values


def trial_settings(params: Params, space: Space, values: Settings) -> Pretrain:
    """The settings of a trial with these values."""
    return changed(params, space.settings(values), f"study {space.study}").pretrain.each_seed()[0]


def current_values(params: Params, space: Space) -> Settings:
    """The values of params.yaml for the parameters of the space."""
    return space.present(changed(params, space.settings({}), "params.yaml").flat())
