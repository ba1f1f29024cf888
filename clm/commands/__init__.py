"""What each command of the CLI does, as plain functions of values; `clm.cli` only parses and reports errors."""
