"""Configuration: one tree of keys, YAML files with ``_BASE_``, command-line overrides."""

from vimpac_ext.config.load import ConfigError, LoadedConfig, load_config
from vimpac_ext.config.validate import validate

__all__ = ["ConfigError", "LoadedConfig", "load_config", "validate"]
