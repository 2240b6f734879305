"""Commands that look at an instance rather than serve: ``freeapi audit``."""
