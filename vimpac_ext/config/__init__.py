"""Configuration: one tree of keys, YAML files with ``_BASE_``, command-line overrides."""

from vimpac_ext.config.load import ConfigError, LoadedConfig, load_config
from vimpac_ext.config.stages import folders_of, last_stage, stages_of
from vimpac_ext.config.validate import check_folders, validate

__all__ = [
    "ConfigError",
    "LoadedConfig",
    "check_folders",
    "folders_of",
    "last_stage",
    "load_config",
    "stages_of",
    "validate",
]
