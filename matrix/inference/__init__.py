"""`matrix inference`: rows through a model that is served already, in one command."""
