"""Ray: thin actors around the core, and the executor that streams groups through them."""
