"""The settings of a run that is resumed: its own, whatever this start was told."""

import json

from common.errors import ConfigError
from common.settings import Settings, origins, values
from coordinator.ledger import Unfinished

_OF_A_RUN = ("federation", "seed", "data", "model", "training", "run")


def written(settings: Settings) -> str:
    """Spell what a run is begun with."""
    return json.dumps(settings.model_dump(mode="json", include=set(_OF_A_RUN)))


def settings_of(settings: Settings, unfinished: Unfinished) -> Settings:
    """Take a run's own settings. Raises: ConfigError where a flag contradicts them."""
    own = Settings(**json.loads(unfinished.settings))
    resumed = settings.model_copy(update={name: getattr(own, name) for name in _OF_A_RUN})
    known, wanted = values(resumed), values(settings)
    for name, origin in origins(settings).items():
        if origin == "flag" and wanted[name] != known[name]:
            raise ConfigError(
                f"run {unfinished.run} was begun with {name} = {known[name]!r}, not {wanted[name]!r}: "
                "leave the option out, or begin a new run without --resume"
            )
    return resumed
