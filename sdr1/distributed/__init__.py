"""A toolbox for Ray that knows no role: actors that come and go, calls that end or are lost, places, clusters."""
