"""The version of this package, written here alone: the installation, the command and every record read it."""

VERSION = "0.2.0.dev0"
