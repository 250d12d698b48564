"""The scenarios that ship with the project, one TOML file each."""
