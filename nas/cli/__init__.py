"""The command line. Each verb imports what it needs when it runs, so that `nas --help` imports no torch."""
