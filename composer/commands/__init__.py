"""The commands of ``composer``."""
