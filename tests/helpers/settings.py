"""Settings as the command line composes them."""

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from feature_collisions.commands.start import register_schemas
from feature_collisions.settings.train import to_settings
from helpers.commands import ROOT

CONF = ROOT / "conf"


def settings(*overrides, name="config"):
    register_schemas(ConfigStore.instance())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_settings(compose(name, list(overrides)))
