"""Looking for an id in files: every byte of them, with whatever is compressed or packed in them opened."""
