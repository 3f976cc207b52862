"""The measurements of `distcnn bench`."""
