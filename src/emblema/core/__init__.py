"""The contracts that everything else rests on."""
