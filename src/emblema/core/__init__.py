"""The contracts everything else is built on; torch and the standard library only."""
