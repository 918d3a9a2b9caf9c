"""One judge behind HTTP: questions of all clients in the engine's batches, in several protocols."""
