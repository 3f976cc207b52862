"""The checks of `distcnn doctor`."""
