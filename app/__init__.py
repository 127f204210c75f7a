"""The domain of Manta: plain Python that imports no Ray."""
