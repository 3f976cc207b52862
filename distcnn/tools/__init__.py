"""Commands beside the training, each a thin tool on the library."""
