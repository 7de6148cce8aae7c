"""The jobs people start: thin scripts over the layers below, each also a `triptych` subcommand."""
