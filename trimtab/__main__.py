"""`python -m trimtab`, which launchers of several processes ask for."""

from trimtab.cli.main import run

run()
