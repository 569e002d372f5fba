"""The environments: what each file in this folder may say, and reading them."""

from config.errors import ConfigError
from config.loader import (
    Override,
    SettingsBySlug,
    innovation_settings,
    load_environments,
)
from config.regions import ec2_instance_types, hyperpod_instance_types, plan_instance_types, regions
from config.schema import Amount, Budget, Count, EnvironmentConfig, InnovationSettings, Section

__all__ = [
    "Amount",
    "Budget",
    "ConfigError",
    "Count",
    "EnvironmentConfig",
    "InnovationSettings",
    "Override",
    "Section",
    "SettingsBySlug",
    "ec2_instance_types",
    "hyperpod_instance_types",
    "innovation_settings",
    "load_environments",
    "plan_instance_types",
    "regions",
]
