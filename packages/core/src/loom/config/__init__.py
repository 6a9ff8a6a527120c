"""Configuration: strict models, YAML 1.2 files, overrides, and the origin of every value.

A thread describes its settings as frozen `Config` classes. `resolve` lays the sources over each
other,

    defaults < `extends:` chain < file < `group=name` < `KEY=VALUE` overrides < command-line flags,

checks the result against the model, and returns it with the place each value came from. Whatever is
wrong (an unknown key, a removed one, a wrong type, a value out of range) is one `UserError` that
names file, line, dotted path, value and remedy.

How layers combine: sections (fields typed as a `Config`) merge key by key; everything else
(numbers, text, lists, free mappings) is replaced as a whole. A section whose discriminator changes
keeps only the keys its new variant knows. An override reaches into a list by index:
`train.phases.0.lr=1e-4`.
"""

from loom.config.model import Config, config_hash, differences, flatten, plain, sections, to_yaml
from loom.config.resolving import Resolved, completed, parse_yaml, read_yaml, resolve, show

__all__ = [
    "Config",
    "Resolved",
    "completed",
    "config_hash",
    "differences",
    "flatten",
    "parse_yaml",
    "plain",
    "read_yaml",
    "resolve",
    "sections",
    "show",
    "to_yaml",
]
